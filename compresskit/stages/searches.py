"""The part of a page of results that tells how its networks were found, and whether the search was worth it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from compresskit import tracking
from compresskit.evaluation import figures
from compresskit.stages.report import markdown_table

SEARCHES = ("slow", "fast")  # variables of a pipeline that name runs of the stage search; also in its models' names
SETTINGS = ("speedup", "speedup_over", "generations", "generation_size", "halvings", "score_on", "max_steps")
RIVALS = ("uniform", "median")
Gain = Callable[[str, str, str], str]  # task, model, and the model that it is compared with


def collect(variables: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """What each of the searches that `variables` name has tried and measured; {} where there are none."""
    found = {}
    for name in (name for name in SEARCHES if name in variables):
        run_id = tracking.run_of(variables[name])
        if run_id is None:
            raise ValueError(f"{name} is {variables[name]!r}; expected runs:/<id> of the stage search")
        params = tracking.run_params(run_id)
        result = tracking.read_json(run_id, "result.json")
        found[name] = {
            "settings": {key: params[key] for key in SETTINGS},
            "limits_ms": result["limits_ms"],
            "candidates": tracking.read_json(run_id, "tables/candidates.json"),
            "finalists": tracking.read_json(run_id, "tables/finalists.json"),
            "seconds": round(tracking.seconds(run_id)),
        }
    return found


def tables(search: Mapping[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The candidates and the finalists of a search."""
    candidates, finalists = (
        pd.DataFrame(t["data"], columns=t["columns"]) for t in (search["candidates"], search["finalists"])
    )
    return candidates, finalists


def draw(searches: Mapping[str, Any], out: Path) -> None:
    """Two pictures of each search beside the page `out`."""
    for name, search in searches.items():
        candidates, finalists = tables(search)
        figures.search_generations(candidates).savefig(out.with_name(f"{out.stem}-{name}-generations.png"))
        figures.finalists_plot(finalists, *search["limits_ms"]).savefig(
            out.with_name(f"{out.stem}-{name}-finalists.png")
        )


def section(searches: Mapping[str, Any], tasks: Iterable[str], gain: Gain, stem: str) -> str:
    """Markdown: what was found, pictures, and the winners against their rivals on dev rows."""
    if not searches:
        return ""
    pictures = "\n\n".join(
        f"![Scores of each generation]({stem}-{name}-generations.png)\n\n"
        f"![Predicted and measured latency of the finalists]({stem}-{name}-finalists.png)"
        for name in searches
    )
    return f"""## The searches

Architectures are written as layers-hidden-feed-forward-heads-qkv; `uniform` has BERT's proportions and the measured
latency that is nearest to the winner's, `median` is in the middle of the first, random generation by score. Scores are
means over the tasks on rows held back from train; latencies were taken by turns.

{networks_table(searches)}

{worth_table(searches, tasks, gain)}

{pictures}

{settings_table(searches)}

"""


def networks_table(searches: Mapping[str, Any]) -> str:
    """Winner, median and uniform network of each search."""
    lines = []
    for name, search in searches.items():
        candidates, finalists = tables(search)
        low, high = search["limits_ms"]
        whole = candidates[candidates["share"] == 1]
        best, first = whole["score"].max(), whole[whole["generation"] == 1]["score"].median()
        for _, row in finalists.iterrows():
            if row["chosen"] or row["name"] in RIVALS:
                who = row["name"] if row["name"] in RIVALS else "winner"
                lines.append(
                    [name, who, row["architecture"], f"{row['predicted_ms']:.2f}", f"{row['measured_ms']:.2f}",
                     f"{low:.2f} – {high:.2f}", f"{best:.4f} ({first:.4f})" if who == "winner" else ""]
                )  # fmt: skip
    header = [
        "search",
        "network",
        "architecture",
        "predicted, ms",
        "measured, ms",
        "allowed, ms",
        "best score (first median)",
    ]
    return markdown_table(header, lines)


def worth_table(searches: Mapping[str, Any], tasks: Iterable[str], gain: Gain) -> str:
    """Points of each winner over its rivals, after equal training."""
    lines = [
        [name, rival, *(gain(task, f"autotinybert-{name}", f"baseline-{name}-{rival}") for task in tasks)]
        for name in searches
        for rival in RIVALS
    ]
    return markdown_table(["search", "winner's points over", *tasks], lines)


def settings_table(searches: Mapping[str, Any]) -> str:
    """How each search was run, and how long it took."""
    lines = [
        [name, *search["settings"].values(), str(len(search["candidates"]["data"])), f"{search['seconds'] / 60:.0f}"]
        for name, search in searches.items()
    ]
    return markdown_table(["search", *SETTINGS, "candidates", "minutes"], lines)
