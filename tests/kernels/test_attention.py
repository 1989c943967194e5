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


# ---- states with a row for each feature


@pytest.fixture(params=sorted(attention.FEATURE_MAJOR))
def version(request, monkeypatch):
    monkeypatch.setenv("COMPRESSKIT_KERNELS", request.param)
    return request.param


def turned(heads: int, rows: int, seq_len: int, batch: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Queries, keys and values (heads·rows, batch·seq_len), of large scores."""
    generator = torch.Generator().manual_seed(rows)
    return [torch.randn(heads * rows, batch * seq_len, generator=generator, dtype=dtype) * 2 for _ in range(3)]


def in_float64(states: list[Tensor], heads: int, mask: Tensor | None, batch: int) -> Tensor:
    query, key, value = (x.double().unflatten(0, (heads, -1)).unflatten(-1, (batch, -1)) for x in states)
    query, key, value = (x.permute(2, 0, 3, 1) for x in (query, key, value))
    context = explicit(query, key, value, None if mask is None else mask.double())
    return context.permute(1, 3, 0, 2).reshape(states[0].shape)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(
    ("heads", "rows", "seq_len", "batch"),
    [(1, 1, 1, 1), (2, 64, 128, 1), (3, 5, 37, 3), (4, 8, 32, 2), (1, 13, 65, 1), (2, 16, 7, 4)],
)
def test_feature_major_states_attend_as_row_major_ones_do(version, heads, rows, seq_len, batch, masked):
    states, mask = turned(heads, rows, seq_len, batch), torch.zeros(batch, 1, 1, seq_len)
    mask[0, ..., seq_len // 2 + 1 :] = torch.finfo(torch.float32).min
    mask[1:2] = torch.finfo(torch.float32).min  # no token at all: every one counts as much
    mask = mask if masked else None
    found, _ = attention.feature_major(*states, heads, mask, batch, torch.full((heads, seq_len, seq_len), torch.nan))
    torch.testing.assert_close(found.double(), in_float64(states, heads, mask, batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_feature_major_attention_keeps_other_dtypes(version, dtype):
    states = turned(2, 8, 9, 2, dtype)
    found, _ = attention.feature_major(*states, 2, None, 2, torch.empty(2, 9, 9, dtype=dtype))
    assert found.dtype == dtype
    tolerance = 1e-12 if dtype == torch.float64 else 0.1
    torch.testing.assert_close(found.double(), in_float64(states, 2, None, 2), rtol=0, atol=tolerance)


def test_heads_are_shared_out_to_threads_with_the_same_numbers(version, monkeypatch):
    if version == "numba":
        compiled = pytest.importorskip("compresskit.kernels.numba_attention", reason="no numba", exc_type=ImportError)
        monkeypatch.setattr(compiled, "PARALLEL", 1)
    states, room = turned(5, 64, 128, 1), torch.empty(5, 128, 128)
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 8):
            torch.set_num_threads(number)
            found.append(attention.feature_major(*states, 5, None, 1, room)[0])
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0 if version == "numba" else 1e-5)


def test_what_is_not_a_number_stays_with_its_query(version):
    states = turned(1, 8, 40, 1)
    states[0][3, 17] = torch.nan
    found, _ = attention.feature_major(*states, 1, None, 1, torch.empty(1, 40, 40))
    assert found.isnan().any(0).nonzero().flatten().tolist() == [17]
