"""Pruned models that run as fast as their zeros allow: one call there, one back.

    fast = to_sparse(pruned)          # a copy; save_pretrained and from_pretrained work as for any model
    dense = to_dense(fast)            # the pruned model again, bit for bit

A linear layer of the encoder becomes its nonzero weights (kernels/sparse_linear.py). Without gradients, on the CPU, all
layers run on feature-major states, (H, tokens): nothing is transposed between the embeddings and the last layer. Where a
call wants more than that (gradients, attention maps, queries and keys), layers run one by one on row-major states, which
is right and slower. Which matrices are sparse, and how many values they store, stands in the config's field `sparse`.

Letters: H hidden_size, A heads, D rows per head, B batch, S sequence, T = B·S tokens.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compresskit.kernels import attention
from compresskit.kernels.layer_norm import add_and_norm
from compresskit.kernels.sparse_linear import SparseWeight, sparse_linear
from compresskit.models.elastic import ElasticLinear, Rows

logger = logging.getLogger(__name__)

LINEARS = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
TIMED_TOKENS, TIMED_CALLS = 128, 9
Model = TypeVar("Model", bound=PreTrainedModel)


class SparseLinear(nn.Module):
    """A linear layer by its nonzero weights; with gradients these are trained and zeros stay zeros."""

    def __init__(self, in_features: int, out_features: int, blocks: int, block: int, pointers: int):
        """blocks: stored blocks of `block` values; pointers: length of the row pointers. See `SparseWeight`."""
        super().__init__()
        self.shape = (out_features, in_features)
        self.values = nn.Parameter(torch.zeros(blocks, block))
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.indices: Tensor
        self.row_pointers: Tensor
        self.register_buffer("indices", torch.zeros(blocks, dtype=torch.int16))
        self.register_buffer("row_pointers", torch.zeros(pointers, dtype=torch.int32))
        self._checked: SparseWeight | None = None

    @property
    def weight(self) -> SparseWeight:
        """The stored weight, checked when its parts have changed."""
        found = self._checked
        if found is None or found.indices is not self.indices or found.row_pointers is not self.row_pointers \
                or found.values is not self.values:
            found = self._checked = SparseWeight(self.values, self.indices, self.row_pointers, self.shape)
        return found

    def forward(self, input: Tensor, rows: Rows | None = None, columns: Rows | None = None) -> Tensor:
        """input: (..., in_features).  Returns (..., out_features).  Raises ValueError where a part is asked for."""
        parts = (rows, self.shape[0]), (columns, self.shape[1])
        if any(part is not None and (isinstance(part, Tensor) or part != whole) for part, whole in parts):
            raise ValueError("a sparse layer has no subnets; make the model dense first (models.sparse.to_dense)")
        return sparse_linear(input, self.weight, self.bias)


def build(encoder: nn.Module, sparse: dict[str, list[int]]) -> None:
    """Put empty sparse layers where a config's field `sparse` says so."""
    for name, (blocks, block, pointers) in sparse.items():
        dense = encoder.get_submodule(name)
        _put(encoder, name, SparseLinear(dense.in_features, dense.out_features, blocks, block, pointers))


def to_sparse(model: Model, block: int = 1, min_sparsity: float | None = None) -> Model:
    """A copy in evaluation mode whose pruned linear layers are sparse.

    block: neighbouring output features that were pruned together (1, 4, 8 or 16). min_sparsity: layers with a smaller
    share of zeros stay dense; None: those that are no faster sparse on this machine, which is measured. What stays dense
    is logged. Raises ValueError where no layer would be sparse.
    """
    if model.config.sparse:
        raise ValueError("the model is sparse already")
    made = copy.deepcopy(model).eval()
    found: dict[str, list[int]] = {}
    dense: dict[str, str] = {}
    known: dict[tuple, float] = {}
    for name, linear in _linears(made.base_model.encoder):
        zeros = 1 - int(linear.weight.count_nonzero()) / linear.weight.numel()
        if min_sparsity is not None:
            wanted, why = zeros >= min_sparsity, f"{zeros:.1%} zeros"
        else:
            weight = SparseWeight.from_dense(linear.weight, block)
            kind = (weight.shape, round(zeros, 2))
            if kind not in known:
                known[kind] = speedup(linear.weight.detach(), weight)
            wanted, why = known[kind] > 1, f"{zeros:.1%} zeros, {known[kind]:.2f}x"
        if wanted:
            weight = SparseWeight.from_dense(linear.weight, block)
            layer = SparseLinear(*reversed(weight.shape), *weight.values.shape, len(weight.row_pointers))
            with torch.no_grad():
                layer.values.copy_(weight.values)
                layer.bias.copy_(linear.bias)
            layer.indices, layer.row_pointers = weight.indices, weight.row_pointers
            _put(made.base_model.encoder, name, layer.to(linear.weight.device))
            found[name] = [*weight.values.shape, len(weight.row_pointers)]
        else:
            dense[name] = why
    if not found:
        most = max(dense.values(), default="no layer")
        raise ValueError(f"no layer of the encoder gains by being sparse (at most {most}); prune further")
    if dense:
        logger.warning("%d of %d layers stay dense: %s", len(dense), len(dense) + len(found), dense)
    made.config.sparse = found
    return made.eval()


