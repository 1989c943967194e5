"""How many weights of a model are zero, out of which ones, and what that is worth in bytes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from compresskit.pruning.masks import PRUNABLE

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
    dense_bytes, sparse_bytes.

    sparse_bytes: a matrix in compressed rows takes nonzeros · (value bytes + 2) + (rows + 1) · 4 bytes, for values,
    16-bit column indices and row pointers; where that is not less than dense_bytes, and for vectors, dense_bytes.
    """

    sparsity: float  # among the prunable weights
    encoder_sparsity: float  # among all parameters of the encoder layers
    model_sparsity: float  # among all parameters, without what only training needs
    matrices: pd.DataFrame
    totals: pd.DataFrame


def report(model: nn.Module | Mapping[str, Tensor]) -> SparsityReport:
    """Count the exact zeros of a model or a state dict. Tied weights count once, under their first name."""
    named = model.named_parameters() if isinstance(model, nn.Module) else _distinct(model)
    matrices = pd.DataFrame([_row(name, tensor.detach()) for name, tensor in named])
    if matrices.empty:
        raise ValueError("the model has no parameters to count; expected a module or a state dict with weights")
    matrices["layer"] = matrices["layer"].astype("Int64")
    inside = matrices["name"].str.match(ENCODER)
    counted = {
        "sparsity": matrices["name"].map(lambda name: PRUNABLE.fullmatch(name) is not None),
        "encoder_sparsity": inside,
        "model_sparsity": ~matrices["name"].str.match(TRAINING_ONLY),
        "checkpoint_sparsity": pd.Series(True, index=matrices.index),
    }
    sums = {name: _total(matrices[rows]) for name, rows in counted.items()}
    totals = pd.DataFrame([{"counted": DENOMINATORS[name], **total} for name, total in sums.items()], index=list(sums))
    shares = {name: total["sparsity"] for name, total in sums.items() if name != "checkpoint_sparsity"}
    return SparsityReport(**shares, matrices=matrices, totals=totals)


def _distinct(state: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """The floating-point tensors of a state dict (position ids are no weights), each storage once."""
    found: dict[object, tuple[str, Tensor]] = {}
    for name, tensor in state.items():
        if tensor.is_floating_point():
            found.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), (name, tensor))
    return list(found.values())


def _kind(name: str) -> str:
    if match := PRUNABLE.fullmatch(name):
        return match["kind"].removeprefix("attention.self.").replace(".dense", "").replace(".", "_")
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
