"""A page on several tasks and seeds: what each variant of a pipeline scores, and what it gains on one of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from compresskit import tracking
from compresskit.data.glue import TASKS
from compresskit.evaluation import figures, glue
from compresskit.evaluation.scores import RESAMPLES, percentiles
from compresskit.stages import formula_searches, searches
from compresskit.stages.evaluate import SPARSE
from compresskit.stages.inputs import board
from compresskit.stages.published import PUBLISHED, Comparison
from compresskit.stages.report import markdown_table, write

NEEDED = ("task", "seed", "data_dir", "student", "max_seq_len")  # variables of a pipeline that can be studied
SETTINGS = (  # those that a page shows, of the ones a pipeline has
    "max_seq_len", "batch_size", "epochs", "max_steps", "epochs_at_once", "max_steps_at_once", "learning_rate",
    "copies", "threads",
)  # fmt: skip
SIZES = ("layers", "hidden", "params_m", "disk_mb", "gflops", "sparsity_pct", "sparse_disk_mb")


def study(
    pipeline: str, against: Sequence[str], out: Path, command: str, note: str = "", also: Sequence[str] = ()
) -> None:
    """Write `out` (Markdown), and beside it <name>.json and <name>.png, from the finished runs of a pipeline.

    against: the models that gains refer to. command: how the runs were made, for the reader to repeat. note: what else
    the reader has to know of them. also: pipelines that make some of the same models, for more seeds or tasks. Raises
    ValueError where there are no runs, or none of such a model.
    """
    data = collect(pipeline, against, command, note, also)
    out.parent.mkdir(parents=True, exist_ok=True)
    figures.scores_plot(score_rows(data)).savefig(out.with_suffix(".png"))
    searches.draw(data["searches"], out)
    formula_searches.draw(data["formulas"], out)
    write(out.with_suffix(".json"), json.dumps(data, separators=(",", ":")) + "\n")
    write(out, page(data, out.stem))


def collect(
    pipeline: str, against: Sequence[str], command: str, note: str = "", also: Sequence[str] = ()
) -> dict[str, Any]:
    """The newest run of each task and seed: answers per dev row, sizes, latencies, and what training took."""
    tasks: dict[str, dict[str, Any]] = {}
    conditions: dict[str, Any] = {}
    commits: set[str] = set()
    found_by: dict[str, Any] = {}
    formulas: dict[str, Any] = {}
    for run_id, params in (run for name in (pipeline, *also) for run in tracking.pipeline_runs(name).items()):
        if missing := [name for name in NEEDED if name not in params]:
            raise ValueError(
                f"a study needs the variables {', '.join(NEEDED)}; run {run_id} has no {', '.join(missing)}"
            )
        task, seed = params["task"], params["seed"]
        settings = {name: params[name] for name in SETTINGS if name in params}
        if seed in tasks.get(task, {}).get("seconds", {}):
            continue
        rows = tracking.leaderboard_table(board(task, params["data_dir"]), run_id)
        rows["model"] = rows["system"] + "-" + rows["variant"]
        evaluated_by = rows["evaluated_by"].iloc[0]
        timed = tracking.read_json(evaluated_by, "latency.json")
        conditions = conditions or {**timed[0]["machine"], **{n: timed[0][n] for n in ("threads", "batch_size")}}
        commits |= set(rows["git_commit"])
        found_by = found_by or searches.collect(params)
        formulas = formulas or formula_searches.collect(params)
        if task not in tasks:
            tasks[task] = {
                "settings": settings,
                "data_digest": rows["data_digest"].iloc[0],
                "models": {row["model"]: {n: row[n] for n in SIZES if n in row} for row in _plain(rows)},
                "samples_ms": {found["name"]: found["samples_ms"] for found in timed},
                "logits": {name: {} for name in rows["model"]},
                "seconds": {},
            }
        found = tasks[task]
        if settings != found["settings"]:
            raise ValueError(f"{task}: run {run_id} has the settings {settings}, a later one {found['settings']}")
        if unknown := set(rows["model"]) - set(found["models"]):
            raise ValueError(
                f"{task}: run {run_id} has models that a run before it lacks: {', '.join(sorted(unknown))}"
            )
        for name in rows["model"]:
            record = tracking.read_json(evaluated_by, f"predictions/{name}.json")
            if found.setdefault("labels", record["labels"]) != record["labels"]:
                raise ValueError(f"{task}: run {run_id} was scored on other dev rows than a later one; run it again")
            found["logits"][name][seed] = record["logits"]
        trained = {*rows["model_run_id"], tracking.run_of(params["student"])} - {None}
        found["seconds"][seed] = {run: round(tracking.seconds(run)) for run in sorted(trained)}
    if not tasks:
        raise ValueError(f"no finished run of the pipeline {pipeline!r}; run params/pipelines/{pipeline}.yaml first")
    known = list(dict.fromkeys(name for found in tasks.values() for name in found["logits"]))
    for name in against:
        if name not in known:
            raise ValueError(f"no run of {pipeline} has a model {name!r}; there are {', '.join(known)}")
    return {
        "pipeline": pipeline,
        "against": list(against),
        "command": command,
        "note": note,
        "commits": sorted(commits),
        "conditions": conditions,
        "searches": found_by,
        "formulas": formulas,
        "tasks": {task: tasks[task] for task in TASKS if task in tasks},
    }


def _plain(rows: pd.DataFrame) -> list[dict[str, Any]]:
    return json.loads(rows.to_json(orient="records"))


# ---- from the data to numbers


def variants(data: dict[str, Any]) -> list[str]:
    """The models' names: those of the task that has most, in the order of their scores, lowest first."""
    task, found = max(data["tasks"].items(), key=lambda item: len(item[1]["logits"]))
    return sorted(found["logits"], key=lambda name: float(np.mean(scores(task, found, name))))


