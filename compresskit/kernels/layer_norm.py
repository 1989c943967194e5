"""Residual sum and layer normalisation of feature-major states, in one pass through the cache.

    y[:, t] = (s − mean(s)) / √(var(s) + eps) · weight + bias,   s = x[:, t] + residual[:, t]

Torch normalises along the last axis only; on (H, T) it would take six passes. Letters: H features, T tokens.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from compresskit.kernels.dispatch import choose

TILE = 64  # tokens at a time: their statistics stay in registers, their states in the cache


def add_and_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """x, residual: (H, T); weight, bias: (H,).  Returns (H, T). Without gradients."""
    return choose(IMPLEMENTATIONS, x.device.type)(x, residual, weight, bias, eps)


def reference(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """By torch's row-major form."""
    return F.layer_norm((x + residual).T, weight.shape, weight, bias, eps).T.contiguous()


def compiled(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """By numba, in float32; else as `reference`."""
    kernel = _kernel() if x.dtype == weight.dtype == torch.float32 else None
    if kernel is None:
        return reference(x, residual, weight, bias, eps)
    out = torch.empty_like(x)
    kernel(*(tensor.detach().contiguous().numpy() for tensor in (x, residual, weight, bias)), eps, out.numpy())
    return out


@cache
def _kernel() -> Any:
    """The compiled loop, or None without numba."""
    try:
        import numba
        import numpy as np
    except ImportError:
        return None

    @numba.njit(nogil=True, cache=True, fastmath={"contract", "reassoc"}, error_model="numpy")
    def run(x, residual, weight, bias, eps, out):  # type: ignore[no-untyped-def]
        features, tokens = x.shape
        for start in range(0, tokens, TILE):
            count = min(TILE, tokens - start)
            mean, scale = np.zeros(TILE, np.float32), np.zeros(TILE, np.float32)
            for h in range(features):
                for t in range(count):
                    total = x[h, start + t] + residual[h, start + t]
                    out[h, start + t] = total
                    mean[t] += total
            for t in range(count):
                mean[t] /= features
            for h in range(features):
                for t in range(count):
                    off = out[h, start + t] - mean[t]
                    scale[t] += off * off
            for t in range(count):
                scale[t] = 1 / math.sqrt(scale[t] / features + eps)
            for h in range(features):
                for t in range(count):
                    out[h, start + t] = (out[h, start + t] - mean[t]) * scale[t] * weight[h] + bias[h]

    return run


IMPLEMENTATIONS = {"reference": reference, "torch": reference, "numba": compiled}
