"""A page on a pipeline of Dynamic-TinyBERT: what each choice of lengths scores on dev rows, and how fast it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from compresskit import tracking
from compresskit.evaluation import figures
from compresskit.evaluation.scores import BOOTSTRAP, percentiles, row_counts
from compresskit.evaluation.squad import exact_match, f1, normalize
from compresskit.stages.inputs import board
from compresskit.stages.published import DYNAMIC_TINYBERT, DYNAMIC_TINYBERT_COMPARABLE
from compresskit.stages.report import markdown_table, write

KIND = "lengths"
SYSTEM = "dynamic_tinybert"  # of a pipeline whose page this is
LOSS = 0.01  # of the teacher's F1, which a fast model may lose at most, as in the published table
SIZES = ("layers", "hidden", "params_m", "gflops", "lengths")


def is_for(pipeline: str) -> bool:
    """Whether the pipeline's name says that it is one of Dynamic-TinyBERT."""
    return SYSTEM.replace("_", "-") in pipeline


def study(pipeline: str, out: Path, command: str, note: str = "") -> None:
    """Write `out` (Markdown), and beside it <name>.json and <name>.png, from the newest finished run of a pipeline.

    Raises ValueError where there is none.
    """
    data = collect(pipeline, command, note)
    out.parent.mkdir(parents=True, exist_ok=True)
    figures.pareto_plot(rows(data)).savefig(out.with_suffix(".png"))
    write(out.with_suffix(".json"), json.dumps(data, separators=(",", ":")) + "\n")
    write(out, page(data, out.stem))


def collect(pipeline: str, command: str, note: str = "") -> dict[str, Any]:
    """Exact match and F1 of every dev question, raw timings, sizes, fronts, and what training took."""
    runs = tracking.pipeline_runs(pipeline)
    if not runs:
        raise ValueError(f"no finished run of the pipeline {pipeline!r}; run params/pipelines/{pipeline}.yaml first")
    run_id, params = next(iter(runs.items()))
    table = tracking.leaderboard_table(board("squad1", params["data_dir"]), run_id)
    table["model"] = table["system"] + "-" + table["variant"]
    evaluated_by = table["evaluated_by"].iloc[0]
    timed = tracking.read_json(evaluated_by, "latency.json")
    asked = tracking.run_params(evaluated_by)
    models = {row["model"]: row for row in json.loads(table.to_json(orient="records"))}
    scores: dict[str, dict[str, list[float]]] = {}
    for name in models:
        record = tracking.read_json(evaluated_by, f"predictions/{name}.json")
        scores[name] = each_question(record["predictions"], record["answers"])
    made_by = {row["model_run_id"] for row in models.values() if row["model_run_id"]}
    searches: dict[str, dict[str, Any]] = {}
    for name, row in models.items():
        if row.get("lengths") and row["model_run_id"] not in [found["run"] for found in searches.values()]:
            of_search = row["model_run_id"]
            found = tracking.run_params(of_search)
            searches[name] = {
                "run": of_search,
                "settings": {n: found[n] for n in ("search", "cost", "max_drop", "score_rows")},
                "result": tracking.read_json(of_search, "result.json"),
                "front": tracking.read_json(of_search, "tables/front.json"),
            }
    hidden = {"data_dir", "encoder", "text"}  # paths of this machine
    return {
        "kind": KIND,
        "run": pipeline,
        "command": command,
        "note": note,
        "commits": sorted(set(table["git_commit"])),
        "settings": {name: value for name, value in params.items() if name not in hidden},
        "data_digest": table["data_digest"].iloc[0],
        "conditions": {
            **timed[0]["machine"], **{n: timed[0][n] for n in ("threads", "batch_size", "seq_len")},
            "max_seq_len": asked["max_seq_len"],
        },
        "models": {name: {key: row[key] for key in SIZES if row.get(key)} for name, row in models.items()},
        "scores": scores,
        "samples_ms": {found["name"]: found["samples_ms"] for found in timed if found["name"] in models},
        "searches": searches,
        "seconds": {run: round(tracking.seconds(run)) for run in sorted(made_by)},
    }  # fmt: skip