def scores(task: str, found: dict[str, Any], name: str) -> list[float]:
    """A model's score for each seed, in points of 100."""
    return [100 * glue.score(task, logits, found["labels"]).value for logits in found["logits"][name].values()]


def interval(task: str, found: dict[str, Any], name: str, against: str | None = None) -> tuple[float, float]:
    """95 % bootstrap over dev rows of the mean over seeds, or of its difference to the model `against`, in points."""
    values, value = _resampled(task, found, name), float(np.mean(scores(task, found, name)))
    if against:
        values = values - _resampled(task, found, against)
        value -= float(np.mean(scores(task, found, against)))
    return percentiles(values, value)


def _resampled(task: str, found: dict[str, Any], name: str) -> NDArray:
    return 100 * np.mean(
        [glue.resampled(task, logits, found["labels"]) for logits in found["logits"][name].values()], axis=0
    )


def metric(task: str) -> str:
    """The task's main metric in words."""
    described = TASKS[task]
    name = described.main_metric
    return (name if name in described.metrics else f"mean of {' and '.join(described.metrics)}").replace("_", " ")


def score_rows(data: dict[str, Any]) -> pd.DataFrame:
    """One row for each task and model: task, metric, name, score_pct (mean over seeds), low_pct, high_pct, seeds."""
    rows = []
    for task, found in data["tasks"].items():
        for name in (name for name in variants(data) if name in found["logits"]):
            low, high = interval(task, found, name)
            each = scores(task, found, name)
            rows.append(
                {"task": task, "metric": metric(task), "name": name,
                 "score_pct": float(np.mean(each)), "low_pct": low, "high_pct": high, "seeds": each}
            )  # fmt: skip
    return pd.DataFrame(rows)


# ---- from the numbers to the page


