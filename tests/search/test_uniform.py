"""The uniform network beside a searched one: its proportions, its depth, and its latency."""

from __future__ import annotations

import numpy as np
import pytest

from compresskit.models import CompactBertConfig
from compresskit.models.elastic import check_fits
from compresskit.search.spaces import SPACES, config_at
from compresskit.search.uniform import uniform_near, uniform_networks

SUPERNET = CompactBertConfig()


def cost(columns) -> np.ndarray:
    """A latency that grows with depth and width."""
    return columns["num_hidden_layers"] * (1 + columns["hidden_size"] / 100)


@pytest.mark.parametrize("flavour", SPACES)
def test_widths_have_berts_proportions_as_far_as_the_space_goes(flavour):
    space = SPACES[flavour]()
    columns = uniform_networks(space, SUPERNET, 4)
    assert columns["hidden_size"].tolist() == list(space.hidden_size)
    assert (columns["num_hidden_layers"] == 4).all()
    assert (columns["intermediate_size"] == 4 * columns["hidden_size"]).all()
    step, least = (12, 180) if flavour == "kd" else (64, 64)
    assert (np.abs(columns["qkv_size"] - np.maximum(columns["hidden_size"], least)) <= step / 2).all()
    for index in (0, 80, -1):
        check_fits(SUPERNET, config_at(columns, index, SUPERNET))


@pytest.mark.parametrize(
    ("latency_ms", "layers", "hidden_size"),
    [
        (4 * 4.0, 4, 300),  # 4 layers, as TinyBERT-4
        (9.13, 4, 128),
        (3 * 2.4, 3, 140),  # 4 layers would be too slow
        (37.22, 5, 644),  # and here too fast
        (1.0, 1, 128),  # the nearest there is
        (99.0, 8, 768),
    ],
)
def test_the_depth_is_four_unless_the_latency_asks_for_another(latency_ms, layers, hidden_size):
    near = uniform_near(SPACES["kd"](), SUPERNET, cost, latency_ms, 3)
    assert len({config.key() for config in near}) == 3
    assert (near[0].num_hidden_layers, near[0].hidden_size) == (layers, hidden_size)