def each_question(predictions: dict[str, str], answers: dict[str, list[str]]) -> dict[str, list[float]]:
    """F1 and exact match of every question, its best over the gold answers, to 4 decimals."""
    golds = {name: [text for text in texts if normalize(text)] or [""] for name, texts in answers.items()}
    return {
        metric.__name__: [round(max(metric(predictions[n], gold) for gold in texts), 4) for n, texts in golds.items()]
        for metric in (f1, exact_match)
    }


# ---- from the data to numbers


def teacher(data: dict[str, Any]) -> str:
    """The model that speed-ups and losses refer to."""
    return next(name for name in data["models"] if name.startswith("baseline-"))


def rows(data: dict[str, Any]) -> pd.DataFrame:
    """One row a model, the best F1 first: F1 with its interval, exact match, latency, speed-up, per cent of F1 lost."""
    base = teacher(data)
    base_f1, base_ms = 100 * _mean(data, base, "f1"), float(np.median(data["samples_ms"][base]))
    found = []
    for name, sizes in data["models"].items():
        values = np.array(data["scores"][name]["f1"])
        resampled = np.concatenate([counts @ values for counts in row_counts(len(values))]) / len(values)
        low, high = percentiles(100 * resampled, 100 * float(values.mean()))
        ms, score = float(np.median(data["samples_ms"][name])), 100 * float(values.mean())
        found.append(
            {
                "name": name, "system": name.partition("-")[0], "score_pct": score, "low_pct": low, "high_pct": high,
                "exact_pct": 100 * _mean(data, name, "exact_match"), "latency_p50_ms": ms, "speedup": base_ms / ms,
                "lost_pct": 100 * (1 - score / base_f1), "gflops": sizes["gflops"],
                "lengths": sizes.get("lengths") or "full",
            }
        )  # fmt: skip
    return pd.DataFrame(found).sort_values("score_pct", ascending=False, ignore_index=True)


def best(data: dict[str, Any]) -> pd.Series:
    """The fastest model that loses at most 1 % of the teacher's F1; the teacher itself where no other does."""
    table = rows(data)
    return table[table["lost_pct"] <= 100 * LOSS].sort_values("speedup").iloc[-1]


def lost_interval(data: dict[str, Any], name: str) -> tuple[float, float]:
    """95 % bootstrap of the per cent of the teacher's F1 that a model loses, both on the same resampled questions."""
    ours, theirs = (np.array(data["scores"][n]["f1"]) for n in (name, teacher(data)))
    drawn = [counts for counts in row_counts(len(ours))]
    lost: NDArray = 100 * (1 - np.concatenate([c @ ours for c in drawn]) / np.concatenate([c @ theirs for c in drawn]))
    return percentiles(lost, 100 * float(1 - ours.mean() / theirs.mean()))


def _mean(data: dict[str, Any], name: str, metric: str) -> float:
    return float(np.mean(data["scores"][name][metric]))


# ---- from the numbers to the page


def scores_table(data: dict[str, Any]) -> str:
    """What each model scores and how fast it is."""
    lines = [
        [row["name"], f"{row['score_pct']:.2f} ({row['low_pct']:.1f} – {row['high_pct']:.1f})",
         f"{row['exact_pct']:.2f}", row["lengths"], f"{row['gflops']:.2f}", f"{row['latency_p50_ms']:.2f}",
         f"{row['speedup']:.2f}x", f"{row['lost_pct']:+.1f}"]
        for row in rows(data).to_dict("records")
    ]  # fmt: skip
    header = ["model", "F1", "exact match", "tokens kept", "GFLOP", "median, ms", "speed-up", "% of F1 lost"]
    return markdown_table(header, lines)


