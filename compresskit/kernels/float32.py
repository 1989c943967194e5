"""Float32 matrix products on the CPU: through oneDNN where it is exact, else through torch's default.

Torch hands float32 products to a library that reaches less than half of what AVX-512 cores can do; its "medium"
precision hands them to oneDNN instead, about 1.9 times as fast there. On CPUs with fast bfloat16 units the same switch
may round to bfloat16, so the choice is kept only after a look at the error.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_RELATIVE_ERROR = 2e-6  # float32 sums of this length stay near 3e-7; bfloat16 rounding gives 2e-3


@dataclass(frozen=True)
class Float32Matmul:
    """The precision setting now in force, its measured error relative to float64, and why it was chosen."""

    precision: str
    relative_error: float
    reason: str


def choose_float32_matmul() -> Float32Matmul:
    """Switch this process to oneDNN where the error stays below `MAX_RELATIVE_ERROR`; say what was chosen.

    With a GPU nothing is changed: there the same switch rounds to bfloat16.
    """
    if torch.cuda.is_available():
        return Float32Matmul(torch.get_float32_matmul_precision(), relative_error(), "left as it is for the GPU")
    torch.set_float32_matmul_precision("medium")
    error = relative_error()
    if error < MAX_RELATIVE_ERROR:
        return Float32Matmul("medium", error, f"oneDNN: error {error:.1e} is below {MAX_RELATIVE_ERROR:.0e}")
    torch.set_float32_matmul_precision("highest")
    return Float32Matmul("highest", relative_error(), f"oneDNN's error {error:.1e} reaches {MAX_RELATIVE_ERROR:.0e}")


def relative_error() -> float:
    """Largest relative norm error against float64 of a linear layer, its two gradients, and a batched product."""
    generator = torch.Generator().manual_seed(0)
    x, weight, grad = (torch.randn(*shape, generator=generator) for shape in ((256, 512), (384, 512), (256, 384)))
    heads = torch.randn(8, 64, 48, generator=generator)

    def products(x: Tensor, weight: Tensor, grad: Tensor, heads: Tensor) -> list[Tensor]:
        return [x @ weight.T, grad @ weight, grad.T @ x, heads @ heads.mT]

    exact = products(*(t.double() for t in (x, weight, grad, heads)))
    found = products(x, weight, grad, heads)
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True))
