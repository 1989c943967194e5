"""The Gram matrices of score_mse on a GPU: both of them and their product in one launch, a program per tile."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 64  # columns of P and R per program
ROWS = 32  # positions per step


@triton.jit
def gram_tile(p, r, pp, rr, sums, seq_len, width, TILE: tl.constexpr, ROWS: tl.constexpr):
    """One (TILE, TILE) tile of PᵀP and RᵀR of one head, and the sum of their product.

    p, r: (heads, S, width); pp, rr: (heads, width, width); sums: (heads, tiles, tiles) float64.
    """
    head, row, column = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    i = row * TILE + tl.arange(0, TILE)
    j = column * TILE + tl.arange(0, TILE)
    p_tile = tl.zeros((TILE, TILE), dtype=tl.float32)
    r_tile = tl.zeros((TILE, TILE), dtype=tl.float32)
    start = head.to(tl.int64) * seq_len * width
    for first in range(0, seq_len, ROWS):
        s = first + tl.arange(0, ROWS)
        left = start + s[:, None] * width + i[None, :]
        right = start + s[:, None] * width + j[None, :]
        left_inside = (s[:, None] < seq_len) & (i[None, :] < width)
        right_inside = (s[:, None] < seq_len) & (j[None, :] < width)
        p_tile += tl.dot(
            tl.trans(tl.load(p + left, mask=left_inside, other=0.0)),
            tl.load(p + right, mask=right_inside, other=0.0),
            input_precision="ieee",
        )
        r_tile += tl.dot(
            tl.trans(tl.load(r + left, mask=left_inside, other=0.0)),
            tl.load(r + right, mask=right_inside, other=0.0),
            input_precision="ieee",
        )
    out = head.to(tl.int64) * width * width + i[:, None] * width + j[None, :]
    inside = (i[:, None] < width) & (j[None, :] < width)
    tl.store(pp + out, p_tile, mask=inside)
    tl.store(rr + out, r_tile, mask=inside)
    tiles = tl.num_programs(1)
    total = tl.sum(tl.sum(p_tile.to(tl.float64) * r_tile.to(tl.float64), axis=1), axis=0)
    tl.store(sums + (head * tiles + row) * tiles + column, total)


def grams(p: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """PᵀP and RᵀR, (B, A, d, d), and ⟨PᵀP, RᵀR⟩ over all heads in float64.  p, r: (B, A, S, d).

    Sums are float32 inside a tile, whatever the inputs are.
    """
    batch, heads, seq_len, width = p.shape
    p, r = p.contiguous(), r.contiguous()
    pp, rr = (p.new_empty(batch, heads, width, width) for _ in range(2))
    tiles = triton.cdiv(width, TILE)
    sums = torch.empty(batch * heads, tiles, tiles, dtype=torch.float64, device=p.device)
    gram_tile[(batch * heads, tiles, tiles)](p, r, pp, rr, sums, seq_len, width, TILE=TILE, ROWS=ROWS)
    return pp, rr, sums.sum()
