"""oneDNN for float32 products only where its error is as small as float32's own."""

from __future__ import annotations

import pytest
import torch

from compresskit.kernels import float32
from compresskit.kernels.float32 import MAX_RELATIVE_ERROR, choose_float32_matmul, relative_error


@pytest.fixture(autouse=True)
def setting_of_torch():
    """Every test begins at torch's default and leaves the process as it was."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def test_the_default_is_as_exact_as_float32_can_be():
    assert 1e-8 < relative_error() < 1e-6


def test_what_is_chosen_here_is_in_force_and_its_error_is_below_the_limit():
    chosen = choose_float32_matmul()
    assert torch.get_float32_matmul_precision() == chosen.precision
    assert chosen.relative_error < MAX_RELATIVE_ERROR
    assert chosen.relative_error == relative_error()


def test_the_check_sees_products_rounded_to_bfloat16(monkeypatch):
    matmul = torch.Tensor.__matmul__

    def rounded(a, b):
        return matmul(a, b) if a.dtype == torch.float64 else matmul(a.bfloat16(), b.bfloat16()).float()

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    assert relative_error() > 100 * MAX_RELATIVE_ERROR


@pytest.mark.parametrize(
    ("error", "precision", "reason"),
    [
        (3.7e-7, "medium", "oneDNN: error 3.7e-07 is below 2e-06"),
        (2e-6, "highest", "oneDNN's error 2.0e-06 reaches 2e-06"),
        (2e-3, "highest", "oneDNN's error 2.0e-03 reaches 2e-06"),
        (float("nan"), "highest", "oneDNN's error nan reaches 2e-06"),
    ],
)
def test_the_switch_is_kept_only_if_its_error_is_small(monkeypatch, error, precision, reason):
    def measured() -> float:
        return error if torch.get_float32_matmul_precision() == "medium" else 2.5e-7

    monkeypatch.setattr(float32, "relative_error", measured)
    chosen = choose_float32_matmul()
    assert (chosen.precision, chosen.reason) == (precision, reason)
    assert torch.get_float32_matmul_precision() == precision
    assert chosen.relative_error == measured()


def test_the_check_disturbs_no_random_numbers():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    choose_float32_matmul()
    assert torch.equal(torch.rand(3), expected)
