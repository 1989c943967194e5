import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from transformers import BertConfig, BertForSequenceClassification

from compresskit.evaluation import figures, sparsity
from compresskit.pruning.masks import MagnitudePruner


def leaderboard(rows: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    systems = [list(figures.COLORS)[i % len(figures.COLORS)] for i in range(rows)]
    table = pd.DataFrame({"system": systems, "latency_p50_ms": np.exp(rng.uniform(np.log(4), np.log(60), rows))})
    table["name"] = [f"{system}-{i}l-{40 + i}" for i, system in enumerate(systems)]
    table["score_pct"] = 92 - 15 / np.sqrt(table["latency_p50_ms"]) + rng.normal(0, 1, rows)
    return table.assign(low_pct=table["score_pct"] - 2.0, high_pct=table["score_pct"] + 1.5)


def labels_of(figure: Figure) -> dict[str, Annotation]:
    texts = figure.axes[0].texts
    return {text.get_text(): text for text in texts if isinstance(text, Annotation) and text.get_text()}


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def drawn(figure: Figure) -> dict[str, set[tuple[float, float]]]:
    """Marker positions by label."""
    lines = {
        str(line.get_label()): line for line in figure.axes[0].lines if line.get_marker() not in ("None", "_", "|")
    }
    return {label: {tuple(xy) for xy in line.get_xydata()} for label, line in lines.items()}


def pairs(table: pd.DataFrame, *columns: str) -> set[tuple[float, ...]]:
    return set(table[list(columns)].itertuples(index=False, name=None))


# ---- Pareto plot


def test_pareto_every_row_is_a_point_of_its_systems_colour_with_its_name_and_interval():
    table = leaderboard(9)
    figure = figures.pareto_plot(table)
    assert drawn(figure) == {
        system: pairs(rows, "latency_p50_ms", "score_pct") for system, rows in table.groupby("system")
    }
    assert set(labels_of(figure)) == set(table["name"])
    assert {name: label.xy for name, label in labels_of(figure).items()} == {
        row.name: (row.latency_p50_ms, row.score_pct) for row in table.itertuples(index=False)
    }
    bars = [segment for bar in figure.axes[0].collections for segment in bar.get_segments()]
    intervals = sorted(pairs(table, "latency_p50_ms", "low_pct", "high_pct"))
    np.testing.assert_allclose(sorted((x, low, high) for (x, low), (_, high) in bars), intervals)
    for line in figure.axes[0].lines:
        if line.get_label() in figures.COLORS:
            assert line.get_color() == figures.COLORS[line.get_label()]


def test_pareto_the_line_goes_through_the_front_in_order():
    table = pd.DataFrame(
        {
            "name": list("abcd"),
            "system": ["baseline", "tinybert", "tinybert", "sparsebert"],
            "latency_p50_ms": [40.0, 10.0, 20.0, 5.0],
            "score_pct": [90.0, 85.0, 84.0, 80.0],
        }
    )
    figure = figures.pareto_plot(table)
    front = next(line for line in figure.axes[0].lines if line.get_label() == "front")
    assert front.get_xydata().tolist() == [[5, 80], [10, 85], [40, 90]]
    assert front.get_drawstyle() == "steps-post"
    assert legend_of(figure) == ["front", "tinybert", "sparsebert", "baseline"]


@pytest.mark.parametrize("seed", range(4))
def test_pareto_names_overlap_neither_each_other_nor_a_marker_nor_the_frame(seed):
    table = leaderboard(12, seed)
    figure = figures.pareto_plot(table)
    figure.draw_without_rendering()
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = {name: label.get_tightbbox(renderer).padded(-2) for name, label in labels_of(figure).items()}
    texts = list(boxes.values())
    inside = figure.axes[0].get_window_extent()
    assert all(
        inside.x0 <= box.x0 <= box.x1 <= inside.x1 and inside.y0 <= box.y0 <= box.y1 <= inside.y1 for box in texts
    )
    assert not [(i, j) for i, a in enumerate(texts) for j, b in enumerate(texts[:i]) if a.overlaps(b)]
    points = figure.axes[0].transData.transform(table[["latency_p50_ms", "score_pct"]].to_numpy())
    assert not [name for name, box in boxes.items() for point in points if box.contains(*point)]


def test_pareto_of_many_points_names_only_the_front():
    table = leaderboard(40)
    on_front = figures.front(table[["latency_p50_ms", "score_pct"]].to_numpy())
    assert 1 < on_front.sum() < 20
    assert set(labels_of(figures.pareto_plot(table))) == set(table.loc[on_front, "name"])


def test_pareto_axes_state_the_quantity_and_its_unit_and_are_logarithmic_only_for_wide_ranges():
    table = leaderboard(5).assign(params_m=[10.0, 12, 14, 20, 60])
    ax = figures.pareto_plot(table, "params_m").axes[0]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("parameters (million)", "score (%)")
    assert ax.get_xscale() == "linear"
    ax = figures.pareto_plot(table.assign(latency_p50_ms=[1.0, 2, 4, 8, 16])).axes[0]
    assert ax.get_xlabel() == "median latency (ms)"
    assert ax.get_xscale() == "log"


def test_pareto_without_intervals_and_with_some_missing_still_draws_all_points():
    table = leaderboard(6)
    assert len(labels_of(figures.pareto_plot(table.drop(columns=["low_pct", "high_pct"])))) == 6
    table.loc[2, ["low_pct", "high_pct"]] = np.nan
    assert len(labels_of(figures.pareto_plot(table))) == 6


def test_pareto_refuses_an_unknown_system_and_a_missing_number():
    with pytest.raises(ValueError, match="unknown system 'minibert'; known systems: tinybert, autotinybert"):
        figures.pareto_plot(leaderboard(2).assign(system="minibert"))
    with pytest.raises(ValueError, match="point 1 has no cost or no score"):
        figures.pareto_plot(leaderboard(2).assign(score_pct=[80, np.nan]))


def test_all_colours_and_markers_differ():
    assert len(set(figures.COLORS.values())) == len({marker for marker, _ in figures.MARKERS.values()}) == 7
    assert list(figures.COLORS) == list(figures.MARKERS)


# ---- learning curves


def history(points: int) -> pd.DataFrame:
    steps = np.arange(1, points + 1)
    parts = {
        "train/loss": 1.0 / steps,
        "eval/loss": 2.0 / steps,
        "eval/accuracy": 1 - 1 / steps,
        "train/learning_rate": 1e-4 * steps[::-1],
    }
    return pd.concat([pd.DataFrame({"step": steps, "key": key, "value": value}) for key, value in parts.items()])


def test_curves_of_one_metric_share_a_panel_and_carry_all_points():
    figure = figures.learning_curve(history(20).sample(frac=1, random_state=0))
    assert sorted(ax.get_ylabel() for ax in figure.axes) == ["accuracy", "learning rate", "loss"]
    loss = next(ax for ax in figure.axes if ax.get_ylabel() == "loss")
    steps = np.arange(1, 21)
    curves = {line.get_label(): line.get_xydata() for line in loss.lines}
    np.testing.assert_allclose(curves["train"], np.column_stack([steps, 1 / steps]))
    np.testing.assert_allclose(curves["eval"], np.column_stack([steps, 2 / steps]))
    assert loss.get_xlabel() == "optimizer step"


def test_long_curves_show_the_raw_points_and_their_running_mean():
    figure = figures.learning_curve(history(1000), ["train/loss"])
    raw, mean = figure.axes[0].lines
    np.testing.assert_allclose(raw.get_ydata(), 1 / np.arange(1, 1001))
    assert mean.get_label() == "train (running mean)"
    assert mean.get_ydata()[500] == pytest.approx(np.mean(1 / np.arange(491, 511)))


def test_chosen_keys_alone_are_drawn_and_a_missing_one_is_named():
    figure = figures.learning_curve(history(5), ["eval/accuracy"])
    assert [ax.get_ylabel() for ax in figure.axes] == ["accuracy"]
    with pytest.raises(ValueError, match="no values of eval/f1; it has"):
        figures.learning_curve(history(5), ["eval/f1"])
    with pytest.raises(ValueError, match="no values of any key"):
        figures.learning_curve(history(0))


# ---- sparsity, latency, search


def test_heatmap_cells_are_the_percentages_of_the_report():
    config = BertConfig(vocab_size=30, hidden_size=12, num_hidden_layers=3, num_attention_heads=3, intermediate_size=20)
    model = BertForSequenceClassification(config)
    MagnitudePruner(model, 0.5, 0, 1).step(1)
    with torch.no_grad():
        model.bert.encoder.layer[2].output.dense.weight.zero_()
    found = sparsity.report(model)
    figure = figures.sparsity_heatmap(found)
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "query",
        "key",
        "value",
        "attention output",
        "intermediate",
        "output",
    ]
    assert ax.collections[0].get_array().reshape(6, 3).tolist() == [[50.0] * 3] * 5 + [[50.0, 50.0, 100.0]]
    assert [text.get_text() for text in ax.texts] == ["50.0"] * 17 + ["100.0"]
    assert f"{found.sparsity:.1%} of the prunable weights" in ax.get_title()
    assert figure.axes[1].get_ylabel() == "zeros (%)"


