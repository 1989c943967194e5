"""The numba version of sparse_linear.py: products of a pruned weight on the CPU, compiled on first use.

Activations are worked on in tiles of up to 128 consecutive tokens. The sums of one output row over a tile stay in
registers while each of the row's weights is multiplied with the tile row of its feature; the tile rows lie in the
second-level cache (benchmarks/sparse_linear.py has the figures). Compiled code is kept on disk, beside this file or in
the user's cache folder, and made anew when this file changes.

Letters: N output features (rows of the weight), K input features (its columns), T tokens.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from llvmlite.binding import get_host_cpu_features
from numba import njit
from torch import Tensor

from compresskit.kernels.numba_vectors import (
    BLOCK,
    add,
    add_dots,
    copy_element,
    fma,
    gelu,
    load,
    load_int32,
    load_rows,
    load_tile,
    load_uint16,
    prefetch,
    splat,
    store,
    store_tile,
    transpose_block,
    zeros,
)

TILES = (128, 64, 32, 16)  # tokens; the last is also the room for fewer
AHEAD = 12  # nonzeros: how early the cache is asked for activations, 9 % faster than without
PARALLEL = 4_000_000  # multiply-adds; fewer are done before a second thread has begun


def linear(
    x: Tensor,
    values: Tensor,
    indices: Tensor,
    row_pointers: Tensor,
    bias: Tensor | None,
    shape: Sequence[int],
    *,
    gelu: bool,
    feature_major: bool,
) -> Tensor:
    """The weight's product with x, (K, T) if feature_major else (T, K), in float32 or bfloat16.

    values, bias: float32; values, indices and row_pointers as in SparseWeight.  Returns (N, T) or (T, N), of x's dtype.
    """
    x, bias = x.contiguous(), None if bias is None else bias.contiguous()
    rows, columns = shape
    block, element = values.shape[1], x.element_size()
    row_blocks = rows // block
    tokens = x.shape[1 if feature_major else 0]
    out = empty_output((rows, tokens) if feature_major else (tokens, rows), x.dtype)
    parts = column_blocks(columns, row_blocks, len(row_pointers))
    x_room = out_room = sums = out
    if not feature_major or tokens not in TILES:
        x_room, out_room = (x.new_empty(features * TILES[0]) for features in (parts[0].stop, rows))
    if len(parts) > 1:
        sums = torch.empty(rows * TILES[0])
    weight = (values.data_ptr(), indices.data_ptr(), 0 if bias is None else bias.data_ptr(), sums.data_ptr())
    pointers, last, work = row_pointers.data_ptr(), parts[-1], values.numel() * TILES[0] // len(parts)

    for start, tile, multiply in products(tokens, SUMS[block], block, x.dtype):
        whole = feature_major and start + tile <= tokens
        to = (out.data_ptr() + start * element, tokens * element) if whole else (out_room.data_ptr(), tile * element)
        for part in parts:
            x_tile = tile_of(x, part, start, tile, feature_major, x_room)
            step = (row_blocks, part.start == 0, part is last, part is last and gelu)
            in_chunks(multiply, (x_tile, *weight, pointers + part.pointers, *to, *step), row_blocks, work)
        if not feature_major:
            goal = (out.data_ptr() + start * rows * element, rows * element)
            transposition(element)(*to, *goal, rows, min(tile, tokens - start))
        elif not whole:
            out[:, start:] = matrix(out_room, rows, tile)[:, : tokens - start]
    return out


def sampled_product(
    upstream: Tensor,
    x: Tensor,
    indices: Tensor,
    row_pointers: Tensor,
    shape: Sequence[int],
    block: int,
    *,
    feature_major: bool,
) -> Tensor:
    """Σ upstream·x over the tokens, only where the weight has values: their gradient, (len(indices), block) in float32.

    upstream, x: (N, T) and (K, T) if feature_major, else (T, N) and (T, K).
    """
    upstream, x = (tensor.float().contiguous() for tensor in (upstream, x))
    rows, columns = shape
    parts = column_blocks(columns, rows // block, len(row_pointers))
    x_room, upstream_room = (torch.empty(features * TILES[0]) for features in (parts[0].stop, rows))
    found = torch.zeros(len(indices), block)
    weight, all_rows = (indices.data_ptr(), found.data_ptr()), ColumnBlock(0, rows, 0)
    pointers, work = row_pointers.data_ptr(), found.numel() * TILES[0] // len(parts)
    for start, tile in tiles(x.shape[1 if feature_major else 0]):
        accumulate = products_of_pairs(tile, min(tile, SUMS[block]), block)
        upstream_tile = tile_of(upstream, all_rows, start, tile, feature_major, upstream_room)
        for part in parts:
            x_tile = tile_of(x, part, start, tile, feature_major, x_room)
            in_chunks(accumulate, (upstream_tile, x_tile, *weight, pointers + part.pointers), rows // block, work)
    return found


class ColumnBlock(NamedTuple):
    """Features from `start` to `stop`; their row pointers begin `pointers` bytes after the first."""

    start: int
    stop: int
    pointers: int


@cache
def column_blocks(columns: int, row_blocks: int, pointers: int) -> list[ColumnBlock]:
    """All blocks of columns of a weight with so many columns, blocks of rows, and row pointers."""
    count = (pointers - 1) // row_blocks
    width = -(-columns // count)
    return [ColumnBlock(i * width, min((i + 1) * width, columns), 4 * i * row_blocks) for i in range(count)]


def tiles(tokens: int) -> Iterator[tuple[int, int]]:
    """First token and size of each tile; only the last may reach beyond the end."""
    start = 0
    while start < tokens:
        tile = next((tile for tile in TILES if tile <= tokens - start), TILES[-1])
        yield start, tile
        start += tile


def tile_of(states: Tensor, part: ColumnBlock, start: int, tile: int, feature_major: bool, room: Tensor) -> int:
    """Address of (features, tile) of (K, T) or (T, K), contiguous, with zeros beyond the last token; made in room."""
    tokens, element = states.shape[1 if feature_major else 0], states.element_size()
    source, stride = states.data_ptr(), states.stride(0) * element
    if feature_major and tile == tokens:
        return source + part.start * stride
    target, features = room.data_ptr(), part.stop - part.start
    if start + tile > tokens:
        room.zero_()
    if not feature_major:
        place = source + start * stride + part.start * element
        transposition(element)(place, stride, target, tile * element, min(tile, tokens - start), features)
    elif start + tile > tokens:
        matrix(room, features, tile)[:, : tokens - start] = states[part.start : part.stop, start:]
    else:
        packing(tile * element)(source + part.start * stride + start * element, stride, target, features)
    return target


def matrix(room: Tensor, rows: int, columns: int) -> Tensor:
    """The first rows·columns numbers of room."""
    return room.as_strided((rows, columns), (columns, 1))


def empty_output(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Memory for the result. Above 32 MiB torch's comes in new pages of 4 KiB at every call, and to map them takes as
    long as the product; numpy asks for large pages, a fifth of the time.
    """
    size = shape[0] * shape[1] * dtype.itemsize
    if size <= 32 << 20:
        return torch.empty(shape, dtype=dtype)
    memory = torch.from_numpy(np.empty(size + 64, np.uint8))
    aligned = -memory.data_ptr() % 64
    return memory[aligned : aligned + size].view(dtype).view(shape)


