"""The network that nobody searched: BERT's proportions, as deep as TinyBERT-4, as wide as a latency allows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from compresskit.models.config import CompactBertConfig
from compresskit.search.spaces import Space, in_order

DEPTH = 4  # of TinyBERT-4 and of AutoTinyBERT's baselines
PROPORTION = 4  # intermediate_size / hidden_size


def uniform_networks(space: Space, supernet: CompactBertConfig) -> dict[str, NDArray[Any]]:
    """Columns of all such networks in the space, narrow ones first: qkv_size ≈ hidden_size, intermediate_size ≈ 4 times
    that, 4 layers or all that there are. Widths are the space's values nearest to the proportion.
    """
    values = {name: np.asarray(sorted(numbers)) for name, numbers in vars(space).items()}
    hidden = values["hidden_size"]
    shape = {
        "num_hidden_layers": np.full(len(hidden), min(DEPTH, values["num_hidden_layers"].max())),
        "hidden_size": hidden,
        "intermediate_size": _nearest(values["intermediate_size"], PROPORTION * hidden),
    }
    if "qkv_size" in values:
        shape["qkv_size"] = _nearest(values["qkv_size"], hidden)
    else:
        head_size = supernet.per_layer("qkv_size")[0] // supernet.per_layer("num_attention_heads")[0]
        shape["num_attention_heads"] = _nearest(values["num_attention_heads"], hidden / head_size)
    return in_order(space.complete(shape, supernet))


def _nearest(values: NDArray[Any], wanted: NDArray[Any]) -> NDArray[Any]:
    """For each wanted number the value that is nearest, of two the smaller."""
    return values[np.abs(values[None, :] - wanted[:, None]).argmin(1)]
