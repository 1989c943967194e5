"""Residual sum and layer normalisation of feature-major states.

    y[:, t] = (s − mean(s)) / √(var(s) + eps) · weight + bias,   s = x[:, t] + residual[:, t]

Torch normalises along the last axis only. Letters: H features, T tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from compresskit.kernels.dispatch import choose


def add_and_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """x, residual: (H, T); weight, bias: (H,).  Returns (H, T). Without gradients."""
    return choose(IMPLEMENTATIONS, x.device.type)(x, residual, weight, bias, eps)


def reference(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """By torch's row-major form."""
    return F.layer_norm((x + residual).T, weight.shape, weight, bias, eps).T.contiguous()


def compiled(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """By numba in float32; where that is missing, or in another dtype, as `reference`."""
    if x.dtype != torch.float32:
        return reference(x, residual, weight, bias, eps)
    try:
        from compresskit.kernels.numba_layer_norm import add_and_norm as version
    except ImportError:  # sparse_linear warns of it
        version = reference
    return version(x, residual, weight, bias, eps)


IMPLEMENTATIONS = {"reference": reference, "torch": reference, "numba": compiled}
