"""How many weights of a model are zero, out of which ones, and what that is worth in bytes and in operations."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from compresskit.evaluation.flops import flops
from compresskit.pruning.masks import KINDS, kind_of

TRAINING_ONLY = re.compile(r"fit_denses?\.")  # maps the student's width to the teacher's; no part of the model
ENCODER = re.compile(r"(?:bert\.)?encoder\.layer\.(?P<layer>\d+)\.")
INDEX_BYTES = 2  # 16-bit column index beside every stored value
POINTER_BYTES = 4  # 32-bit row pointer
DENOMINATORS = {
    "sparsity": "the six prunable matrices of every encoder layer",
    "encoder_sparsity": "all parameters of the encoder layers, biases and LayerNorm included",
    "model_sparsity": "all parameters of the model",
    "checkpoint_sparsity": "all parameters of the file, fit_dense included (what SparseBERT's own report prints)",
}


@dataclass(frozen=True)
class SparsityReport:
    """The shares of zeros, and the counts behind them.

    matrices: one row per parameter tensor, with name, kind, layer, rows, cols, zeros, size, sparsity, dense_bytes,
    sparse_bytes; a vector has one column, `layer` is missing outside the encoder.
    totals: one row per denominator (the index names the share), with what is counted, size, zeros, nonzeros, sparsity,
    dense_bytes, sparse_bytes. kinds, layers: the same columns, one row per kind of parameter, the prunable ones first,
    and one per encoder layer, of which the six prunable matrices are counted.

    sparse_bytes: a matrix in compressed rows takes nonzeros · (value bytes + 2) + (rows + 1) · 4 bytes, for values,
    16-bit column indices and row pointers; where that is not less than dense_bytes, and for vectors, dense_bytes.
    """

    sparsity: float  # among the prunable weights
    encoder_sparsity: float  # among all parameters of the encoder layers
    model_sparsity: float  # among all parameters, without what only training needs
    matrices: pd.DataFrame
    totals: pd.DataFrame
    kinds: pd.DataFrame
    layers: pd.DataFrame


def report(model: nn.Module | Mapping[str, Tensor]) -> SparsityReport:
    """Count the exact zeros of a model or a state dict. Tied weights count once, under their first name."""
    named = model.named_parameters() if isinstance(model, nn.Module) else _distinct(model)
    matrices = pd.DataFrame([_row(name, tensor.detach()) for name, tensor in named])
    if matrices.empty:
        raise ValueError("the model has no parameters to count; expected a module or a state dict with weights")
    matrices["layer"] = matrices["layer"].astype("Int64")
    pruned = matrices["kind"].isin(KINDS)
    counted = {
        "sparsity": pruned,
        "encoder_sparsity": matrices["name"].str.match(ENCODER),
        "model_sparsity": ~matrices["name"].str.match(TRAINING_ONLY),
        "checkpoint_sparsity": pd.Series(True, index=matrices.index),
    }
    totals = _sums({name: (DENOMINATORS[name], matrices[rows]) for name, rows in counted.items()})
    shares: Any = totals["sparsity"].drop("checkpoint_sparsity").to_dict()
    others = matrices["kind"][~pruned].unique()
    kinds = {kind: matrices[matrices["kind"] == kind] for kind in (*KINDS, *others)}
    layers = dict(tuple(matrices[pruned].groupby("layer")))
    return SparsityReport(
        **shares,
        matrices=matrices,
        totals=totals,
        kinds=_sums({kind: ("all parameters of this kind", rows) for kind, rows in kinds.items() if len(rows)}),
        layers=_sums({layer: ("the six prunable matrices of this layer", rows) for layer, rows in layers.items()}),
    )


def expected_speedup(found: SparsityReport, config: Any, seq_len: int) -> pd.DataFrame:
    """What skipping every product with a zero could save: operations of one sequence of `seq_len` tokens.

    One row for the products with the six prunable matrices, one for the whole encoder, whose attention products stay
    dense: counted, seq_len, flops (dense), sparse_flops (nonzeros alone), expected_speedup (their ratio). An upper
    bound: a kernel also reads indices, and no zero of an embedding or a head is skipped. config: as in `flops`.
    """
    pruned = found.totals.loc["sparsity"]
    encoder = flops(config, seq_len, "encoder")
    rows = {
        "prunable": (2 * seq_len * pruned["size"], 2 * seq_len * pruned["nonzeros"]),
        "encoder": (encoder, encoder - 2 * seq_len * pruned["zeros"]),
    }
    counted = {"prunable": "products with the six prunable matrices", "encoder": "all matrix products of the encoder"}
    lines = [
        {
            "counted": counted[name],
            "seq_len": seq_len,
            "flops": dense,
            "sparse_flops": sparse,
            "expected_speedup": dense / sparse if sparse else float("inf"),
        }
        for name, (dense, sparse) in rows.items()
    ]
    return pd.DataFrame(lines, index=list(rows))


def _distinct(state: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """The floating-point tensors of a state dict (position ids are no weights), each storage once."""
    found: dict[object, tuple[str, Tensor]] = {}
    for name, tensor in state.items():
        if tensor.is_floating_point():
            found.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), (name, tensor))
    return list(found.values())


def _kind(name: str) -> str:
    if pruned := kind_of(name):
        return pruned
    for part, kind in (("LayerNorm.", "layer_norm"), ("embeddings.", "embedding"), ("pooler.", "pooler")):
        if part in name:
            return kind
    if TRAINING_ONLY.match(name):
        return "training_only"
    return "bias" if ENCODER.match(name) else "head"


def _row(name: str, tensor: Tensor) -> dict[str, object]:
    rows, cols = (len(tensor), tensor[0].numel()) if tensor.ndim > 1 else (tensor.numel(), 1)
    nonzeros, dense_bytes = int(torch.count_nonzero(tensor)), tensor.numel() * tensor.element_size()
    sparse_bytes = dense_bytes
    if cols > 1 and cols <= 2 ** (8 * INDEX_BYTES):
        compressed = nonzeros * (tensor.element_size() + INDEX_BYTES) + (rows + 1) * POINTER_BYTES
        sparse_bytes = min(dense_bytes, compressed)
    layer = ENCODER.match(name)
    return {
        "name": name,
        "kind": _kind(name),
        "layer": int(layer["layer"]) if layer else None,
        "rows": rows,
        "cols": cols,
        "zeros": tensor.numel() - nonzeros,
        "size": tensor.numel(),
        "sparsity": 1 - nonzeros / tensor.numel(),
        "dense_bytes": dense_bytes,
        "sparse_bytes": sparse_bytes,
    }


def _sums(parts: Mapping[Any, tuple[str, pd.DataFrame]]) -> pd.DataFrame:
    """One row per part: what is counted in it, and its sums."""
    return pd.DataFrame([{"counted": counted, **_total(rows)} for counted, rows in parts.values()], index=list(parts))


def _total(rows: pd.DataFrame) -> dict[str, float]:
    size, zeros, dense, sparse = (
        int(rows[column].sum()) for column in ("size", "zeros", "dense_bytes", "sparse_bytes")
    )
    return {
        "size": size,
        "zeros": zeros,
        "nonzeros": size - zeros,
        "sparsity": zeros / size if size else float("nan"),
        "dense_bytes": dense,
        "sparse_bytes": sparse,
    }
