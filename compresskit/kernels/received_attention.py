"""Attention, and how much of it each token receives: the sums of the columns of all heads' maps, without keeping one.

    context = dropout(P)·value,   received_bk = Σ_a Σ_q queries_bq · P_baqk,   P = softmax(query·keyᵀ/√D + mask)

Received attention is what tokens are dropped by (Length-Adaptive Transformer, section 3.1); it is taken before the
dropout and has no gradient. Letters: B batch, A heads, S sequence, D columns per head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compresskit.kernels import attention
from compresskit.kernels.dispatch import choose


def received_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, queries: Tensor, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """query, key, value: (B, A, S, D); mask: additive, (B, 1, 1, S); queries: 1 where a query counts, else 0, (B, S).

    Returns the context, (B, A, S, D), and the attention received, (B, S), at least in float32.
    """
    return choose(IMPLEMENTATIONS, query.device.type)(query, key, value, mask, queries, dropout)


def reference(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, queries: Tensor, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The definition."""
    scores = query @ key.mT * query.shape[-1] ** -0.5
    probabilities = (scores if mask is None else scores + mask).softmax(-1)
    return torch.dropout(probabilities, dropout, True) @ value, attention.column_sums(probabilities.detach(), queries)


def in_cache(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, queries: Tensor, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """On the CPU from maps of a few sequences at a time, each used up while it is in the cache; else as `reference`."""
    if query.device.type != "cpu" or torch.compiler.is_compiling():
        return reference(query, key, value, mask, queries, dropout)
    received = queries.new_empty(queries.shape, dtype=torch.promote_types(query.dtype, torch.float32))
    return attention.InCache.apply(query, key, value, mask, dropout, queries, received), received


IMPLEMENTATIONS = {"reference": reference, "torch": in_cache}
