"""The page on sparse speed says what the result files say."""

from __future__ import annotations

import copy

import pytest

from benchmarks import sparse_speed

LINEAR, BERT = sparse_speed.read("sparse_linear"), sparse_speed.read("sparse_bert")


def test_the_page_is_what_the_result_files_make_and_its_plot_is_drawn():
    assert sparse_speed.PAGE.read_text(encoding="utf-8") == sparse_speed.page(LINEAR, BERT)
    assert sparse_speed.PAGE.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_the_curves_reach_from_50_to_98_percent_for_single_weights_and_every_block():
    found = sparse_speed.curves(LINEAR)
    assert list(found) == [1, 4, 8, 16]
    for points in found.values():
        assert (points[0][0], points[-1][0]) == (50, 98)
        assert len(points) >= 6
    lines = sparse_speed.plot(LINEAR).axes[0].lines
    drawn = [list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in lines[: len(found)]]
    assert drawn == list(found.values())


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ([(50, 0.5), (60, 0.9), (70, 1.2)], "between 60 and 70 %"),
        ([(50, 1.1), (60, 2.0)], "below 50 %"),
        ([(50, 1.1), (60, 0.9), (70, 2.0)], "between 60 and 70 %"),
    ],
)
def test_the_break_even_lies_between_the_last_slower_and_the_next_faster_share(points, said):
    assert sparse_speed.break_even(points) == said


def test_a_goal_that_is_missed_is_said():
    record = copy.deepcopy(BERT)
    name = next(name for name, measure in record["measures"].items() if "floor" in measure)
    record["measures"][name]["ratio"] = record["measures"][name]["floor"] - 0.01
    assert "**no**" in sparse_speed.goals_table(record)
    record["measures"][name]["ratio"] = record["measures"][name]["floor"]
    assert f"| {name} | {record['measures'][name]['floor']:.2f}x |" in sparse_speed.goals_table(record)
