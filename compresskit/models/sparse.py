"""Pruned models that run as fast as their zeros allow: one call there, one back.

    fast = to_sparse(pruned)          # a copy; save_pretrained and from_pretrained work as for any model
    dense = to_dense(fast)            # the pruned model again, bit for bit

A linear layer of the encoder becomes its nonzero weights (kernels/sparse_linear.py). Without gradients, on the CPU, all
layers run on feature-major states, (H, T): nothing is transposed between the embeddings and the last layer. Where more
is wanted (gradients, attention maps, queries and keys), layers run one by one on row-major states, which is right and
slower. Which layers are sparse, and how large their parts are, stands in the config's field `sparse`.

Letters: H hidden_size, A heads, D rows per head, B batch, S sequence, T = B·S tokens.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compresskit.kernels import attention
from compresskit.kernels.layer_norm import add_and_norm
from compresskit.kernels.sparse_linear import BLOCKS, SparseWeight, sparse_linear
from compresskit.models import feed_forward
from compresskit.models.elastic import ElasticLinear, Rows

logger = logging.getLogger(__name__)

ATTENTION = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
FEED_FORWARD = ("intermediate.dense", "output.dense")
PARTS = ("values", "indices", "row_pointers")  # of a sparse layer in a state dict
TIMED_TOKENS, TIMED_CALLS = 128, 9
Model = TypeVar("Model", bound=PreTrainedModel)


class SparseLinear(nn.Module):
    """A linear layer by its nonzero weights; with gradients these are trained and zeros stay zeros."""

    def __init__(self, rows: int, columns: int, blocks: int, block: int, pointers: int):
        """rows, columns: of the weight; blocks of `block` values, `pointers` row pointers: see `SparseWeight`."""
        super().__init__()
        self.shape = (rows, columns)
        self.values = nn.Parameter(torch.zeros(blocks, block))
        self.bias = nn.Parameter(torch.zeros(rows))
        self.indices: Tensor
        self.row_pointers: Tensor
        self.register_buffer("indices", torch.zeros(blocks, dtype=torch.int16))
        self.register_buffer("row_pointers", torch.zeros(pointers, dtype=torch.int32))
        self._checked: SparseWeight | None = None

    @classmethod
    def of(cls, weight: SparseWeight, bias: Tensor) -> SparseLinear:
        """A layer with this weight and a copy of the bias."""
        layer = cls(*sizes(weight)).to(weight.values.device)
        with torch.no_grad():
            layer.values.copy_(weight.values)
            layer.bias.copy_(bias)
        layer.indices, layer.row_pointers = weight.indices, weight.row_pointers
        return layer

    @property
    def weight(self) -> SparseWeight:
        """The stored weight; checked once, and again when a part was replaced."""
        parts, known = (self.values, self.indices, self.row_pointers), self._checked
        if known is None or any(a is not b for a, b in zip(parts, vars(known).values(), strict=False)):
            known = self._checked = SparseWeight(*parts, self.shape)
        return known

    def forward(self, input: Tensor, rows: Rows | None = None, columns: Rows | None = None) -> Tensor:
        """input: (..., columns).  Returns (..., rows).  Raises ValueError where a part of the layer is asked for."""
        for part, whole in zip((rows, columns), self.shape, strict=True):
            if part is not None and (isinstance(part, Tensor) or part != whole):
                raise ValueError("a sparse layer has no subnets; make the model dense first (models.sparse.to_dense)")
        return sparse_linear(input, self.weight, self.bias)


def sizes(weight: SparseWeight) -> list[int]:
    """What `SparseLinear` is made with, and what stands in the config."""
    return [*weight.shape, *weight.values.shape, len(weight.row_pointers)]


def stored_bytes(weight: SparseWeight) -> int:
    """What values, indices and row pointers take, in memory and in a file."""
    return sum(part.numel() * part.element_size() for part in (weight.values, weight.indices, weight.row_pointers))


def build(encoder: nn.Module, sparse: dict[str, list[int]]) -> None:
    """Put empty sparse layers where a config's field `sparse` says so."""
    for name, parts in sparse.items():
        _put(encoder, name, SparseLinear(*parts))