def scores_table(data: dict[str, Any]) -> str:
    """Scores with their intervals; with several seeds also the spread between them."""
    rows = {(row["name"], row["task"]): row for row in score_rows(data).to_dict("records")}

    def cell(name: str, task: str) -> str:
        if not (row := rows.get((name, task))):
            return ""
        text = f"{row['score_pct']:.1f} ({row['low_pct']:.1f} – {row['high_pct']:.1f})"
        different = len({round(value, 6) for value in row["seeds"]}) > 1
        return text + (f", seeds {min(row['seeds']):.1f} – {max(row['seeds']):.1f}" if different else "")

    tasks = data["tasks"]
    header = ["model", *(f"{TASKS[task].folder}, {metric(task)}" for task in tasks)]
    return markdown_table(header, [[name, *(cell(name, task) for task in tasks)] for name in variants(data)])


def gains_table(data: dict[str, Any], against: str) -> str:
    """Differences to the model `against` on the same rows, with their paired intervals."""
    tasks = data["tasks"]

    def cell(name: str, task: str) -> str:
        found = tasks[task]
        if not {name, against} <= set(found["logits"]):
            return ""
        low, high = interval(task, found, name, against)
        gain = np.mean(scores(task, found, name)) - np.mean(scores(task, found, against))
        sure = "**" if low > 0 or high < 0 else ""
        return f"{sure}{gain:+.1f}{sure} ({low:+.1f} – {high:+.1f})"

    lines = [[name, *(cell(name, task) for task in tasks)] for name in variants(data) if name != against]
    return markdown_table([f"points over {against}", *tasks], lines)


def gain(data: dict[str, Any], task: str, name: str, against: str) -> str:
    """One model's points over another, with their paired interval; bold where that excludes 0."""
    found = data["tasks"][task]
    low, high = interval(task, found, name, against)
    points = np.mean(scores(task, found, name)) - np.mean(scores(task, found, against))
    sure = "**" if low > 0 or high < 0 else ""
    return f"{sure}{points:+.1f}{sure} ({low:+.1f} – {high:+.1f})"


def sizes_table(data: dict[str, Any]) -> str:
    """Sizes and, for each task's length, median latency and speed-up over the slowest model."""
    tasks, names = data["tasks"], variants(data)
    models = {name: next(t["models"][name] for t in tasks.values() if name in t["models"]) for name in names}
    pruned = any(model.get("sparsity_pct") for model in models.values())  # older data do not say

    @cache
    def median(task: str, name: str) -> float:
        return float(np.median(tasks[task]["samples_ms"][name]))

    def cell(task: str, name: str) -> str:
        if name not in tasks[task]["samples_ms"]:
            return ""
        slowest = max(median(task, other) for other in tasks[task]["samples_ms"])
        return f"{median(task, name):.1f} ({slowest / median(task, name):.2f}x)"

    header, lines = ["model", "layers", "width", "parameters, M"], []
    header += ["zeros, %", "MB", "MB sparse"] if pruned else []
    for task, found in tasks.items():
        header += [f"{task}, {found['settings']['max_seq_len']} tokens, ms", *(["sparse, ms"] if pruned else [])]
    for name, model in models.items():
        line = [name, model["layers"], model["hidden"], f"{model['params_m']:.1f}"]
        if pruned:
            smaller = model.get("sparse_disk_mb")
            line += [f"{model['sparsity_pct']:.1f}", f"{model['disk_mb']:.1f}", f"{smaller:.1f}" if smaller else ""]
        for task in tasks:
            line += [cell(task, name), *([cell(task, name + SPARSE)] if pruned else [])]
        lines.append(line)
    return markdown_table(header, lines)


def training_table(data: dict[str, Any]) -> str:
    """What was trained how long."""
    lines = []
    for task, found in data["tasks"].items():
        seconds = {run: took for of_seed in found["seconds"].values() for run, took in of_seed.items()}
        settings = list(found["settings"].values())
        seeds, minutes = ", ".join(sorted(found["seconds"])), f"{sum(seconds.values()) / 60:.0f}"
        lines.append([task, seeds, str(len(found["labels"])), *settings, minutes])
    names = next(iter(data["tasks"].values()))["settings"]
    return markdown_table(["task", "seeds", "dev rows", *names, "minutes of training"], lines)


