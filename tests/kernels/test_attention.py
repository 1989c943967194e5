"""Attention without kept maps: the same numbers and gradients, with and without oneDNN, dropout and a mask."""

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


def given(batch: int = 3, seq_len: int = 11, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Queries and keys of 5 columns, values of 7, and a mask: half of the second sequence, all of the third."""
    generator = torch.Generator().manual_seed(0)
    states = [
        torch.randn(batch, 3, seq_len, width, generator=generator, dtype=dtype).requires_grad_() for width in (5, 5, 7)
    ]
    mask = torch.zeros(batch, 1, 1, seq_len, dtype=dtype)
    mask[1:2, ..., seq_len // 2 :] = torch.finfo(dtype).min
    return [*states, mask]


def explicit(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    scores = query @ key.mT * query.shape[-1] ** -0.5
    return (scores if mask is None else scores + mask).softmax(-1) @ value


@pytest.fixture
def two_at_a_time(monkeypatch):
    """Room for two of the three sequences of `given`: the last part is smaller than the first."""
    monkeypatch.setattr(attention, "CACHED_BYTES", 2 * 3 * 11 * 11 * 4)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("shape", [(3, 11), (1, 1), (1, 300)], ids=str)
def test_output_and_gradients_are_those_of_explicit_maps(precision, two_at_a_time, masked, shape):
    results = []
    for form in (attention.fused, explicit):
        *states, mask = given(*shape)
        context = form(*states, mask if masked else None)
        results.append([context, *torch.autograd.grad(context.sin().sum(), states)])
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


def test_in_float64_the_gradients_are_exact(two_at_a_time):
    *states, mask = given(dtype=torch.float64)
    mask.mul_(0).sub_(torch.arange(11.0))  # finite, so that every weight takes part
    assert torch.autograd.gradcheck(lambda *given: attention.InCache.apply(*given, mask, 0.0), states)


def test_under_onednn_a_row_without_real_tokens_has_the_gradients_of_explicit_maps():
    torch.set_float32_matmul_precision("medium")
    try:
        results = []
        for form in (attention.fused, explicit):
            *states, mask = given()
            mask[2] = torch.finfo(torch.float32).min
            context = form(*states, mask)
            results.append([context, *torch.autograd.grad(context.sin().sum(), states)])
    finally:
        torch.set_float32_matmul_precision("highest")
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


def test_dropout_drops_the_same_probabilities_in_both_passes(two_at_a_time):
    """With one-hot values the output shows the dropped probabilities; the gradients must be those of that very map."""
    seq_len, rate = 11, 0.3
    query, key, _, mask = given(dtype=torch.float64)
    value = torch.eye(seq_len, dtype=torch.float64).expand(3, 3, -1, -1).contiguous().requires_grad_()
    torch.manual_seed(5)
    dropped = attention.InCache.apply(query, key, value, mask, rate)
    probabilities = explicit(query, key, value.detach(), mask)
    kept = (dropped != 0).double()
    share = kept[0].mean().item()
    assert abs(share - (1 - rate)) < 4 * (rate * (1 - rate) / kept[0].numel()) ** 0.5, share
    expected = probabilities * kept / (1 - rate)
    torch.testing.assert_close(dropped, expected, rtol=1e-10, atol=1e-12)
    weights = torch.randn(dropped.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = torch.autograd.grad((dropped * weights).sum(), (query, key, value))
    right = torch.autograd.grad((expected @ value * weights).sum(), (query, key, value))
    torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-11)


def test_dropout_follows_torchs_seed_and_differs_from_call_to_call():
    *states, mask = given()
    torch.manual_seed(1)
    first, second = (attention.InCache.apply(*states, mask, 0.5) for _ in range(2))
    torch.manual_seed(1)
    assert torch.equal(first, attention.InCache.apply(*states, mask, 0.5))
    assert not torch.equal(first, second)


def test_no_map_outlives_the_forward_pass():
    """What is kept for the backward pass is what came in."""
    *states, mask = given()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        kept: list[Tensor] = []
        attention.InCache.apply(*states, mask, 0.0)
    assert {tuple(tensor.shape) for tensor in kept} <= {tuple(tensor.shape) for tensor in (*states, mask)}


def test_short_rows_take_explicit_maps_on_the_cpu(precision):
    cpu, gpu, onednn = torch.device("cpu"), torch.device("cuda"), precision == "medium"
    assert attention.fused_is_faster(16, cpu, gradients=False, dropout=0.0) == (not onednn)
    assert attention.fused_is_faster(128, cpu, gradients=False, dropout=0.0)
    assert not attention.fused_is_faster(16, cpu, gradients=True, dropout=0.0)
    assert attention.fused_is_faster(384, cpu, gradients=True, dropout=0.0)
    assert not attention.fused_is_faster(128, cpu, gradients=True, dropout=0.1)
    assert attention.fused_is_faster(384, cpu, gradients=True, dropout=0.1) == onednn
    assert attention.fused_is_faster(16, gpu, gradients=True, dropout=0.1)
