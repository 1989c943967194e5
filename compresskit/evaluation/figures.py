"""The pictures of all stages, in one style: each function takes data and returns a figure of notebook width."""

import io
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from math import ceil
from typing import ParamSpec

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from compresskit.evaluation.labels import place_labels
from compresskit.evaluation.pareto import front
from compresskit.evaluation.sparsity import SparsityReport
from compresskit.pruning.masks import KINDS

# seaborn's "colorblind" palette; a marker beside each colour, so that a grey print tells them apart too
COLORS = {
    "tinybert": "#0173b2",
    "autotinybert": "#de8f05",
    "efficientbert": "#029e73",
    "sparsebert": "#d55e00",
    "dynamic_tinybert": "#cc78bc",
    "combined": "#56b4e9",
    "baseline": "#6e6e6e",
}
MARKERS = dict(zip(COLORS, [("o", 8), ("s", 7), ("D", 7), ("^", 8), ("v", 8), ("P", 9), ("*", 13)], strict=True))
GREY = "#949494"
AXIS_LABELS = {
    "latency_p50_ms": "median latency (ms)",
    "latency_p95_ms": "95th percentile of latency (ms)",
    "params_m": "parameters (million)",
    "disk_mb": "size on disk (MB)",
    "gflops": "operations per example (GFLOP)",
    "sparsity_pct": "zeros among the prunable weights (%)",
}
LABELLED = 16  # points that still have room for their names
P = ParamSpec("P")


class Chart(Figure):
    """A figure that pyplot does not know (nothing to close) and that a notebook shows as the value of a cell."""

    def __init__(self, width: float = 7.0, height: float = 4.3):
        super().__init__(figsize=(width, height), dpi=110, layout="constrained")
        FigureCanvasAgg(self)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw with the house style, and leave matplotlib's settings as they were."""

    @wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        style = sns.axes_style("whitegrid", {"axes.edgecolor": "0.4", "grid.color": "0.9"})
        with mpl.rc_context({**style, **sns.plotting_context("notebook", font_scale=0.85)}):
            return draw(*args, **kwargs)

    return styled


@styled
def learning_curve(history: pd.DataFrame, keys: Sequence[str] | None = None) -> Figure:
    """One panel per metric over the optimizer steps; train/loss and eval/loss share one.

    history: columns step, key, value.  keys: which of them, in which order; None: all. Curves of more than 200 points
    are drawn faint, with their running mean over 2 % of the points on top.
    """
    history = history.dropna(subset=["value"])
    found = list(dict.fromkeys(history["key"]))
    missing = set(keys or ()) - set(found)
    if missing or not found:
        raise ValueError(f"the history has no values of {min(missing) if missing else 'any key'}; it has {found}")
    panels: dict[str, list[str]] = {}
    for key in keys or found:
        panels.setdefault(key.rpartition("/")[2], []).append(key)
    origins = list(dict.fromkeys(key.rpartition("/")[0] for key in keys or found))
    colors = dict(zip(origins, sns.color_palette("colorblind", len(origins)), strict=True))

    columns = min(len(panels), 2)
    figure = Chart(height=max(4.3, 2.5 * ceil(len(panels) / columns)))
    grid = figure.subplots(ceil(len(panels) / columns), columns, squeeze=False).ravel()
    for ax, (metric, members) in zip(grid, panels.items(), strict=False):
        for key in members:
            origin = key.rpartition("/")[0]
            _curve(ax, history[history["key"] == key].sort_values("step"), colors[origin], origin)
        ax.set(xlabel="optimizer step", ylabel=metric.replace("_", " "))
        if any(key.rpartition("/")[0] for key in members):
            ax.legend(frameon=False)
    for ax in grid[len(panels) :]:
        ax.remove()
    return figure


