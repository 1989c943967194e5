"""Attention that keeps no (S, S) maps, at full speed on the CPU.

Torch's fused attention multiplies small blocks, for which its default matrix product is fast and oneDNN, which serves
the large products of training here ("medium" float32 precision, see float32.py), takes two to five times as long. So
where oneDNN is in force maps are built after all, of a few sequences at a time in memory that stays in the cache, and
used up at once; the backward pass builds them again (recomputation as in FlashAttention, Dao et al. 2022, section 3.1).
benchmarks/attention.py has the figures: 1.4 to 1.6 times as fast as torch's fused attention from 128 tokens on.
Letters: B batch, A heads, S sequence, D columns per head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from compresskit.kernels.dispatch import choose

SHORT = 96  # tokens; up to here maps are cheap, and the explicit form is the faster one (benchmarks/attention.py)
# With dropout recomputation draws twice; below this length that costs more than the maps do.
SHORT_WITH_DROPOUT = 255
CACHED_BYTES = 2 << 20  # of the maps held at a time: several short sequences, or one


def fused_is_faster(seq_len: int, device: torch.device, *, gradients: bool, dropout: float) -> bool:
    """Whether to take `fused` rather than explicit maps. The rule is fixed, so that a resumed run repeats itself."""
    if device.type != "cpu":
        return True
    if _onednn():
        return seq_len > (SHORT_WITH_DROPOUT if dropout else SHORT)
    if dropout > 0:  # torch's own form then builds the maps too, only more slowly
        return False
    return not gradients or seq_len > SHORT


def fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """dropout(softmax(query·keyᵀ/√D + mask))·value.

    query, key, value: (B, A, S, D); mask: additive, (B, 1, 1, S).  Returns (B, A, S, D). Torch's own form on the CPU
    has wrong gradients for a batch row without any real token (torch 2.13).
    """
    in_float32_on_the_cpu = query.device.type == "cpu" and query.dtype == torch.float32
    if in_float32_on_the_cpu and _onednn() and not torch.compiler.is_compiling():
        return InCache.apply(query, key, value, mask, dropout)
    scale = query.shape[-1] ** -0.5
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scale)


def _onednn() -> bool:
    return torch.get_float32_matmul_precision() != "highest"


class InCache(torch.autograd.Function):
    """Attention by maps of a few sequences at a time; see the module's head."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        dropout: float,
        queries: Tensor | None = None,
        received: Tensor | None = None,
    ) -> Tensor:
        """As `fused`.  received: where the attention that each token receives is written, see `received_attention`."""
        maps = _maps(query, 2 if dropout else 1)
        generator, seed = _generator(query, dropout)
        context = _like(value)
        for part in _parts(query, len(maps[0])):
            (q, k, v), m = (_rows(states[part]) for states in (query, key, value)), None if mask is None else mask[part]
            probabilities, *rest = (space[: len(q)] for space in maps)
            _softmax_of_scores(q, k, m, probabilities)
            if queries is not None and received is not None:
                received[part] = column_sums(probabilities.unflatten(0, (-1, query.shape[1])), queries[part])
            if generator is not None:
                probabilities.mul_(rest[0].bernoulli_(1 - dropout, generator=generator))
                v = v / (1 - dropout)
            context[part] = torch.bmm(probabilities, v).view(context[part].shape)
        ctx.save_for_backward(query, key, value, mask)
        ctx.dropout, ctx.seed = dropout, seed
        return context

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of query, key and value, with P the probabilities and dP = upstream·valueᵀ their gradient:

        dvalue = Pᵀ·upstream,  dS = P∘(dP − rowsum(P∘dP)),  dquery = dS·key/√D,  dkey = dSᵀ·query/√D.
        """
        query, key, value, mask = ctx.saved_tensors
        scale = query.shape[-1] ** -0.5
        maps = _maps(query, 3 if ctx.dropout else 2)
        generator, _ = _generator(query, ctx.dropout, ctx.seed)
        dq, dk, dv = (_like(states) for states in (query, key, value))
        for part in _parts(query, len(maps[0])):
            q, k, v, g = (_rows(states[part]) for states in (query, key, value, upstream[0]))
            probabilities, gradient, *rest = (space[: len(q)] for space in maps)
            _softmax_of_scores(q, k, None if mask is None else mask[part], probabilities)
            seen = probabilities
            if generator is None:
                torch.bmm(g, v.mT, out=gradient)
            else:
                kept, g = rest[0].bernoulli_(1 - ctx.dropout, generator=generator), g / (1 - ctx.dropout)
                torch.bmm(g, v.mT, out=gradient).mul_(kept)
                seen = kept.mul_(probabilities)
            dv[part] = torch.bmm(seen.mT, g).view(dv[part].shape)
            torch._softmax_backward_data(gradient, probabilities, -1, probabilities.dtype, grad_input=gradient)
            dq[part] = torch.bmm(gradient, k * scale).view(dq[part].shape)
            dk[part] = torch.bmm(gradient.mT, q * scale).view(dk[part].shape)
        return dq, dk, dv, None, None, None, None


def column_sums(probabilities: Tensor, queries: Tensor) -> Tensor:
    """What each token receives of all heads and of the queries that count; (B, S), at least in float32.

    probabilities: (B, A, S, S); queries: 1 where one counts, else 0, (B, S).
    """
    rows = probabilities.flatten(1, 2)  # (B, A·S, S)
    if rows.dtype in (torch.float32, torch.float64):
        weights = queries.to(rows.dtype).repeat(1, probabilities.shape[1])
        return (weights[:, None] @ rows).squeeze(1)
    counted = probabilities * queries.to(rows.dtype)[:, None, :, None]
    return counted.sum((1, 2), dtype=torch.float32)


def _softmax_of_scores(q: Tensor, k: Tensor, mask: Tensor | None, out: Tensor) -> None:
    """softmax(q·kᵀ/√D + mask) into out, (N·A, S, S), of N sequences.  q, k: (N·A, S, D); mask: (N, 1, 1, S)."""
    torch.bmm(q * q.shape[-1] ** -0.5, k.mT, out=out)
    if mask is not None:
        out.unflatten(0, (len(mask), -1)).add_(mask)
    torch.softmax(out, -1, out=out)


def _parts(query: Tensor, rows: int) -> Iterator[slice]:
    step = rows // query.shape[1]
    return (slice(i, i + step) for i in range(0, len(query), step))


def _maps(query: Tensor, count: int) -> Tensor:
    """Room for `count` maps of as many sequences as are held at a time, (count, sequences·A, S, S)."""
    batch, heads, seq_len, _ = query.shape
    sequences = min(batch, max(1, CACHED_BYTES // (heads * seq_len**2 * query.element_size())))
    return query.new_empty(count, sequences * heads, seq_len, seq_len)


def _rows(states: Tensor) -> Tensor:
    """(N, A, S, D) as (N·A, S, D)."""
    return states.flatten(0, 1)


def _like(states: Tensor) -> Tensor:
    """An empty tensor of this shape, (B, A, S, D), whose heads lie side by side in memory: (B, S, A·D)."""
    return torch.empty_like(states.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


def _generator(query: Tensor, dropout: float, seed: int | None = None) -> tuple[torch.Generator | None, int | None]:
    """A stream for the masks of dropout, and the seed that starts it again; a new one comes from torch's own stream."""
    if not dropout:
        return None, None
    seed = int(torch.randint(2**62, ())) if seed is None else seed
    return torch.Generator(query.device).manual_seed(seed), seed


