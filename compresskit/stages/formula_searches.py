"""The part of a page of results that tells how formulas were found: the stages of the search, the winner, its trees."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from compresskit import tracking
from compresskit.evaluation import formula_figures
from compresskit.stages.formula_pictures import KINDS, tree_of
from compresskit.stages.report import markdown_table

STAGES = ("first", "second", "third")  # variables of a pipeline that name runs of the stage formula_search
SETTINGS = (
    "max_trials", "initial_trials", "refit_every", "exploration", "min_parameters", "max_parameters",
    "max_distill_steps", "max_steps", "hidden_ratio", "workers", "seed",
)  # fmt: skip


def collect(variables: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """What each stage that `variables` name has tried, and how its classifiers did; {} where there are none."""
    collected = {}
    for name in (name for name in STAGES if variables.get(name)):
        run_id = tracking.run_of(variables[name])
        if run_id is None:
            raise ValueError(f"{name} is {variables[name]!r}; expected runs:/<id> of the stage formula_search")
        params, result = tracking.run_params(run_id), tracking.read_json(run_id, "result.json")
        collected[name] = {
            "settings": {key: params[key] for key in SETTINGS},
            "formulas": result["formulas"],
            "trials_per_minute": result["trials_per_minute"],
            "trials": tracking.read_json(run_id, "tables/candidates.json"),
            "classifiers": tracking.read_json(run_id, "tables/classifiers.json"),
            "seconds": round(tracking.seconds(run_id)),
        }
    return collected


def table_of(columns_and_rows: Mapping[str, Any]) -> pd.DataFrame:
    """A table as a run keeps it."""
    return pd.DataFrame(columns_and_rows["data"], columns=columns_and_rows["columns"])


def draw(searches: Mapping[str, Any], out: Path) -> None:
    """Pictures beside the page `out`: score against size of each stage, and the trees of the last one's winner."""
    for name, search in searches.items():
        figure = formula_figures.formula_scores(table_of(search["trials"]))
        figure.savefig(out.with_name(f"{out.stem}-{name}.png"))
    if searches:
        winner = list(searches.values())[-1]["formulas"]
        trees = {f"layer {layer}": tree_of(text) for layer, text in enumerate(winner, start=1)}
        formula_figures.formula_trees(trees, KINDS).savefig(out.with_name(f"{out.stem}-trees.png"))


def section(searches: Mapping[str, Any], stem: str) -> str:
    """Markdown: what each stage tried and found, and pictures; "" without searches."""
    if not searches:
        return ""
    winner = list(searches.values())[-1]["formulas"]
    pictures = "\n\n".join(f"![Score against size, {name} stage]({stem}-{name}.png)" for name in searches)
    return f"""## The search

Formulas and sizes (first stage), formulas of the sizes found (second), sizes of the formulas found (third). Scores are
on rows held back from train; parameters are those of the encoder. A duplicate computes what a trial before it computes
and is not tried; refused draws are those that the classifiers took for the worse half. Held-out accuracy is that of the
classifier that tells the better half of all trials from the worse, by cross-validation; none: no better than a guess.

{trials_table(searches)}

The winner, layer by layer:

{markdown_table(["layer", "formula"], [[str(n), f"`{text}`"] for n, text in enumerate(winner, start=1)])}

![Expression trees of the winner]({stem}-trees.png)

{pictures}

{markdown_table(["stage", *SETTINGS], [[name, *search["settings"].values()] for name, search in searches.items()])}

"""


def trials_table(searches: Mapping[str, Any]) -> str:
    """How much each stage drew and tried, and what the scores were at random and by classifiers."""
    lines = []
    for name, search in searches.items():
        trials = table_of(search["trials"])
        random, later = (trials[rows]["score"] for rows in (trials["round"] == 0, trials["round"] > 0))
        accuracy = table_of(search["classifiers"])["held-out accuracy"].iloc[0]
        lines.append(
            [
                name,
                str(len(trials)),
                str(int((trials["reason"] != "").sum())),
                str(trials["duplicates"].sum()),
                str(trials["rejected"].sum()),
                f"{search['trials_per_minute']:.2f}",
                f"{random.median():.4f}",
                f"{later.median():.4f}" if len(later) else "",
                f"{trials['score'].max():.4f}",
                f"{accuracy:.2f}" if pd.notna(accuracy) else "none",
                f"{search['seconds'] / 60:.0f}",
            ]
        )
    header = [
        "stage", "trials", "failed", "duplicates", "refused", "trials per minute", "random median", "later median",
        "best", "held-out accuracy", "minutes",
    ]  # fmt: skip
    return markdown_table(header, lines)
