"""Attention without the (S, S) maps in memory, at its full speed on the CPU.

Torch's fused attention multiplies small blocks. For these oneDNN, which serves the large products of training here
("medium" float32 precision, see float32.py), takes two to five times as long as torch's default; so the default is put
back while the fused kernel runs, forward and backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Up to this length maps are cheap: with gradients the explicit form is the faster one (benchmarks/attention.py).
# Without gradients the fused form is faster at every length.
SHORT = 96
# From this length on heads of an odd width (TinyBERT's 26) are widened with zeros: the fused kernel's inner products
# are then whole vectors, which saves a tenth of its time; below, the copies cost more.
WIDENED_FROM, VECTOR = 256, 16


def fused_is_faster(seq_len: int, device: torch.device, *, gradients: bool, dropout: float) -> bool:
    """Whether to take `fused` rather than explicit maps. The rule is fixed, so that a resumed run repeats itself."""
    if device.type != "cpu":
        return True
    if dropout > 0:  # torch then builds the maps too, only more slowly
        return False
    return not gradients or seq_len > SHORT


def fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """softmax(query·keyᵀ/√D + mask)·value.

    query, key, value: (B, A, S, D); mask: additive, (B, 1, 1, S).  Returns (B, A, S, D). On the CPU the gradients of a
    batch row without any real token are wrong (torch 2.13).
    """
    width = query.shape[-1]
    call = partial(F.scaled_dot_product_attention, attn_mask=mask, dropout_p=dropout, scale=width**-0.5)
    if query.device.type != "cpu":
        return call(query, key, value)
    if width % VECTOR and query.shape[2] >= WIDENED_FROM:
        query, key, value = (F.pad(states, (0, -width % VECTOR)) for states in (query, key, value))
    if torch.get_float32_matmul_precision() == "highest":
        return call(query, key, value)[..., :width]
    with _highest_precision() as before:
        context = call(query, key, value)
    if context.grad_fn is not None:
        context.grad_fn.register_prehook(lambda gradients: torch.set_float32_matmul_precision("highest"))
        context.grad_fn.register_hook(lambda inputs, outputs: torch.set_float32_matmul_precision(before))
    return context[..., :width]


@contextmanager
def _highest_precision() -> Iterator[Any]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield before
    finally:
        torch.set_float32_matmul_precision(before)