def feature_major(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    mask: Tensor | None,
    batch: int,
    room: Tensor,
    queries: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """softmax(query·keyᵀ/√D + mask)·value of states with a row for each feature. Without gradients.

    query, key, value: (A·D, B·S); mask: additive, (B, 1, 1, S); room: at least A·S² numbers, for the maps of one
    sequence where maps are built; queries: 1 where a query counts for the attention received, else 0, (B, S).  Returns
    the context, (A·D, B·S), and, where `queries` are given, the attention received, (B, S).
    """
    version = choose(FEATURE_MAJOR, query.device.type)
    return version(query, key, value, heads, mask, batch, room, queries)


def by_maps(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    mask: Tensor | None,
    batch: int,
    room: Tensor,
    queries: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """With maps, in `room`: new memory in every layer would cost as much as the products."""
    context = torch.empty_like(value)
    seq_len = query.shape[1] // batch
    parts = [states.view(heads, -1, batch, seq_len) for states in (query, key, value, context)]
    scale, maps = parts[0].shape[1] ** -0.5, room.flatten()[: heads * seq_len**2].view(heads, seq_len, seq_len)
    received = None
    if queries is not None:
        received = torch.empty_like(queries, dtype=torch.promote_types(query.dtype, torch.float32))
    for i in range(batch):
        q, k, v, out = (states[:, :, i] for states in parts)  # (A, D, S)
        torch.bmm((q * scale).mT, k, out=maps)
        if mask is not None:
            maps += mask[i]
        torch.softmax(maps, -1, out=maps)
        if queries is not None and received is not None:
            received[i] = column_sums(maps[None], queries[i : i + 1])[0]
        if batch == 1:
            torch.bmm(v, maps.mT, out=out)
        else:  # out is no block of memory
            out.copy_(torch.bmm(v, maps.mT))
    return context, received


def without_maps(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    mask: Tensor | None,
    batch: int,
    room: Tensor,
    queries: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """By numba in float32; where that is missing, or in another dtype, as `by_maps`."""
    if query.dtype == torch.float32:
        try:
            from compresskit.kernels import numba_attention
        except ImportError:  # sparse_linear warns of it
            pass
        else:
            return numba_attention.feature_major(query, key, value, heads, mask, batch, queries)
    return by_maps(query, key, value, heads, mask, batch, room, queries)


FEATURE_MAJOR = {"reference": by_maps, "torch": by_maps, "numba": without_maps}
