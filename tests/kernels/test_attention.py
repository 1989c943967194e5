"""Fused attention under oneDNN: the same numbers, and the precision setting as it was found."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compresskit.kernels import attention


@pytest.fixture(params=["highest", "medium"])
def precision(request):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


def given(seq_len: int = 11) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(2, 3, seq_len, 5, generator=generator).requires_grad_() for _ in range(3)]
    mask = torch.zeros(2, 1, 1, seq_len)
    mask[1, ..., 6:] = torch.finfo(torch.float32).min
    return [*states, mask]


def explicit(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    scores = query @ key.mT * query.shape[-1] ** -0.5
    return (scores if mask is None else scores + mask).softmax(-1) @ value


@pytest.mark.parametrize("seq_len", [11, attention.WIDENED_FROM], ids=["as they are", "widened"])
@pytest.mark.parametrize("masked", [True, False])
def test_output_and_gradients_are_those_of_explicit_maps(precision, masked, seq_len):
    results = []
    for form in (attention.fused, explicit):
        *states, mask = given(seq_len)
        context = form(*states, mask if masked else None)
        results.append([context, *torch.autograd.grad(context.sin().sum(), states)])
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


def test_the_precision_in_force_is_back_after_both_passes_also_after_an_error(precision):
    *states, mask = given()
    context = attention.fused(*states, mask)
    assert torch.get_float32_matmul_precision() == precision
    context.sum().backward()
    assert torch.get_float32_matmul_precision() == precision
    with pytest.raises(RuntimeError):
        attention.fused(states[0], states[1][..., :2], states[2], mask)
    assert torch.get_float32_matmul_precision() == precision


def test_while_the_fused_kernel_runs_forward_and_backward_torchs_default_is_in_force(monkeypatch):
    seen = []
    fused = torch.nn.functional.scaled_dot_product_attention

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, query, key, value):
            seen.append(torch.get_float32_matmul_precision())
            ctx.save_for_backward(query)
            return fused(query, key, value)

        @staticmethod
        def backward(ctx, gradient):
            seen.append(torch.get_float32_matmul_precision())
            return gradient, gradient, gradient

    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda query, key, value, **settings: Watched.apply(query, key, value),
    )
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        *states, _ = given()
        attention.fused(*states, None).sum().backward()
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == ["highest", "highest"]


def test_short_rows_with_gradients_and_dropout_take_explicit_maps_on_the_cpu():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert attention.fused_is_faster(16, cpu, gradients=False, dropout=0.0)
    assert not attention.fused_is_faster(16, cpu, gradients=True, dropout=0.0)
    assert attention.fused_is_faster(384, cpu, gradients=True, dropout=0.0)
    assert not attention.fused_is_faster(384, cpu, gradients=True, dropout=0.1)
    assert attention.fused_is_faster(16, gpu, gradients=True, dropout=0.1)
