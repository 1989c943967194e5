"""Attention-score loss: every version against its definition, and the definition against TinyBERT's loss on maps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compresskit.kernels import score_mse as module
from compresskit.kernels.score_mse import IMPLEMENTATIONS, reference, score_mse

SHAPES = [(2, 12, 16, 26, 64), (1, 1, 1, 1, 1), (3, 4, 33, 8, 8), (2, 2, 70, 26, 40), (1, 3, 5, 64, 7)]
# Triton has no float64 products in its interpreter's dot on every version; it is held to float32 below
EXACT = sorted(name for name in IMPLEMENTATIONS if name != "triton")


def four(B: int, A: int, S: int, ds: int, dt: int, dtype=torch.float64, noise: float | None = None) -> list[Tensor]:
    """Queries and keys of student and teacher; noise: how far the student is from the teacher (ds = dt then)."""
    generator = torch.Generator().manual_seed(0)
    q_t, k_t = (torch.randn(B, A, S, dt, dtype=dtype, generator=generator) for _ in range(2))
    if noise is None:
        q_s, k_s = (torch.randn(B, A, S, ds, dtype=dtype, generator=generator) for _ in range(2))
    else:
        q_s, k_s = (t + noise * torch.randn(t.shape, dtype=dtype, generator=generator) for t in (q_t, k_t))
    return [q_s.requires_grad_(), k_s.requires_grad_(), q_t, k_t]


def value_and_gradients(loss: Tensor, given: list[Tensor]) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, given[:2])]


def ragged(B: int, S: int) -> Tensor:
    lengths = torch.linspace(S, max(1, S // 3), B).long()
    return (torch.arange(S) < lengths[:, None]).long()


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradients_match_the_definition(name, shape):
    given = four(*shape)
    got, expected = (value_and_gradients(f(*given), given) for f in (IMPLEMENTATIONS[name], reference))
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("padded_queries", [True, False])
@pytest.mark.parametrize("name", EXACT)
def test_masked_keys_count_as_equal_and_padded_queries_as_asked(name, padded_queries, monkeypatch):
    monkeypatch.setenv("COMPRESSKIT_KERNELS", name)
    given = four(3, 2, 9, 4, 6)
    mask = ragged(3, 9)
    got = value_and_gradients(score_mse(*given, mask, padded_queries), given)
    student, teacher = (q @ k.mT / q.shape[-1] ** 0.5 for q, k in (given[:2], given[2:]))
    pairs = mask[:, None, None, :].expand(-1, 2, 9, -1).bool()
    if not padded_queries:
        pairs = pairs & mask[:, None, :, None].bool()
    squared = (student - teacher).square().masked_fill(~pairs, 0).sum()
    expected = value_and_gradients(squared / (3 * 2 * 9 * 9 if padded_queries else pairs.sum()), given)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_without_a_mask_all_pairs_are_real():
    given = four(2, 3, 7, 4, 5)
    everything = torch.ones(2, 7, dtype=torch.long)
    losses = [score_mse(*given), score_mse(*given, everything), score_mse(*given, everything, padded_queries=True)]
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(losses[0], losses[2])


def test_a_row_without_any_real_token_and_a_batch_of_such_rows_stay_finite():
    given = four(2, 2, 5, 3, 3)
    for mask in (torch.tensor([[1, 1, 1, 0, 0], [0] * 5]), torch.zeros(2, 5, dtype=torch.long)):
        for padded_queries in (True, False):
            found = value_and_gradients(score_mse(*given, mask, padded_queries), given)
            assert all(tensor.isfinite().all() for tensor in found)


def test_padding_changes_nothing_when_padded_queries_are_left_out():
    given = four(2, 2, 6, 3, 4)
    padded = [torch.nn.functional.pad(t, (0, 0, 0, 5), value=7.0) for t in given]
    mask = torch.ones(2, 6, dtype=torch.long)
    longer = torch.nn.functional.pad(mask, (0, 5))
    torch.testing.assert_close(score_mse(*padded, longer), score_mse(*given, mask))


@pytest.mark.parametrize("noise", [1.0, 0.3, 0.1])
def test_in_float32_the_value_holds_to_1e_5_while_it_is_above_1_percent_of_the_energy_and_the_gradients_to_1e_5(noise):
    exact = four(8, 12, 128, 64, 64, noise=noise)
    energy = (exact[2] @ exact[3].mT / 8).square().mean()
    expected = value_and_gradients(score_mse(*exact), exact)
    assert expected[0] / energy > 1e-2
    given = [t.detach().float().requires_grad_(t.requires_grad) for t in exact]
    got = value_and_gradients(IMPLEMENTATIONS["torch"](*given) / (8 * 12 * 128 * 128), given)
    for ours, right in zip(got, expected, strict=True):
        assert (ours.double() - right).norm() / right.norm() < 1e-5


def test_equal_models_have_no_loss_and_never_a_negative_one():
    q, k = torch.randn(2, 2, 3, 40, 16, generator=torch.Generator().manual_seed(1))
    assert 0 <= float(score_mse(q, k, q, k)) < 1e-5


def test_only_the_student_learns():
    given = [t.detach().requires_grad_() for t in four(1, 2, 4, 3, 3)]
    score_mse(*given, torch.tensor([[1, 1, 1, 0]])).backward()
    assert given[0].grad is not None
    assert given[1].grad is not None
    assert given[2].grad is None
    assert given[3].grad is None


@pytest.mark.parametrize("wrong", range(4))
def test_shapes_that_do_not_belong_together_are_refused(wrong):
    given = four(2, 2, 5, 3, 4)
    given[wrong] = given[wrong][:1]
    with pytest.raises(ValueError, match="batch, heads and length must agree"):
        score_mse(*given)


def test_a_version_is_chosen_by_name_and_an_unknown_name_is_refused(monkeypatch):
    called = []
    monkeypatch.setitem(module.IMPLEMENTATIONS, "mine", lambda *given: called.append(1) or reference(*given))
    monkeypatch.setenv("COMPRESSKIT_KERNELS", "mine")
    score_mse(*four(1, 1, 2, 2, 2))
    assert called
    monkeypatch.setenv("COMPRESSKIT_KERNELS", "fastest")
    with pytest.raises(ValueError, match="COMPRESSKIT_KERNELS is 'fastest'; there are "):
        score_mse(*four(1, 1, 2, 2, 2))
