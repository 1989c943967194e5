"""The GPU version of the attention loss in Triton's interpreter on the CPU: value and gradients of the definition."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton; `make test-long` installs it"),
]

PROGRAM = """
import torch
from compresskit.kernels.score_mse import IMPLEMENTATIONS, reference
from compresskit.kernels.triton.score_mse import grams

generator = torch.Generator().manual_seed(0)
for B, A, S, ds, dt in [(2, 3, 16, 26, 64), (1, 1, 1, 1, 1), (2, 2, 33, 8, 8), (1, 2, 70, 40, 100)]:
    given = [torch.randn(B, A, S, d, generator=generator) for d in (ds, ds, dt, dt)]
    real = (torch.arange(S) < max(1, S - 5)).float()[None, None, :, None].expand(B, 1, S, 1)
    for learns in given[:2]:
        learns.requires_grad_()
    for masks in ((), (real, real), (None, real)):
        exact = [t.detach().double().requires_grad_(t.requires_grad) for t in given]
        right = reference(*exact, *masks)
        got = IMPLEMENTATIONS["triton"](*given, *masks)
        pairs = [(got, right), *zip(torch.autograd.grad(got, given[:2]), torch.autograd.grad(right, exact[:2]))]
        for ours, expected in pairs:
            error = (ours.double() - expected).norm() / expected.norm()
            assert error < 2e-6, (B, A, S, ds, dt, len(masks), float(error))
    p = torch.randn(B, A, S, ds + dt, generator=generator)
    pp, rr, value = grams(p, p)
    torch.testing.assert_close(pp, p.mT @ p, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(value, (pp.double() * rr.double()).sum())
print("equal")
"""


def test_the_triton_version_is_the_definition_at_odd_sizes_and_with_masks():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "equal"
