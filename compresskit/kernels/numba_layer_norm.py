"""The numba version of layer_norm.py: tiles of tokens whose statistics stay in registers, their states in the cache."""

from __future__ import annotations

import math
from typing import Any

import torch
from numba import njit
from torch import Tensor

from compresskit.kernels.numba_vectors import fma, load, prefetch, splat, store, zeros

LANES = 64  # tokens at a time
AHEAD = 8  # features: rows of many tokens lie pages apart, where the CPU does not look ahead by itself
SCRATCH = 2 * LANES + 2  # sums of squares, scales, and the constants 1 and −1/H


def add_and_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """As `layer_norm.add_and_norm`, in float32."""
    features, tokens = x.shape
    if tokens % LANES:  # the last tile reaches beyond the end
        room = -tokens % LANES
        x, residual = (torch.nn.functional.pad(states, (0, room)) for states in (x, residual))
    x, residual, weight, bias = (tensor.contiguous() for tensor in (x, residual, weight, bias))
    out, tile = torch.empty_like(x), torch.empty(features * LANES + SCRATCH)
    places = [tensor.data_ptr() for tensor in (x, residual, weight, bias, out, tile)]
    _run(*places, tile.numpy()[-SCRATCH:], features, x.shape[1], eps)
    return out[:, :tokens].contiguous() if out.shape[1] != tokens else out


def _normalise(x, residual, weight, bias, out, tile, scratch, features, tokens, eps):
    stride = 4 * tokens
    sums = tile + 4 * features * LANES
    scales = sums + 4 * LANES
    scratch[2 * LANES], scratch[2 * LANES + 1] = 1.0, -1.0 / features
    one = splat(LANES, 1, scales + 4 * LANES)
    minus_share = splat(LANES, 1, scales + 4 * LANES + 4)
    for start in range(0, stride, 4 * LANES):
        total = zeros(LANES)
        for h in range(features):
            place = start + h * stride
            prefetch(x + place + AHEAD * stride)
            prefetch(residual + place + AHEAD * stride)
            state = fma(one, load(LANES, x + place), load(LANES, residual + place))
            store(tile + 4 * LANES * h, state)
            total = fma(one, state, total)
        squares = zeros(LANES)
        for h in range(features):
            off = fma(minus_share, total, load(LANES, tile + 4 * LANES * h))
            squares = fma(off, off, squares)
        store(sums, squares)
        for t in range(LANES):
            scratch[LANES + t] = 1 / math.sqrt(scratch[t] / features + eps)
        scale = load(LANES, scales)
        for h in range(features):
            off = fma(minus_share, total, load(LANES, tile + 4 * LANES * h))
            scaled = fma(off, scale, zeros(LANES))
            store(out + start + h * stride, fma(scaled, splat(LANES, 1, weight + 4 * h), splat(LANES, 1, bias + 4 * h)))


_run: Any = njit(nogil=True, cache=True)(_normalise)
