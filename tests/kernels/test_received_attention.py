"""How much attention each token receives: the sums of the maps' columns, in every version, beside the same context."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compresskit.kernels import attention
from compresskit.kernels.received_attention import IMPLEMENTATIONS, reference

SHAPES = [(3, 4, 11, 5), (1, 1, 1, 1), (2, 3, 130, 16), (5, 2, 33, 8)]  # B, A, S, D


def given(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], Tensor, Tensor]:
    """States, the additive mask, and the queries that count; the last of several sequences has no real token."""
    generator = torch.Generator().manual_seed(sum(shape))
    states = [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for _ in range(3)]
    real = torch.arange(shape[2]) < torch.tensor([shape[2], shape[2] // 2 + 1, 1, 3, 0])[: shape[0], None]
    return states, (~real)[:, None, None, :].to(dtype) * torch.finfo(dtype).min, real.to(dtype)


def results(form, states: list[Tensor], mask: Tensor | None, queries: Tensor) -> list[Tensor]:
    context, received = form(*states, mask, queries)
    return [context, received, *torch.autograd.grad(context.sin().sum(), states)]


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", sorted(IMPLEMENTATIONS))
def test_context_sums_and_gradients_are_those_of_the_definition(monkeypatch, name, shape, masked):
    monkeypatch.setattr(attention, "CACHED_BYTES", 2 * shape[1] * shape[2] ** 2 * 8)  # two sequences at a time
    states, mask, queries = given(shape)
    pair = (results(form, states, mask if masked else None, queries) for form in (IMPLEMENTATIONS[name], reference))
    torch.testing.assert_close(*pair)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", sorted(IMPLEMENTATIONS))
def test_every_query_that_counts_gives_away_one_for_each_head(name, shape):
    states, mask, queries = given(shape)
    _, received = IMPLEMENTATIONS[name](*states, mask, queries)
    torch.testing.assert_close(received.sum(-1), queries.sum(-1) * shape[1])
    assert not received.requires_grad


@pytest.mark.parametrize("name", sorted(IMPLEMENTATIONS))
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # float32: sums of A·S = 390 probabilities; bfloat16: each of them is rounded to 8 bits, the sum is not
    [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)],
)
def test_low_precision_sums_are_float32_and_near_the_exact_ones(name, dtype, tolerance):
    states, mask, queries = given((2, 3, 130, 16))
    lower = [states_.detach().to(dtype) for states_ in states]
    low_mask = (mask < 0).to(dtype) * torch.finfo(dtype).min
    _, received = IMPLEMENTATIONS[name](*lower, low_mask, queries.to(dtype))
    _, exact = reference(*(s.double() for s in lower), mask, queries)
    assert received.dtype == torch.float32
    torch.testing.assert_close(received.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", sorted(IMPLEMENTATIONS))
def test_what_drops_out_is_received_all_the_same(name):
    states, mask, queries = given((2, 3, 130, 16))
    torch.manual_seed(0)
    context, received = IMPLEMENTATIONS[name](*states, mask, queries, 0.5)
    plain, exact = reference(*states, mask, queries)
    torch.testing.assert_close(received, exact)
    assert not torch.allclose(context, plain, atol=0.1)


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("shape", [*SHAPES, (2, 2, 64, 8), (1, 3, 70, 13)], ids=str)
@pytest.mark.parametrize("name", sorted(attention.FEATURE_MAJOR))
def test_feature_major_attention_sums_the_same(monkeypatch, name, shape, counted):
    monkeypatch.setenv("COMPRESSKIT_KERNELS", name)
    states, mask, queries = given(shape)
    mask, queries = (mask < 0).float() * torch.finfo(torch.float32).min, queries.float()
    batch, heads, seq_len, _ = shape
    turned = [s.detach().float().permute(1, 3, 0, 2).flatten(2).flatten(0, 1) for s in states]
    room = torch.empty(heads * seq_len**2)
    context, received = attention.feature_major(*turned, heads, mask, batch, room, queries if counted else None)
    right, sums = reference(*(s.float() for s in states), mask, queries)
    torch.testing.assert_close(context.unflatten(0, (heads, -1)).unflatten(2, (batch, -1)).permute(2, 0, 3, 1), right)
    if counted:
        torch.testing.assert_close(received, sums, rtol=1e-5, atol=1e-5)
    else:
        assert received is None