def _curve(ax: Axes, rows: pd.DataFrame, color: tuple, label: str) -> None:
    if len(rows) > 200:
        ax.plot(rows["step"], rows["value"], color=color, alpha=0.25, linewidth=0.8)
        mean = rows["value"].rolling(len(rows) // 50, center=True, min_periods=1).mean()
        ax.plot(rows["step"], mean, color=color, label=f"{label} (running mean)")
    else:
        ax.plot(
            rows["step"], rows["value"], color=color, label=label, marker="o" if len(rows) <= 30 else "", markersize=4
        )


@styled
def pareto_plot(rows: pd.DataFrame, cost: str = "latency_p50_ms") -> Figure:
    """Score against cost, with the front as a line: the best score to be had at that cost.

    rows: columns name, system, score_pct, the cost, and, where there is an interval, low_pct and high_pct. Every point
    is named, above 16 points only those of the front. A cost that spans more than a factor of 8 gets a log axis.
    """
    unknown = sorted(set(rows["system"]) - set(COLORS))
    if unknown:
        raise ValueError(f"unknown system {unknown[0]!r}; known systems: {', '.join(COLORS)}")
    x, y = rows[cost].to_numpy(float), rows["score_pct"].to_numpy(float)
    on_front = front(np.column_stack([x, y]))
    figure = Chart()
    ax = figure.subplots()
    edge = rows.loc[on_front].sort_values([cost, "score_pct"])
    ax.step(edge[cost], edge["score_pct"], where="post", color="0.35", linewidth=1.2, zorder=1, label="front")
    bounds = ("low_pct", "high_pct")
    low, high = (rows.get(name, rows["score_pct"]).fillna(rows["score_pct"]).to_numpy(float) for name in bounds)
    for system in [name for name in COLORS if name in set(rows["system"])]:
        of_system = (rows["system"] == system).to_numpy()
        at, color, bars = (x[of_system], y[of_system]), COLORS[system], [(y - low)[of_system], (high - y)[of_system]]
        ax.errorbar(*at, yerr=np.maximum(bars, 0), fmt="none", ecolor=color, elinewidth=1, capsize=2, alpha=0.6)
        marker, size = MARKERS[system]
        ax.plot(*at, marker, color=color, markersize=size, markeredgecolor="white", label=system, zorder=3)
    if x.min() > 0 and x.max() / x.min() > 8:
        _log_axis(ax)
    ax.set(xlabel=AXIS_LABELS.get(cost, cost.replace("_", " ")), ylabel="score (%)")
    ax.margins(x=0.12, y=0.1)
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    named = np.ones(len(rows), dtype=bool) if len(rows) <= LABELLED else on_front
    order = np.flatnonzero(named)[np.argsort(~on_front[named], kind="stable")]
    figure.draw_without_rendering()
    colors = [[0.65 * share for share in to_rgb(COLORS[system])] for system in rows["system"].iloc[order]]  # readable
    texts = list(rows["name"].iloc[order])
    place_labels(ax, np.column_stack([x, y])[order], texts, colors, *_obstacles(ax, x, y, low, high))
    return figure


@styled
def scores_plot(rows: pd.DataFrame) -> Figure:
    """Scores of several models on several tasks: a panel for each task, a line for each model, empty where it has none.

    rows: columns task, metric, name, score_pct, low_pct, high_pct, and seeds, a list of each seed's score.
    """
    tasks, names = list(dict.fromkeys(rows["task"])), list(dict.fromkeys(rows["name"]))
    figure = Chart(width=2.2 + 2.4 * len(tasks), height=1.2 + 0.38 * len(names))
    panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for ax, task in zip(panels, tasks, strict=True):
        of_task = rows[rows["task"] == task]
        for _, row in of_task.sort_values("name", key=lambda column: column.map(names.index)).iterrows():
            height, color = names.index(row["name"]), COLORS.get(str(row["name"]).partition("-")[0], GREY)
            ax.plot([row["low_pct"], row["high_pct"]], [height, height], color=color, linewidth=2, alpha=0.5)
            if len(row["seeds"]) > 1:
                ax.plot(row["seeds"], [height] * len(row["seeds"]), "|", color=color, markersize=11)
            ax.plot(row["score_pct"], height, "o", color=color, markersize=7, markeredgecolor="white")
        ax.set(title=task, xlabel=f"{of_task['metric'].iloc[0]} (%)")
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(-0.6, len(names) - 0.4)
    return figure


def _obstacles(ax: Axes, x: NDArray, y: NDArray, low: NDArray, high: NDArray) -> tuple[NDArray, NDArray]:
    """Boxes, (M, 4) in pixels, of the markers and the error bars, and how much each matters, (M,)."""
    centre, bottom, top = (ax.transData.transform(np.column_stack([x, height])) for height in (y, low, high))
    half_marker, half_cap = np.array([9, 9]), np.array([2, 0])
    boxes = [[centre - half_marker, centre + half_marker], [bottom - half_cap, top + half_cap]]
    return np.vstack([np.hstack(corners) for corners in boxes]), np.repeat([3.0, 0.3], len(x))


def _log_axis(ax: Axes) -> None:
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


@styled
def sparsity_heatmap(report: SparsityReport) -> Figure:
    """Percentage of zeros in every prunable matrix, layers from left to right."""
    pruned = report.matrices[report.matrices["kind"].isin(KINDS)]
    if pruned.empty:
        raise ValueError("the report has no prunable matrix to show")
    shares = pruned.pivot(index="kind", columns="layer", values="sparsity").reindex(KINDS) * 100
    figure = Chart(height=3.4)
    ax = figure.subplots()
    sns.heatmap(
        shares.astype(float),
        ax=ax,
        vmin=0,
        vmax=100,
        cmap="crest",
        annot=True,
        fmt=".1f" if shares.shape[1] <= 8 else ".0f",
        linewidths=1,
        cbar_kws={"label": "zeros (%)"},
    )
    ax.set(xlabel="layer", ylabel="")
    ax.set_yticks(ax.get_yticks(), [kind.replace("_", " ") for kind in KINDS], rotation=0)
    ax.set_title(f"{report.sparsity:.1%} of the prunable weights, {report.model_sparsity:.1%} of the model are zero")
    return figure


@styled
def latency_bars(table: pd.DataFrame) -> Figure:
    """Median time of every contestant as a bar, with a whisker to its 95th percentile; fastest on top.

    table: columns name, latency_p50_ms, latency_p95_ms, and where they exist system (colour) and batch_size, seq_len,
    threads (title). Times that span more than a factor of 20 are points on a log axis, as bars need a zero.
    """
    table = table.sort_values("latency_p50_ms", ascending=False)
    median, p95 = table["latency_p50_ms"].to_numpy(float), table["latency_p95_ms"].to_numpy(float)
    colors = [COLORS[system] for system in table.get("system", pd.Series("baseline", index=table.index))]
    log, position = median.max() / median.min() > 20, np.arange(len(table))
    figure = Chart(height=max(2.2, 1.3 + 0.42 * len(table)))
    ax = figure.subplots()
    if log:
        _log_axis(ax)
        ax.scatter(median, position, color=colors, s=50, zorder=3)
    else:
        ax.barh(position, median, color=colors, height=0.6)
    ax.errorbar(median, position, xerr=[np.zeros(len(p95)), p95 - median], fmt="none", ecolor="0.2", capsize=3)
    for row, (middle, end) in enumerate(zip(median, p95, strict=True)):
        ax.annotate(f"{middle:.3g} ms", (end, row), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9)
    ax.margins(x=0.2)
    ax.set_ylim(-0.6, len(table) - 0.4)
    if not log:
        ax.set_xlim(left=0)
    ax.set_yticks(position, table["name"])
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("time per call (ms): median, whisker to the 95th percentile")
    ax.set_title(_conditions(table), loc="left")
    return figure


def _conditions(table: pd.DataFrame) -> str:
    stated = [("batch_size", "batch {}"), ("seq_len", "{} tokens"), ("threads", "threads: {}")]
    return ", ".join(text.format(table[n].iloc[0]) for n, text in stated if n in table and table[n].nunique() == 1)


@styled
def speedup_curves(curves: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    """How many times faster than dense, over the share of zeros; a line at 1.

    curves: by name, points (per cent of zeros, ratio) in rising order.
    """
    figure = Chart()
    ax = figure.subplots()
    for (name, points), color, (marker, size) in zip(curves.items(), COLORS.values(), MARKERS.values(), strict=False):
        zeros, ratios = zip(*points, strict=True)
        ax.plot(zeros, ratios, marker=marker, markersize=size, color=color, label=name, markeredgecolor="white")
    ax.axhline(1, color="0.3", linewidth=1, linestyle="--")
    ax.annotate("as fast as dense", (ax.get_xlim()[0], 1), xytext=(4, 4), textcoords="offset points", fontsize=9)
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set(xlabel="zeros (%)", ylabel="times as fast as the fastest dense product")
    ax.legend(frameon=False)
    return figure


@styled
def search_scatter(candidates: pd.DataFrame, max_latency_ms: float | None = None) -> Figure:
    """All candidates of a search by latency and score, the chosen ones marked, and the front: what no other one beats.

    candidates: columns latency_ms, score, chosen (boolean).  max_latency_ms: the limit that they had to keep.
    """
    chosen = candidates["chosen"].to_numpy(bool)
    figure = Chart()
    ax = figure.subplots()
    edge = candidates[front(candidates[["latency_ms", "score"]])].sort_values(["latency_ms", "score"])
    ax.step(edge["latency_ms"], edge["score"], where="post", color="0.35", linewidth=1.2, zorder=1, label="front")
    for rows, color, size, name in ((~chosen, GREY, 18, "candidates"), (chosen, COLORS["sparsebert"], 60, "chosen")):
        picked = candidates[rows]
        ax.scatter(
            picked["latency_ms"], picked["score"], color=color, s=size, edgecolor="white", label=f"{len(picked)} {name}"
        )
    if max_latency_ms is not None:
        ax.axvline(max_latency_ms, color="0.35", linestyle="--", linewidth=1, label=f"limit {max_latency_ms:.3g} ms")
    ax.set(xlabel="latency (ms)", ylabel="score")
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return figure


@styled
def search_cloud(space: pd.DataFrame, candidates: pd.DataFrame, low_ms: float, high_ms: float) -> Figure:
    """Where a search looked: points of its space, the candidates of each generation, the chosen one; the allowed band.

    space: columns latency_ms, parameters.  candidates: these, generation and chosen (boolean).
    """
    figure = Chart()
    ax = figure.subplots()
    ax.axvspan(low_ms, high_ms, color=COLORS["autotinybert"], alpha=0.12, linewidth=0, label="allowed")
    million = space["parameters"] / 1e6
    ax.scatter(space["latency_ms"], million, color=GREY, s=5, alpha=0.35, linewidth=0)
    ax.scatter([], [], color=GREY, s=18, label="the space")
    generations = sorted(candidates["generation"].unique())
    for generation, color in zip(generations, sns.color_palette("viridis", len(generations)), strict=True):
        rows = candidates[candidates["generation"] == generation]
        ax.scatter(
            rows["latency_ms"], rows["parameters"] / 1e6, color=color, s=34, edgecolor="white", linewidth=0.6,
            label=f"generation {generation}",
        )  # fmt: skip
    chosen = candidates[candidates["chosen"]]
    ax.scatter(
        chosen["latency_ms"], chosen["parameters"] / 1e6, marker="*", s=230, color=COLORS["sparsebert"],
        edgecolor="white", label="chosen", zorder=3,
    )  # fmt: skip
    ax.set(xlabel="latency (ms)", ylabel="parameters (million)", xlim=(0, None), ylim=(0, None))
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return figure


@styled
def search_generations(candidates: pd.DataFrame, called: str = "generation") -> Figure:
    """Scores of each generation, its median, and the best score so far.

    candidates: columns generation, method, score, share (of the training that a candidate gets), chosen (boolean).
    called: what the search calls a generation.
    """
    figure = Chart()
    ax = figure.subplots()
    whole = candidates["share"] == 1
    for rows, name, face, edge, size in (
        (candidates[whole & ~candidates["chosen"]], "candidates", GREY, "white", 26),
        (candidates[~whole], "stopped early", "none", GREY, 22),
        (candidates[candidates["chosen"]], "chosen", COLORS["sparsebert"], "white", 70),
    ):
        if len(rows):
            place = (rows["generation"], rows["score"])
            ax.scatter(*place, s=size, facecolor=face, edgecolor=edge, linewidth=0.8, zorder=2, label=name)
    by_generation = candidates[whole].groupby("generation")["score"]
    places = by_generation.max().index
    ax.plot(places, by_generation.max().cummax(), color=COLORS["tinybert"], label="best so far", zorder=1)
    ax.plot(places, by_generation.median(), "_", color="0.2", markersize=22, markeredgewidth=1.6, label="median")
    methods = candidates.drop_duplicates("generation").set_index("generation")["method"]
    ax.set_xticks(places, [f"{generation}\n{methods[generation]}" for generation in places])
    ax.set(xlabel=called, ylabel="score", xlim=(places.min() - 0.5, places.max() + 0.5))
    ax.grid(axis="x", visible=False)
    figure.legend(loc="outside upper center", ncols=5, frameon=False)
    return figure


@styled
def finalists_plot(rows: pd.DataFrame, low_ms: float, high_ms: float) -> Figure:
    """Predicted and measured latency of each finalist on a line, the best on top; the allowed band behind.

    rows: columns name, architecture, predicted_ms, measured_ms, chosen (boolean).
    """
    figure = Chart(height=max(2.4, 1.5 + 0.42 * len(rows)))
    ax = figure.subplots()
    ax.axvspan(low_ms, high_ms, color=COLORS["autotinybert"], alpha=0.12, linewidth=0, label="allowed")
    height = np.arange(len(rows))[::-1]
    ax.hlines(height, rows["predicted_ms"], rows["measured_ms"], color="0.6", linewidth=1.5, zorder=1)
    colors = [COLORS["sparsebert"] if chosen else COLORS["tinybert"] for chosen in rows["chosen"]]
    ax.scatter(rows["predicted_ms"], height, s=44, facecolor="white", edgecolor=colors, zorder=2)
    ax.scatter(rows["measured_ms"], height, s=44, color=colors, zorder=3)
    for label, face in (("predicted", "white"), ("measured", "0.3")):
        ax.scatter([], [], s=44, facecolor=face, edgecolor="0.3", label=label)
    ax.scatter([], [], s=44, color=COLORS["sparsebert"], label="chosen")
    ax.set_yticks(height, [f"{row['name']}: {row['architecture']}" for _, row in rows.iterrows()])
    ax.set_ylim(-0.6, len(rows) - 0.4)
    ax.margins(x=0.08)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("latency (ms)")
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return figure


@styled
def predicted_scatter(rows: pd.DataFrame) -> Figure:
    """Predicted against measured latency, a colour for each way of predicting; a line where both are equal.

    rows: columns kind, measured_ms, predicted_ms; both axes are logarithmic.
    """
    figure = Chart(height=5.0)
    ax = figure.subplots()
    for (kind, points), color, (marker, _) in zip(
        rows.groupby("kind", sort=False), sns.color_palette("colorblind"), MARKERS.values(), strict=False
    ):
        error = ((points["predicted_ms"] - points["measured_ms"]).abs() / points["measured_ms"]).mean()
        ax.scatter(
            points["measured_ms"], points["predicted_ms"], s=26, color=color, marker=marker, edgecolor="white",
            linewidth=0.5, label=f"{kind}: mean error {error:.1%}",
        )  # fmt: skip
    low, high = rows["measured_ms"].min(), rows["measured_ms"].max()
    ax.plot([low, high], [low, high], color="0.3", linewidth=1, linestyle="--", zorder=0)
    _log_axis(ax)
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set(xlabel="measured latency (ms)", ylabel="predicted by others' measurements (ms)")
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure
