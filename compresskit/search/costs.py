"""What an architecture costs by exact formulas, over columns: parameters, operations, bytes. Interface as predictors.

Embeddings, encoder and pooler. h hidden_size, f intermediate_size, q qkv_size, l num_hidden_layers; columns of uneven
layers hold means over the layers, in which all formulas are linear.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from compresskit.models.config import CompactBertConfig
from compresskit.search.spaces import Columns


@dataclass(frozen=True)
class Parameters:
    """Number of weights: (V + P + T)·h + 2h + l·(3(hq + q) + qh + h + 2h + hf + f + fh + h + 2h) + h² + h.

    V, P and T, the sizes of vocabulary, position and type tables, are the supernet's.
    """

    supernet: CompactBertConfig

    def predict(self, columns: Columns) -> NDArray[Any]:
        """Weights of each architecture."""
        layers, h, f, q = _numbers(columns)
        rows = self.supernet.vocab_size + self.supernet.max_position_embeddings + self.supernet.type_vocab_size
        return rows * h + 2 * h + layers * (4 * h * q + 3 * q + 2 * h * f + f + 6 * h) + h * h + h


@dataclass(frozen=True)
class Flops:
    """Matrix products of the encoder for one sequence, a multiply-add counted as two, as evaluation/flops.py counts."""

    seq_len: int

    def predict(self, columns: Columns) -> NDArray[Any]:
        """Operations of each architecture."""
        layers, h, f, q = _numbers(columns)
        return layers * (2 * self.seq_len * (4 * h * q + 2 * h * f) + 4 * self.seq_len**2 * q)


@dataclass(frozen=True)
class ModelBytes:
    """Memory that the weights take, and their file."""

    supernet: CompactBertConfig
    bytes_per_weight: int = 4  # float32

    def predict(self, columns: Columns) -> NDArray[Any]:
        """Bytes of each architecture."""
        return self.bytes_per_weight * Parameters(self.supernet).predict(columns)


def _numbers(columns: Columns) -> tuple[NDArray[Any], ...]:
    return tuple(columns[name] for name in ("num_hidden_layers", "hidden_size", "intermediate_size", "qkv_size"))
