"""What an architecture costs by exact formulas, over columns: parameters, operations, bytes. Interface as predictors.

Embeddings, encoder and pooler. h hidden_size, f intermediate_size, q qkv_size, l num_hidden_layers; columns of uneven
layers hold means over the layers, in which all formulas are linear.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from compresskit.models.config import CompactBertConfig
from compresskit.models.feed_forward import SIZES, Formula
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


def size_table(config: CompactBertConfig, teacher_size: int = 768, *, faithful: bool = False) -> dict[str, float]:
    """EfficientBERT's sizes in millions, to four digits: P of a layer by the size of its formula, "1_1" to "4_4",
        P = s·(2·h·k + k + h + 2·h),   k = f div r,
    "attn", and "embed_fit_dense", which is the embedding and the projection to a teacher's width.

    config: a network of one width; its formulas do not count. faithful: as printed, where the table of 12 layers of 360
    was made for f = 540. Raises ValueError for a network whose layers differ.
    """
    h, f, q = (config.brief(name) for name in ("hidden_size", "intermediate_size", "qkv_size"))
    if not (isinstance(h, int) and isinstance(f, int) and isinstance(q, int)):
        raise ValueError("EfficientBERT's table is for layers of one width; this network's differ")
    if faithful and (config.num_hidden_layers, h) == (12, 360):
        f = 540
    counts = {size: feed_forwards(h, f, int(size[0]), int(size[2])) for size in SIZES}
    counts["attn"] = 4 * h * q + 3 * q + 3 * h
    counts["embed_fit_dense"] = _embedding(config) + h * teacher_size + teacher_size
    return {name: round(count / 1e6, 4) for name, count in counts.items()}


def table_size(formulas: Sequence[Formula], table: Mapping[str, float]) -> float:
    """The size of an architecture in millions, by the table of its network: E + Σ (A + P). Pooler and heads are left
    out. Raises ValueError for a formula without a size.
    """
    total = table["embed_fit_dense"]
    for layer, formula in enumerate(formulas):
        if formula.size_index is None:
            raise ValueError(f"layer {layer}: {formula} has no size; write linear1_1 to linear4_4")
        total += table["attn"] + table[formula.size_index]
    return total


def parameters(config: CompactBertConfig) -> int:
    """Weights of embeddings and encoder of any network, without pooler, heads and projection."""
    h, total = config.hidden_size, _embedding(config)
    for q, (stack, inner) in zip(config.per_layer("qkv_size"), config.feed_forward_sizes(), strict=True):
        total += 4 * h * q + 3 * q + 3 * h + feed_forwards(h, inner, stack, 1)
    return total


def feed_forwards(h: int, f: int, stack: int, ratio: int) -> int:
    """Weights of a layer's feed-forwards, norms included: s·(2·h·k + k + 3·h), k = f div r."""
    k = f // ratio
    return stack * (2 * h * k + k + h + 2 * h)


def _embedding(config: CompactBertConfig) -> int:
    h, e = config.hidden_size, config.embedding_size
    words = config.vocab_size * h if e is None else config.vocab_size * e + 3 * e * h + h
    return words + (config.max_position_embeddings + config.type_vocab_size) * h + 2 * h


def _numbers(columns: Columns) -> tuple[NDArray[Any], ...]:
    return tuple(columns[name] for name in ("num_hidden_layers", "hidden_size", "intermediate_size", "qkv_size"))
