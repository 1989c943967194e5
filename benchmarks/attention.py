"""Attention that keeps no maps against explicit maps, and against torch's fused attention, at the lengths there are:

    python -m benchmarks.attention

The rule in kernels/attention.py (`SHORT`) follows from these figures: from 97 tokens on no maps are kept. Torch's fused
attention runs with its default products, where it is fastest up to 128 tokens, and "under oneDNN", with those that
everything else has here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Goal, measure, publish, ratios
from compresskit.kernels import attention
from compresskit.kernels.float32 import choose_float32_matmul

SHAPES = {16: 32, 64: 32, 128: 16, 384: 8, 512: 4}  # sequence length: batch; 12 heads of 64 columns
GOALS = {
    f"ours, {what} S={seq_len}": Goal(floor=0.9, aim=1.5)
    for what in ("forward", "with gradients")
    for seq_len in SHAPES
    if seq_len > attention.SHORT
}

Form = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def explicit(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """By maps."""
    return (query @ key.mT * query.shape[-1] ** -0.5 + mask).softmax(-1) @ value


def torchs(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Torch's fused attention."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def with_gradients(form: Form) -> Callable[..., list[Tensor]]:
    """Context and the gradients of all three."""

    def run(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> list[Tensor]:
        context = form(query, key, value, mask)
        return [context, *torch.autograd.grad(context.square().sum(), (query, key, value))]

    return run


def at(precision: str, form: Callable[..., Any]) -> Callable[..., Any]:
    """The form with torch's float32 products at this precision."""

    def run(*given: Tensor) -> Any:
        torch.set_float32_matmul_precision(precision)
        return form(*given)

    return run


def inputs(seq_len: int) -> list[Tensor]:
    """Queries, keys, values and the additive mask."""
    generator = torch.Generator().manual_seed(seq_len)
    batch = SHAPES[seq_len]
    states = [
        torch.randn(batch, seq_len, 12, 64, generator=generator).transpose(1, 2).requires_grad_() for _ in range(3)
    ]
    mask = torch.zeros(batch, 1, 1, seq_len)
    mask[0, ..., seq_len // 2 :] = torch.finfo(torch.float32).min
    return [*states, mask]


if __name__ == "__main__":
    choice = choose_float32_matmul()
    given = {f"S={seq_len}": inputs(seq_len) for seq_len in SHAPES}
    forms: dict[str, tuple[Form, str]] = {
        "explicit": (explicit, choice.precision),
        "ours": (attention.fused, choice.precision),
        "torch's": (torchs, "highest"),
        "torch's, under oneDNN": (torchs, choice.precision),
    }
    forward = measure(
        {f"{name}, forward": at(precision, torch.no_grad()(form)) for name, (form, precision) in forms.items()},
        given,
        baseline="explicit, forward",
    )
    both = measure(
        {f"{name}, with gradients": at(precision, with_gradients(form)) for name, (form, precision) in forms.items()},
        given,
        baseline="explicit, with gradients",
        max_error=1e-4,
    )
    measures = ratios(forward, "explicit, forward") | ratios(both, "explicit, with gradients")
    for name, timings in {"forward": forward, "with gradients": both}.items():
        measures |= {
            f"against torch's, {label.replace('ours, ', '')}": ratio
            for label, ratio in ratios(timings, f"torch's, {name}").items()
            if label.startswith("ours")
        }
    publish("attention", forward + both, measures, GOALS, notes={"matmul": asdict(choice)})