def test_heatmap_without_prunable_matrices_is_refused():
    with pytest.raises(ValueError, match="no prunable matrix"):
        figures.sparsity_heatmap(sparsity.report(torch.nn.Linear(2, 2)))


def timings(p50: list[float]) -> pd.DataFrame:
    names = [f"model-{i}" for i in range(len(p50))]
    return pd.DataFrame({"name": names, "latency_p50_ms": p50, "latency_p95_ms": [1.2 * t for t in p50]})


def test_latency_bars_are_the_medians_with_a_whisker_to_the_95th_percentile_fastest_on_top():
    table = timings([30.0, 10.0, 20.0]).assign(system=["baseline", "tinybert", "sparsebert"], batch_size=1, threads=2)
    ax = figures.latency_bars(table).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["model-0", "model-2", "model-1"]
    assert [bar.get_width() for bar in ax.patches] == [30, 20, 10]
    assert [mpl.colors.to_hex(bar.get_facecolor()) for bar in ax.patches] == [
        figures.COLORS[system] for system in ("baseline", "sparsebert", "tinybert")
    ]
    whiskers = [segment[:, 0].tolist() for segment in ax.collections[0].get_segments()]
    np.testing.assert_allclose(whiskers, [[30, 36], [20, 24], [10, 12]])
    assert [text.get_text() for text in ax.texts] == ["30 ms", "20 ms", "10 ms"]
    assert "(ms)" in ax.get_xlabel()
    assert ax.get_title(loc="left") == "batch 1, threads: 2"
    assert ax.get_xlim()[0] == 0


