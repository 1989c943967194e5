"""Mean squared difference of two models' attention scores, without building the (S, S) maps.

With a = ds^-½ and b = dt^-½, and rows of one head side by side, P = [a/b·Qs, Qt] and R = [Ks, −Kt], both (S, ds+dt):

    ‖a·Qs·Ksᵀ − b·Qt·Ktᵀ‖² = b²·‖P·Rᵀ‖² = b²·⟨PᵀP, RᵀR⟩,   gradients of ‖P·Rᵀ‖²: 2·P·(RᵀR) and 2·R·(PᵀP)

O(S·d²) time and O(d²) memory per head instead of O(S²·d) and O(S²). The value is a difference of large numbers where
the models agree closely: the products of PᵀP and RᵀR are summed in float64, which keeps 1e-5 as long as the loss is
above 1 % of the teacher's mean squared score; the gradients do not suffer. Letters: B batch, A heads, S sequence,
ds, dt columns per head. One device and one dtype for all tensors.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from compresskit.kernels.dispatch import choose

Grams = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def score_mse(
    q_s: Tensor,
    k_s: Tensor,
    q_t: Tensor,
    k_t: Tensor,
    attention_mask: Tensor | None = None,
    padded_queries: bool = False,
) -> Tensor:
    """Mean over heads and pairs of positions of (q_s·k_s/√ds − q_t·k_t/√dt)².

    q_s, k_s: student, (B, A, S, ds); q_t, k_t: teacher, (B, A, S, dt); attention_mask: (B, S), 1 on real tokens.
    Masked keys count as equal. padded_queries: their rows count too and the mean runs over all B·A·S² pairs, as in
    TinyBERT's code; else it runs over pairs of real tokens.  Returns a scalar; gradients reach the student only.
    Raises ValueError where the shapes do not fit together.
    """
    if q_s.shape[:3] != q_t.shape[:3] or q_s.shape != k_s.shape or q_t.shape != k_t.shape:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (q_s, k_s, q_t, k_t))
        raise ValueError(f"student and teacher queries and keys are {shapes}; batch, heads and length must agree")
    batch, heads, seq_len, _ = q_s.shape
    keys = queries = None
    pairs: Any = batch * heads * seq_len**2
    if attention_mask is not None:
        keys = attention_mask[:, None, :, None].to(q_s.dtype)
        if not padded_queries:
            queries, pairs = keys, heads * attention_mask.sum(-1).square().sum().clamp(min=1)
    version = choose(IMPLEMENTATIONS, q_s.device.type)
    return version(q_s, k_s, q_t.detach(), k_t.detach(), queries, keys) / pairs


def reference(
    q_s: Tensor, k_s: Tensor, q_t: Tensor, k_t: Tensor, queries: Tensor | None = None, keys: Tensor | None = None
) -> Tensor:
    """The definition: both maps, their difference, its squares.  Returns their sum over the real queries and keys.

    queries, keys: (B, 1, S, 1), 1 on real tokens; None: all are.
    """
    student, teacher = (q @ k.mT * q.shape[-1] ** -0.5 for q, k in ((q_s, k_s), (q_t, k_t)))
    difference = student - teacher
    for real in (queries, None if keys is None else keys.mT):
        difference = difference if real is None else difference * real
    return difference.square().sum()


def torch_grams(p: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """PᵀP and RᵀR, (B, A, d, d), and ⟨PᵀP, RᵀR⟩ over all heads in float64.  p, r: (B, A, S, d)."""
    pp, rr = p.mT @ p, r.mT @ r
    return pp, rr, (pp * rr).sum(dtype=torch.float64)


class Gram(torch.autograd.Function):
    """‖P·Rᵀ‖² by Gram matrices. Gradients come with the forward pass: all that stays has the student's size."""

    @staticmethod
    def forward(
        ctx: Any,
        grams: Grams,
        q_s: Tensor,
        k_s: Tensor,
        q_t: Tensor,
        k_t: Tensor,
        queries: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> Tensor:
        """As `reference`."""
        ds = q_s.shape[-1]
        a, b = ds**-0.5, q_t.shape[-1] ** -0.5
        p, r = torch.cat([q_s * (a / b), q_t], -1), torch.cat([k_s, -k_t], -1)  # b² is left for the end
        for states, real in ((p, queries), (r, keys)):
            if real is not None:
                states.mul_(real)
        pp, rr, value = grams(p, r)
        ctx.save_for_backward(
            p @ rr[..., :ds] * (2 * a * b) if ctx.needs_input_grad[1] else None,
            r @ pp[..., :ds] * (2 * b * b) if ctx.needs_input_grad[2] else None,
        )
        return (value.clamp(min=0) * (b * b)).to(q_s.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the student's queries and keys."""
        dq, dk = (None if gradient is None else gradient * upstream[0] for gradient in ctx.saved_tensors)
        return None, dq, dk, None, None, None, None


IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {"reference": reference, "torch": partial(Gram.apply, torch_grams)}
if importlib.util.find_spec("triton") is not None:
    from compresskit.kernels.triton.score_mse import grams as triton_grams

    IMPLEMENTATIONS["triton"] = partial(Gram.apply, triton_grams)
