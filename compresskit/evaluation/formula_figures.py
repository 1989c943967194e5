"""Pictures of a search for formulas: the trees, what they score for their size, and what the search has learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from compresskit.evaluation.figures import COLORS, GREY, Chart, styled

Tree = tuple[Sequence[str], Sequence[int]]  # the nodes' names in prefix order, and each one's parent; -1 for the root
PER_ROW = 3
KINDS = {"linear": "tinybert", "activation": "efficientbert", "binary": "autotinybert", "leaf": "baseline"}


@styled
def formula_trees(trees: Mapping[str, Tree], kinds: Mapping[str, str]) -> Figure:
    """One expression tree in each panel, its root on top; linear maps, activations, binary operators and leaves in
    colours of their own.

    trees: by title.  kinds: linear, activation, binary or leaf, by node name.
    """
    rows = -(-len(trees) // PER_ROW)
    figure = Chart(width=3.1 * min(PER_ROW, len(trees)), height=2.9 * rows)
    panels = figure.subplots(rows, min(PER_ROW, len(trees)), squeeze=False).ravel()
    for ax in panels:
        ax.set_axis_off()
    for ax, (title, (names, parents)) in zip(panels, trees.items(), strict=False):
        ax.set_title(title, fontsize=10)
        _draw_tree(ax, names, parents, kinds)
    return figure


def _draw_tree(ax: Axes, names: Sequence[str], parents: Sequence[int], kinds: Mapping[str, str]) -> None:
    across, depth = places(parents)
    for node, parent in enumerate(parents):
        if parent >= 0:
            ax.plot(across[[node, parent]], -depth[[node, parent]], color="0.6", linewidth=1, zorder=1)
    for node, name in enumerate(names):
        color = COLORS[KINDS[kinds[name]]]
        pale = [0.82 + 0.18 * share for share in to_rgb(color)]
        box = {"boxstyle": "round,pad=0.25", "facecolor": pale, "edgecolor": color, "linewidth": 1}
        ax.text(across[node], -depth[node], name, ha="center", va="center", fontsize=8, bbox=box, zorder=2)
    ax.set_xlim(across.min() - 0.7, across.max() + 0.7)
    ax.set_ylim(-depth.max() - 0.5, 0.5)


def places(parents: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Where nodes in prefix order stand: leaves side by side, others above the middle of their arguments; depths."""
    across, depth = np.zeros(len(parents)), np.zeros(len(parents))
    below: list[list[int]] = [[] for _ in parents]
    for node, parent in enumerate(parents):
        if parent >= 0:
            below[parent].append(node)
            depth[node] = depth[parent] + 1
    leaves = [node for node in range(len(parents)) if not below[node]]
    across[leaves] = np.arange(len(leaves))
    for node in reversed(range(len(parents))):
        if below[node]:
            across[node] = across[below[node]].mean()
    return across, depth


@styled
def formula_scores(candidates: pd.DataFrame) -> Figure:
    """Score against parameters of all trials, random ones and those that classifiers let through; the chosen one.

    candidates: columns parameters, score, round (0: random), chosen (boolean).
    """
    figure = Chart()
    ax = figure.subplots()
    random, chosen = (candidates["round"] == 0).to_numpy(), candidates["chosen"].to_numpy(bool)
    for rows, color, marker, size, name in (
        (random & ~chosen, GREY, "o", 26, "random"),
        (~random & ~chosen, COLORS["efficientbert"], "o", 30, "by classifiers"),
        (chosen, COLORS["sparsebert"], "*", 190, "chosen"),
    ):
        if rows.any():
            place = (candidates["parameters"][rows] / 1e6, candidates["score"][rows])
            ax.scatter(*place, s=size, color=color, marker=marker, edgecolor="white", linewidth=0.6, label=name)
    ax.set(xlabel="parameters of the encoder (million)", ylabel="score")
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


@styled
def formula_effects(effects: pd.DataFrame, importance: Sequence[float]) -> Figure:
    """What scores went with. Above: accuracy that the classifier loses without a layer. Below: by layer and operator or
    size, the mean score of the candidates that have it, less that of the others.

    effects: rows operators or sizes, columns layers; NaN where too few have it.
    """
    figure = Chart(height=2.6 + 0.24 * len(effects))
    bars, heat = figure.subplots(2, 1, height_ratios=[1, max(1.5, 0.24 * len(effects))])
    layers = np.arange(len(effects.columns))
    bars.bar(layers, importance, color=COLORS["efficientbert"], width=0.6)
    bars.set(ylabel="accuracy lost", xlim=(-0.5, len(layers) - 0.5))
    bars.set_xticks(layers, [])
    bars.grid(axis="x", visible=False)
    limit = float(np.nanmax(np.abs(effects.to_numpy(float)))) if effects.notna().to_numpy().any() else 1.0
    sns.heatmap(
        effects.astype(float), ax=heat, cmap="vlag", center=0, vmin=-limit, vmax=limit, linewidths=1,
        cbar_kws={"label": "score difference", "location": "bottom", "shrink": 0.6, "pad": 0.02},
    )  # fmt: skip
    heat.set(xlabel="layer", ylabel="")
    heat.set_yticks(heat.get_yticks(), list(effects.index), rotation=0)
    return figure