def to_dense(model: Model) -> Model:
    """A copy in evaluation mode whose sparse layers are plain linear ones with the same weights.

    Raises ValueError where none is sparse.
    """
    if not model.config.sparse:
        raise ValueError("the model has no sparse layer")
    made = copy.deepcopy(model).eval()
    encoder = made.base_model.encoder
    for name in model.config.sparse:
        layer = encoder.get_submodule(name)
        linear = ElasticLinear(*reversed(layer.shape)).to(layer.values.device, layer.values.dtype)
        with torch.no_grad():
            linear.weight.copy_(layer.weight.to_dense())
            linear.bias.copy_(layer.bias)
        _put(encoder, name, linear)
    made.config.sparse = None
    return made


@torch.no_grad()
def speedup(weight: Tensor, stored: SparseWeight) -> float:
    """How many times faster a feature-major product with `stored` is than a dense one with `weight`, here and now."""
    x = torch.randn(weight.shape[1], TIMED_TOKENS, generator=torch.Generator().manual_seed(0)).to(weight)
    calls = {"dense": lambda: weight @ x, "sparse": lambda: sparse_linear(x, stored, feature_major=True)}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(TIMED_CALLS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            samples[name].append(time.perf_counter() - start)
    return median(samples["dense"]) / median(samples["sparse"])


def run(encoder: Any, hidden: Tensor, mask: Tensor | None, heads: list[int]) -> Iterator[Tensor]:
    """The states after each layer, (B, S, H), computed feature-major. Without gradients.

    hidden: (B, S, H); mask: additive, (B, 1, 1, S); heads: of each layer.
    """
    batch, seq_len, _ = hidden.shape
    x = hidden.flatten(0, 1).T.contiguous()  # (H, T)
    for layer, number in zip(encoder.layer, heads, strict=True):
        inner, out, wide, end = layer.attention.self, layer.attention.output, layer.intermediate, layer.output
        states = (_linear(linear, x) for linear in (inner.query, inner.key, inner.value))  # (A·D, T)
        context = attention.feature_major(*states, number, mask, batch)
        x = add_and_norm(_linear(out.dense, context), x, out.LayerNorm.weight, out.LayerNorm.bias, out.LayerNorm.eps)
        fused = isinstance(wide.dense, SparseLinear) and layer.config.hidden_act == "gelu"
        middle = _linear(wide.dense, x, gelu=True) if fused else wide.activation(_linear(wide.dense, x))
        x = add_and_norm(_linear(end.dense, middle), x, end.LayerNorm.weight, end.LayerNorm.bias, end.LayerNorm.eps)
        yield x.T.unflatten(0, (batch, seq_len))


def _linear(layer: nn.Module, x: Tensor, gelu: bool = False) -> Tensor:
    """x: (in_features, T).  Returns (out_features, T)."""
    if isinstance(layer, SparseLinear):
        return sparse_linear(x, layer.weight, layer.bias, "gelu" if gelu else None, feature_major=True)
    return torch.addmm(layer.bias[:, None], layer.weight, x)


def _linears(encoder: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for number in range(len(encoder.layer)):
        for name in LINEARS:
            yield f"layer.{number}.{name}", encoder.get_submodule(f"layer.{number}.{name}")


def _put(encoder: nn.Module, name: str, layer: nn.Module) -> None:
    owner, _, last = name.rpartition(".")
    setattr(encoder.get_submodule(owner), last, layer)