def total_minutes(data: dict[str, Any]) -> float:
    """Minutes of all training runs, each once: a general student serves several tasks."""
    found = [runs for task in data["tasks"].values() for runs in task["seconds"].values()]
    return sum({run: seconds for runs in found for run, seconds in runs.items()}.values()) / 60


def published_table(data: dict[str, Any], comparison: Comparison) -> str:
    """What others have published for these tasks, and our models beside it in the same measure."""
    tasks = data["tasks"]
    named = [f"{task}, {comparison.metrics[task]}" if task in comparison.metrics else task for task in tasks]
    lines = [
        [line.who, line.measured_on, *(f"{line.points[t]:g}" if t in line.points else "" for t in tasks),
         "" if line.verified else "unverified"]
        for line in comparison.published
    ]  # fmt: skip

    def mean(task: str, name: str) -> float:
        found, measure = tasks[task], comparison.metrics.get(task)
        each = [glue.score(task, logits, found["labels"]) for logits in found["logits"][name].values()]
        return 100 * float(np.mean([score.metrics[f"eval/{measure}"] if measure else score.value for score in each]))

    lines += [[f"ours: {name}", "dev", *(f"{mean(task, name):.2f}" for task in tasks), ""] for name in comparison.ours]
    return markdown_table(["published", "measured on", *named, ""], lines)


def page(data: dict[str, Any], stem: str) -> str:
    """The Markdown page."""
    machine = data["conditions"]
    command = "\n    ".join(data["command"].splitlines())
    gains = "\n\n".join(gains_table(data, against) for against in data["against"])
    return f"""# Results: {data["pipeline"]}

Generated by `compresskit study`; every number comes from [{stem}.json]({stem}.json), which holds the answers for each
dev row and the raw timings. Made with

    {command}

and evaluated at {", ".join(f"commit `{commit}`" for commit in data["commits"])}. Dev rows were read once, at the end;
checkpoints were chosen on rows held back from train.

## Scores

Points of 100; in brackets the 95 % bootstrap interval over dev rows ({RESAMPLES} resamples) of the mean over seeds.

{scores_table(data)}

![Scores with their intervals]({stem}.png)

## What each part is worth

Both models on the same resampled rows, so these intervals are those of the difference; bold: it excludes 0.

{gains}

{told_of_searches(data, stem)}## Size and speed

Median latency, and how many times faster than the slowest model of that column; batch {machine["batch_size"]},
{machine["threads"]} thread(s), on {machine["cpu"]} with torch {machine["torch"]} and float32 matmul precision
{machine["float32_matmul_precision"]}; all models by turns in one process.

{sizes_table(data)}

## Training

{training_table(data)}

{stops(data)} All training runs together took
{total_minutes(data):.0f} minutes, those of the teachers and of the students' start included. {data["note"]}

{published(data)}"""


def told_of_searches(data: dict[str, Any], stem: str) -> str:
    """The sections on how networks were found; "" where nothing was searched, or the data are older."""
    of_shapes = searches.section(data.get("searches", {}), data["tasks"], partial(gain, data), stem)
    return of_shapes + formula_searches.section(data.get("formulas", {}), stem)


def stops(data: dict[str, Any]) -> str:
    """When a training ends."""
    if "epochs_at_once" not in next(iter(data["tasks"].values()))["settings"]:
        return "Each step of a training stops after `epochs` or `max_steps`, whichever comes first (0: no limit)."
    return (
        "Each of two steps stops after `epochs` or `max_steps`, whichever comes first (0: no limit); a variant that "
        "learns in one\ngo stops after `epochs_at_once` or `max_steps_at_once`."
    )


def published(data: dict[str, Any]) -> str:
    """The section on other people's figures, where there are any for the pipeline."""
    if data["pipeline"] not in PUBLISHED:
        return ""
    comparison = PUBLISHED[data["pipeline"]]
    return f"""## Published figures

{published_table(data, comparison)}

{comparison.text}
"""