def fronts_table(data: dict[str, Any]) -> str:
    """The points of each search's front, as it scored them on rows held back from train."""
    lines = []
    for name, search in data["searches"].items():
        front = pd.DataFrame(search["front"]["data"], columns=search["front"]["columns"])
        for point in front.to_dict("records"):
            lines.append(
                [name, str(point["length_config"]), f"{100 * point['score']:.1f}", f"{point['macs'] / 1e9:.2f}",
                 f"{point['latency_ms']:.2f}", f"{point['speedup']:.2f}x"]
            )  # fmt: skip
    header = ["searched for", "tokens kept", "F1 on held-back rows", "GMAC", "median, ms", "against full length"]
    return markdown_table(header, lines)


def searches_table(data: dict[str, Any]) -> str:
    """How each search was run."""
    lines = [
        [name, *search["settings"].values(), str(search["result"]["tried"]), str(search["result"]["front"]),
         f"{data['seconds'][search['run']] / 60:.0f}"]
        for name, search in data["searches"].items()
    ]  # fmt: skip
    return markdown_table(
        ["searched for", "search", "cost", "max_drop", "score_rows", "tried", "front", "minutes"], lines
    )


def published_table(data: dict[str, Any]) -> str:
    """The published table, and ours beside it."""
    lines = [[who, f"{score:g}", f"{speedup:g}x" if speedup else "–"] for who, score, speedup in DYNAMIC_TINYBERT]
    table = rows(data).set_index("name")
    chosen = best(data)
    for name, row in {teacher(data): table.loc[teacher(data)], chosen["name"]: chosen}.items():
        lines.append([f"ours: {name}", f"{row['score_pct']:.2f}", f"{row['speedup']:.2f}x"])
    return markdown_table(["model", "F1", "best speed-up within 1 % F1"], lines)


def verdict(data: dict[str, Any]) -> str:
    """The answer in two sentences."""
    chosen, base = best(data), teacher(data)
    if chosen["name"] == base:
        table = rows(data)
        nearest = table[table["name"] != base].iloc[0]
        return (
            f"No model is within 1 % of the teacher's F1; the nearest, `{nearest['name']}`, loses "
            f"{nearest['lost_pct']:.1f} % and is {nearest['speedup']:.2f} times as fast."
        )
    low, high = lost_interval(data, chosen["name"])
    return (
        f"Best speed-up within 1 % of the teacher's F1: **{chosen['speedup']:.2f}x**, by `{chosen['name']}`, which "
        f"loses {chosen['lost_pct']:.2f} % (95 % interval, both on the same questions: {low:.2f} to {high:.2f})."
    )


def page(data: dict[str, Any], stem: str) -> str:
    """The Markdown page."""
    machine, command = data["conditions"], "\n    ".join(data["command"].splitlines())
    settings = ", ".join(f"`{name}` {value}" for name, value in data["settings"].items())
    questions = len(next(iter(data["scores"].values()))["f1"])
    return f"""# Results: {data["run"]}

Generated by `compresskit study`; every number comes from [{stem}.json]({stem}.json), which holds F1 and exact match of
each dev question and the raw timings. Made with

    {command}

and evaluated at {", ".join(f"commit `{commit}`" for commit in data["commits"])}. Dev questions were read once, at the
end; checkpoints and lengths were chosen on rows held back from train.

{verdict(data)}

## Scores and speed

F1 and exact match on all {questions} dev questions, with the {BOOTSTRAP}. Median latency of a batch of
{machine["batch_size"]} with {machine["seq_len"]} tokens, {machine["threads"]} thread(s), on {machine["cpu"]} with torch
{machine["torch"]} and float32 matmul precision {machine["float32_matmul_precision"]}; all by turns in one process.
`within1` is the cheapest configuration of a front that loses at most 1 % of the F1 at full length, on held-back rows.

{scores_table(data)}

![F1 against measured latency]({stem}.png)

## The searches

{searches_table(data)}

{fronts_table(data)}

## Training

{settings}. The trainings and searches behind these models took {sum(data["seconds"].values()) / 60:.0f} minutes,
without those that only handed a model on. {data["note"]}

## Published figures

{published_table(data)}

{DYNAMIC_TINYBERT_COMPARABLE}
"""