def to_sparse(model: Model, min_sparsity: float | None = None) -> Model:
    """A copy in evaluation mode whose pruned linear layers are sparse; the model itself where it has such layers.

    min_sparsity: layers with a smaller share of zeros stay dense; None: those that are no smaller sparse, or no faster
    on this machine, which is measured. What stays dense is logged. Raises ValueError where no layer would be sparse.
    """
    if model.config.sparse:
        return model
    made = copy.deepcopy(model).eval()
    found: dict[str, list[int]] = {}
    dense: dict[str, str] = {}
    measured: dict[tuple, float] = {}
    for name, linear in list(_linears(made.base_model.encoder)):
        weight = SparseWeight.from_dense(linear.weight, widest_block(linear.weight))
        zeros = 1 - int(linear.weight.count_nonzero()) / linear.weight.numel()
        why = f"{zeros:.1%} zeros"
        if min_sparsity is not None:
            wanted = zeros >= min_sparsity
        elif wanted := stored_bytes(weight) < linear.weight.numel() * linear.weight.element_size():
            kind = (weight.shape, weight.block, round(zeros, 2))
            if kind not in measured:
                measured[kind] = speedup(linear.weight.detach(), weight)
            wanted, why = measured[kind] > 1, f"{why}, {measured[kind]:.2f}x"
        if wanted:
            _put(made.base_model.encoder, name, SparseLinear.of(weight, linear.bias))
            found[name] = sizes(weight)
        else:
            dense[name] = why
    if not found:
        raise ValueError(
            f"no layer of the encoder would be smaller and faster sparse ({next(iter(dense.values()))}); prune further"
        )
    if dense:
        logger.warning("%d of %d layers stay dense: %s", len(dense), len(dense) + len(found), dense)
    made.config.sparse = found
    return made.eval()


def widest_block(weight: Tensor) -> int:
    """How many neighbouring rows were pruned together: most of 16, 8, 4 and 1 with at most 1 % of zeros stored."""
    nonzero = weight != 0
    count = int(nonzero.sum())
    for block in sorted(BLOCKS, reverse=True):
        if len(weight) % block == 0 and block * int(nonzero.unflatten(0, (-1, block)).any(1).sum()) <= 1.01 * count:
            return block
    return 1


def to_dense(model: Model) -> Model:
    """A copy in evaluation mode whose sparse layers are plain linear ones; the model itself where it has none."""
    if not model.config.sparse:
        return model
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


def dense_weights(weights: Mapping[str, Tensor], sparse: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """A state dict without prefix whose sparse layers are `weight` matrices again.  sparse: as in the config."""
    made = dict(weights)
    for name, (rows, columns, *_) in sparse.items():
        values, indices, pointers = (made.pop(f"encoder.{name}.{part}") for part in PARTS)
        made[f"encoder.{name}.weight"] = SparseWeight(values, indices, pointers, (rows, columns)).to_dense()
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
    room = x.new_empty(max(heads), seq_len, seq_len)
    if mask is not None and not mask.any():  # nothing is masked
        mask = None
    for layer, number in zip(encoder.layer, heads, strict=True):
        inner, out = layer.attention.self, layer.attention.output
        query, key, value = (_linear(linear, x) for linear in (inner.query, inner.key, inner.value))  # (A·D, T)
        context = attention.feature_major(query, key, value, number, mask, batch, room)
        x = add_and_norm(_linear(out.dense, context), x, out.LayerNorm.weight, out.LayerNorm.bias, out.LayerNorm.eps)
        if layer.config.feed_forward is not None:
            x = _formula(layer, x)
            yield x.T.unflatten(0, (batch, seq_len))
            continue
        wide, end = layer.intermediate, layer.output
        fused = isinstance(wide.dense, SparseLinear) and layer.config.hidden_act == "gelu"
        middle = _linear(wide.dense, x, gelu=True) if fused else wide.activation(_linear(wide.dense, x))
        x = add_and_norm(_linear(end.dense, middle), x, end.LayerNorm.weight, end.LayerNorm.bias, end.LayerNorm.eps)
        yield x.T.unflatten(0, (batch, seq_len))


def _formula(layer: Any, x: Tensor) -> Tensor:
    """All feed-forwards of a layer that has a formula.  x: (H, T).  Returns the same shape."""
    config = layer.config
    plan = feed_forward.prepare(config.feed_forward[layer.index], config.feed_forward_width, dim=0, overwrite=True)
    for one in layer.feed_forward:
        first, end = partial(_linear, one.intermediate["dense"]), one.output
        out = plan.run(x, first, partial(_linear, end.dense))
        x = add_and_norm(out.contiguous(), x, end.LayerNorm.weight, end.LayerNorm.bias, end.LayerNorm.eps)
    return x


def _linear(layer: Any, x: Tensor, gelu: bool = False) -> Tensor:
    """x: (in_features, T).  Returns (out_features, T)."""
    if isinstance(layer, SparseLinear):
        return sparse_linear(x, layer.weight, layer.bias, "gelu" if gelu else None, feature_major=True)
    return torch.addmm(layer.bias[:, None], layer.weight, x)


def _linears(encoder: Any) -> Iterator[tuple[str, ElasticLinear]]:
    for number, layer in enumerate(encoder.layer):
        if layer.config.feed_forward is None:
            names = list(FEED_FORWARD)
        else:
            names = [f"feed_forward.{i}.{name}" for i in range(len(layer.feed_forward)) for name in FEED_FORWARD]
        for name in (*ATTENTION, *names):
            yield f"layer.{number}.{name}", encoder.get_submodule(f"layer.{number}.{name}")


def _put(encoder: nn.Module, name: str, layer: nn.Module) -> None:
    owner, _, last = name.rpartition(".")
    encoder.get_submodule(owner).register_module(last, layer)
