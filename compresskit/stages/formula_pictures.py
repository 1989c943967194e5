"""What a search of formulas has found, as the numbers that evaluation.formula_figures draws."""

from __future__ import annotations

import numpy as np
import pandas as pd

from compresskit.evaluation import formula_figures
from compresskit.models.feed_forward import ACTIVATIONS, BINARY, LEAVES, LINEARS, SIZES, parse, parse_all

KINDS = (
    dict.fromkeys(LINEARS, "linear")
    | dict.fromkeys(ACTIVATIONS, "activation")
    | dict.fromkeys(BINARY, "binary")
    | dict.fromkeys(LEAVES, "leaf")
)


def tree_of(text: str) -> formula_figures.Tree:
    """The nodes of a formula in prefix order, and each one's parent."""
    formula = parse(text)
    parents = [-1] * len(formula.nodes)
    for node in range(len(formula.nodes)):
        for argument in formula.arguments(node):
            parents[argument] = node
    return formula.nodes, parents


def effects(table: pd.DataFrame, search_stage: int) -> pd.DataFrame:
    """Mean score of the candidates whose layer has an operator (stage 3: a size), above that of all others.

    Rows: operators or sizes; columns: layers from 1; NaN where fewer than two candidates have it, or lack it.
    """
    formulas = [parse_all(line) for line in table["formulas"]]
    names = list(SIZES) if search_stage == 3 else [*BINARY, *ACTIVATIONS]
    scores = table["score"].to_numpy(float)
    rows: dict[str, list[float]] = {}
    for name in names:
        rows[name] = []
        for layer in range(len(formulas[0])):
            has = np.array([name == f[layer].size_index or name in f[layer].nodes for f in formulas])
            enough = min(has.sum(), (~has).sum()) >= 2
            rows[name].append(scores[has].mean() - scores[~has].mean() if enough else np.nan)
    return pd.DataFrame(rows, index=range(1, len(formulas[0]) + 1)).T
