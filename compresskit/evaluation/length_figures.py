"""Pictures of a search for length configs: score against cost, what each layer keeps, and which words survive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from compresskit.evaluation.figures import COLORS, GREY, LABELLED, Chart, styled


@styled
def length_scatter(tried: pd.DataFrame, cost: str, full: Mapping[str, float]) -> Figure:
    """Score against cost of length configs, the front as a line, and the full length.

    tried: columns score (a share), front (boolean) and `cost`, which is "macs" or "latency_ms"; rows without the cost
    are left out.  full: these numbers at full length.
    """
    unit, label = {"macs": (1e9, "multiply-adds (billion)"), "latency_ms": (1.0, "median latency (ms)")}[cost]
    tried = tried.dropna(subset=cost)
    figure = Chart()
    ax = figure.subplots()
    edge = tried[tried["front"]].sort_values(cost)
    color = COLORS["dynamic_tinybert"]
    others = tried[~tried["front"]]
    ax.scatter(others[cost] / unit, others["score"] * 100, color=GREY, s=18, edgecolor="white", label="tried")
    ax.plot(edge[cost] / unit, edge["score"] * 100, color=color, linewidth=1.2, marker="v", markersize=7,
            markeredgecolor="white", label="front")  # fmt: skip
    ax.scatter([full[cost] / unit], [full["score"] * 100], color="0.2", s=60, marker="*", zorder=3, label="full length")
    ax.axhline(99 * full["score"], color="0.35", linestyle="--", linewidth=1, label="1 % below")
    ax.set(xlabel=label, ylabel="score (%)")
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return figure


@styled
def tokens_kept(front: pd.DataFrame) -> Figure:
    """Tokens that each layer keeps, a line for every config; the darker, the fewer multiply-adds.

    front: columns length_config (lists) and macs_share.
    """
    figure = Chart()
    ax = figure.subplots()
    colors = sns.color_palette("flare_r", as_cmap=True)
    for config, share in sorted(zip(front["length_config"], front["macs_share"], strict=True), key=lambda row: row[1]):
        layers = np.arange(1, len(config) + 1)
        ax.plot(layers, config, marker="o", markersize=4, color=colors(share), label=f"{share:.0%}")
    ax.set(
        xlabel="layer", ylabel="tokens kept", ylim=(0, None), xticks=range(1, len(front["length_config"].iloc[0]) + 1)
    )
    if len(front) <= LABELLED:
        figure.legend(loc="outside right upper", title="multiply-adds", frameon=False)
    return figure


@styled
def surviving_tokens(tokens: Sequence[str], passed: Sequence[int], layers: int) -> Figure:
    """A text in which every token is the darker, the more layers it passed.

    tokens: pieces in their order; passed: how many of `layers` layers each passed whole.
    """
    lines: list[list[int]] = [[]]
    width = 0
    for index, token in enumerate(tokens):
        if lines[-1] and width + len(token) + 2 > 72:
            lines.append([])
            width = 0
        lines[-1].append(index)
        width += len(token) + 2
    figure = Chart(height=0.9 + 0.27 * len(lines))
    ax = figure.subplots()
    ax.set_axis_off()
    shades = sns.light_palette(COLORS["dynamic_tinybert"], layers + 1)
    for row, line in enumerate(lines):
        column = 0
        for index in line:
            share = passed[index] / layers
            ax.text(column, -row, tokens[index], family="monospace", fontsize=9, va="center", parse_math=False,
                    color="white" if share > 0.6 else "0.15",
                    bbox={"facecolor": shades[passed[index]], "edgecolor": "none", "pad": 1.6})  # fmt: skip
            column += len(tokens[index]) + 2
    for number, shade in enumerate(shades):
        ax.scatter([], [], marker="s", s=60, color=[shade], label=f"{number}")
    ax.set(xlim=(-1, 74), ylim=(-len(lines) + 0.4, 0.6))
    figure.legend(loc="outside upper center", ncols=layers + 1, title="layers passed", frameon=False)
    return figure