def in_chunks(kernel: Callable[..., None], given: Sequence[Any], rows: int, work: int) -> None:
    """kernel(*given, first, last) over all rows, a chunk to each of torch's threads if so many multiply-adds pay it."""
    threads = torch.get_num_threads()
    if threads == 1 or work < PARALLEL:
        return kernel(*given, 0, rows)
    bounds = [rows * i // threads for i in range(threads + 1)]
    others = [pool(os.getpid(), threads - 1).submit(kernel, *given, *bounds[i : i + 2]) for i in range(1, threads)]
    kernel(*given, *bounds[:2])
    for other in others:
        other.result()


@cache
def pool(process: int, workers: int) -> ThreadPoolExecutor:
    """Threads of this process: a forked one inherits none."""
    return ThreadPoolExecutor(workers, "sparse_linear")


@lru_cache(maxsize=4096)
def products(tokens: int, sums: int, block: int, dtype: torch.dtype) -> list[tuple[int, int, Any]]:
    """First token, size and kernel of every tile."""
    return [
        (start, tile, product(tile, min(tile, sums), block, dtype == torch.bfloat16)) for start, tile in tiles(tokens)
    ]


@cache
def product(tile: int, lanes: int, block: int, bfloat16: bool) -> Any:
    """The compiled product for tiles of `tile` tokens: the sums of `lanes` tokens by `block` rows stay in registers."""
    token_bytes = 2 if bfloat16 else 4
    row_bytes, size = tile * token_bytes, lanes * block

    @njit(nogil=True, cache=True)
    def multiply(
        x, values, indices, bias, sums, pointers, out, out_stride, row_blocks, is_first, is_last, activate, begin, end
    ):
        last = load_int32(pointers + 4 * row_blocks) - 1
        for row in range(begin, end):
            start, stop = load_int32(pointers + 4 * row), load_int32(pointers + 4 * (row + 1))
            for token in range(0, tile, lanes):
                kept = sums + 4 * block * (row * tile + token)
                acc = zeros(size) if is_first else load(size, kept)
                for p in range(start, stop):
                    if lanes == tile:  # else a row's other tokens have brought the line
                        ahead = x + row_bytes * load_uint16(indices + 2 * min(p + AHEAD, last))
                        prefetch(ahead)
                        prefetch(ahead + row_bytes // 2)
                    column = x + row_bytes * load_uint16(indices + 2 * p) + token_bytes * token
                    weight = splat(lanes, block, values + 4 * block * p)
                    acc = fma(weight, load_tile(lanes, block, bfloat16, column), acc)
                if not is_last:
                    store(kept, acc)
                else:
                    if bias:
                        acc = add(acc, splat(lanes, block, bias + 4 * block * row))
                    if activate:
                        acc = gelu(acc)
                    store_tile(lanes, bfloat16, out + block * row * out_stride + token_bytes * token, out_stride, acc)

    return multiply


@cache
def products_of_pairs(tile: int, lanes: int, block: int) -> Any:
    """The compiled sampled product of two tiles of `tile` tokens."""

    @njit(nogil=True, cache=True)
    def accumulate(upstream, x, indices, found, pointers, begin, end):
        for row in range(begin, end):
            start, stop = load_int32(pointers + 4 * row), load_int32(pointers + 4 * (row + 1))
            for token in range(0, tile, lanes):
                rows = load_rows(lanes, block, upstream + 4 * (tile * block * row + token), 4 * tile)
                for p in range(start, stop):
                    column = x + 4 * (tile * load_uint16(indices + 2 * p) + token)
                    add_dots(lanes, found + 4 * block * p, rows, load_tile(lanes, block, False, column))

    return accumulate


@cache
def packing(tile_bytes: int) -> Any:
    """The compiled copy of rows of `tile_bytes` bytes, a stride apart, to places side by side."""
    size, distance = tile_bytes // 4, 16

    @njit(nogil=True, cache=True)
    def pack(source, stride, target, rows):
        for _ in range(rows):
            for line in range(0, tile_bytes, 128):
                prefetch(source + distance * stride + line)
            store(target, load(size, source))
            source += stride
            target += tile_bytes

    return pack


@cache
def transposition(element_bytes: int) -> Any:
    """The compiled transposition of elements of 2 or 4 bytes."""

    @njit(nogil=True, cache=True)
    def turn(source, source_stride, target, target_stride, rows, columns):
        whole_rows, whole_columns = rows - rows % BLOCK, columns - columns % BLOCK
        for column in range(0, whole_columns, BLOCK):
            for row in range(0, whole_rows, BLOCK):
                place = source + row * source_stride + column * element_bytes
                goal = target + column * target_stride + row * element_bytes
                transpose_block(element_bytes, place, source_stride, goal, target_stride)
        for row in range(rows):
            for column in range(whole_columns if row < whole_rows else 0, columns):
                place = source + row * source_stride + column * element_bytes
                copy_element(element_bytes, place, target + column * target_stride + row * element_bytes)

    return turn


def _sums() -> dict[int, int]:
    """Tokens whose sums stay in registers, by rows that share columns; measured where there is AVX-512."""
    features = get_host_cpu_features()
    if features.get("avx512f"):  # 32 registers of 16 floats
        return {1: 128, 4: 64, 8: 32, 16: 16}
    return {1: 64, 4: 16, 8: 8, 16: 4}  # 16 of 8 floats, or 32 of 4


SUMS = _sums()
