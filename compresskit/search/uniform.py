"""The network that nobody searched: BERT's proportions in TinyBERT-4's depth, as wide as a latency allows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compresskit.models.config import CompactBertConfig
from compresskit.search.spaces import Columns, Space, config_at, in_order

DEPTH = 4  # of TinyBERT-4 and of AutoTinyBERT's baselines
PROPORTION = 4  # intermediate_size / hidden_size


def uniform_networks(space: Space, supernet: CompactBertConfig, num_hidden_layers: int) -> Columns:
    """All networks of this depth with qkv_size ≈ hidden_size and intermediate_size ≈ 4 times that, the narrow first.

    Widths are the space's values nearest to the proportion.
    """
    values = {name: np.asarray(sorted(numbers)) for name, numbers in vars(space).items()}
    hidden = values["hidden_size"]
    shape = {
        "num_hidden_layers": np.full(len(hidden), num_hidden_layers),
        "hidden_size": hidden,
        "intermediate_size": _nearest(values["intermediate_size"], PROPORTION * hidden),
    }
    if "qkv_size" in values:
        shape["qkv_size"] = _nearest(values["qkv_size"], hidden)
    else:
        head_size = supernet.per_layer("qkv_size")[0] // supernet.per_layer("num_attention_heads")[0]
        shape["num_attention_heads"] = _nearest(values["num_attention_heads"], hidden / head_size)
    return in_order(space.complete(shape, supernet))


def uniform_near(
    space: Space,
    supernet: CompactBertConfig,
    predict: Callable[[Columns], NDArray[Any]],
    latency_ms: float,
    count: int,
) -> list[CompactBertConfig]:
    """`count` of them whose predicted latency is nearest to `latency_ms`: 4 layers deep, or as near to that as some are
    as fast and others as slow.
    """
    depths = sorted(space.num_hidden_layers, key=lambda depth: (abs(depth - DEPTH), depth))
    made = [uniform_networks(space, supernet, depth) for depth in depths]
    times = [predict(columns) for columns in made]
    around = [k for k, ms in enumerate(times) if ms.min() <= latency_ms <= ms.max()]
    nearest = min(range(len(times)), key=lambda k: float(np.abs(times[k] - latency_ms).min()))
    chosen = around[0] if around else nearest
    order = np.argsort(np.abs(times[chosen] - latency_ms), kind="stable")[:count]
    return [config_at(made[chosen], int(index), supernet) for index in order]


def _nearest(values: NDArray[Any], wanted: NDArray[Any]) -> NDArray[Any]:
    """For each wanted number the value that is nearest, of two the smaller."""
    return values[np.abs(values[None, :] - wanted[:, None]).argmin(1)]