def test_latencies_that_span_more_than_twentyfold_are_points_on_a_log_axis():
    ax = figures.latency_bars(timings([100.0, 4.0])).axes[0]
    assert ax.get_xscale() == "log"
    assert not ax.patches
    assert ax.collections[0].get_offsets().tolist() == [[100, 0], [4, 1]]


def test_search_scatter_marks_the_chosen_and_the_limit():
    table = pd.DataFrame(
        {"latency_ms": [1.0, 2.0, 3.0], "score": [0.5, 0.7, 0.8], "chosen": [False, True, False], "name": list("abc")}
    )
    figure = figures.search_scatter(table, max_latency_ms=2.5)
    others, chosen = figure.axes[0].collections
    assert others.get_offsets().tolist() == [[1, 0.5], [3, 0.8]]
    assert chosen.get_offsets().tolist() == [[2, 0.7]]
    front, limit = figure.axes[0].lines
    assert limit.get_xdata() == [2.5, 2.5]
    assert front.get_xydata().tolist() == [[1, 0.5], [2, 0.7], [3, 0.8]]
    assert legend_of(figure) == ["front", "2 candidates", "1 chosen", "limit 2.5 ms"]


def searched() -> pd.DataFrame:
    columns = ["generation", "method", "score", "share", "chosen", "latency_ms", "parameters"]
    rows = [(1, "random", 0.5, 1.0, False, 2.0, 4e6), (1, "random", 0.3, 0.5, False, 2.1, 5e6),
            (1, "random", 0.7, 1.0, False, 1.9, 6e6), (2, "evolved", 0.6, 1.0, False, 2.2, 5e6),
            (2, "evolved", 0.9, 1.0, True, 1.8, 3e6)]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def test_a_search_is_a_cloud_with_its_generations_and_the_allowed_band():
    space = pd.DataFrame({"latency_ms": [1.0, 5.0], "parameters": [1e6, 9e6]})
    figure = figures.search_cloud(space, searched(), 1.5, 2.5)
    points = [c.get_offsets().tolist() for c in figure.axes[0].collections if len(c.get_offsets())]
    assert points == [[[1, 1], [5, 9]], [[2, 4], [2.1, 5], [1.9, 6]], [[2.2, 5], [1.8, 3]], [[1.8, 3]]]
    assert legend_of(figure) == ["allowed", "the space", "generation 1", "generation 2", "chosen"]
    band = figure.axes[0].patches[0].get_extents().transformed(figure.axes[0].transData.inverted())
    assert (band.x0, band.x1) == pytest.approx((1.5, 2.5))


