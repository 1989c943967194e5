"""The pictures of a search over lengths show what they are given."""

from __future__ import annotations

import pandas as pd

from compresskit.evaluation import length_figures

FULL = {"score": 0.9, "macs": 4e9, "latency_ms": 40.0}


def test_the_scatter_shows_tried_configs_grey_and_the_front_as_a_line_by_cost():
    tried = pd.DataFrame(
        {
            "score": [0.5, 0.8, 0.6],
            "front": [True, True, False],
            "macs": [2e9, 1e9, 3e9],
            "latency_ms": [9.0, 8.0, None],
        }
    )
    (ax,) = length_figures.length_scatter(tried, "macs", FULL).axes
    line = ax.get_lines()[0]
    assert line.get_xdata().tolist() == [1, 2]
    assert line.get_ydata().tolist() == [80, 50]
    assert ax.collections[0].get_offsets().tolist() == [[3, 60]]
    assert ax.get_lines()[1].get_ydata()[0] == 99 * 0.9
    (ax,) = length_figures.length_scatter(tried, "latency_ms", FULL).axes
    assert len(ax.collections[0].get_offsets()) == 0  # it was not timed


def test_every_config_is_a_line_of_tokens_over_layers():
    front = pd.DataFrame({"length_config": [[9, 8, 7], [5, 4, 3]], "macs_share": [0.8, 0.5]})
    (ax,) = length_figures.tokens_kept(front).axes
    assert [line.get_ydata().tolist() for line in ax.get_lines()] == [[5, 4, 3], [9, 8, 7]]
    assert [line.get_label() for line in ax.get_lines()] == ["50%", "80%"]


def test_tokens_are_written_in_order_and_darker_the_further_they_came():
    words = ["[CLS]", "what", "costs", "$", "5", "[SEP]"] * 6
    passed = [0, 1, 2, 2, 0, 1] * 6
    (ax,) = length_figures.surviving_tokens(words, passed, 2).axes
    assert [text.get_text() for text in ax.texts] == words
    shade = {level: sum(ax.texts[passed.index(level)].get_bbox_patch().get_facecolor()[:3]) for level in (0, 1, 2)}
    assert shade[0] > shade[1] > shade[2]
    assert len({text.get_position()[1] for text in ax.texts}) > 1  # it takes several lines