def test_generations_show_who_was_stopped_and_the_best_so_far():
    ax = figures.search_generations(searched()).axes[0]
    points = [collection.get_offsets().tolist() for collection in ax.collections]
    assert points == [[[1, 0.5], [1, 0.7], [2, 0.6]], [[1, 0.3]], [[2, 0.9]]]
    best, median = ax.lines
    assert best.get_xydata().tolist() == [[1, 0.7], [2, 0.9]]
    assert median.get_ydata().tolist() == pytest.approx([0.6, 0.75])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1\nrandom", "2\nevolved"]


def test_finalists_are_lines_from_predicted_to_measured_the_best_on_top():
    rows = pd.DataFrame(
        {"name": ["1", "uniform"], "architecture": ["4-64-128-4-64", "4-60-240-4-60"], "predicted_ms": [2.0, 2.2],
         "measured_ms": [2.1, 2.4], "chosen": [True, False]}
    )  # fmt: skip
    ax = figures.finalists_plot(rows, 1.5, 2.5).axes[0]
    lines, predicted, measured = ax.collections[:3]
    assert [segment.tolist() for segment in lines.get_segments()] == [[[2.0, 1], [2.1, 1]], [[2.2, 0], [2.4, 0]]]
    assert predicted.get_offsets().tolist() == [[2.0, 1], [2.2, 0]]
    assert measured.get_offsets().tolist() == [[2.1, 1], [2.4, 0]]
    assert {label.get_text() for label in ax.get_yticklabels()} == {"1: 4-64-128-4-64", "uniform: 4-60-240-4-60"}


# ---- all of them


def test_scores_have_a_panel_for_each_task_with_interval_mean_and_seeds():
    rows = pd.DataFrame(
        [("sst2", "accuracy", "baseline-a", 80.0, 78.0, 83.0, [79.0, 81.0]),
         ("sst2", "accuracy", "tinybert-b", 85.0, 82.0, 86.0, [85.0]),
         ("stsb", "pearson spearman", "tinybert-b", 70.0, 65.0, 72.0, [70.0]),
         ("stsb", "pearson spearman", "baseline-a", 60.0, 58.0, 61.0, [60.0])],
        columns=["task", "metric", "name", "score_pct", "low_pct", "high_pct", "seeds"],
    )  # fmt: skip
    first, second = figures.scores_plot(rows).axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["baseline-a", "tinybert-b"]
    assert (second.get_title(), second.get_xlabel()) == ("stsb", "pearson spearman (%)")
    points = [[list(line.get_xdata()) for line in ax.lines] for ax in (first, second)]
    assert points == [
        [[78.0, 83.0], [79.0, 81.0], [80.0], [82.0, 86.0], [85.0]],
        [[58.0, 61.0], [60.0], [65.0, 72.0], [70.0]],
    ]
    assert all(line.get_ydata()[0] == 0 for line in second.lines[:2])  # in the order of the first task


@pytest.fixture
def every_figure():
    return lambda: [
        figures.pareto_plot(leaderboard(7)),
        figures.learning_curve(history(10)),
        figures.latency_bars(timings([1.0, 2.0])),
        figures.search_scatter(pd.DataFrame({"latency_ms": [1.0], "score": [0.5], "chosen": [True]})),
    ]


def test_figures_leave_pyplot_and_the_settings_of_matplotlib_alone(every_figure):
    before = dict(mpl.rcParams)
    every_figure()
    assert plt.get_fignums() == []
    assert dict(mpl.rcParams) == before


def test_figures_have_notebook_width_and_show_themselves_there(every_figure):
    for figure in every_figure():
        assert figure.get_figwidth() == 7.0
        assert figure.dpi == 110
        assert figure._repr_png_()[:8] == b"\x89PNG\r\n\x1a\n"


# ---- predicted against measured


def test_every_prediction_is_a_point_and_the_legend_tells_the_errors():
    rows = pd.DataFrame(
        {
            "kind": ["physical", "physical", "flops", "flops"],
            "measured_ms": [4.0, 40.0, 4.0, 40.0],
            "predicted_ms": [4.4, 40.0, 6.0, 20.0],
        }
    )
    figure = figures.predicted_scatter(rows)
    ax = figure.axes[0]
    points = [set(map(tuple, collection.get_offsets().tolist())) for collection in ax.collections]
    assert points == [{(4.0, 4.4), (40.0, 40.0)}, {(4.0, 6.0), (40.0, 20.0)}]
    assert legend_of(figure) == ["physical: mean error 5.0%", "flops: mean error 50.0%"]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert ax.lines[0].get_xydata().tolist() == [[4, 4], [40, 40]]
