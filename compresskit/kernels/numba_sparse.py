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
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache, partial
from typing import Any

import torch
from llvmlite.binding import get_host_cpu_features
from numba import njit
from torch import Tensor

from compresskit.kernels.numba_vectors import (
    BLOCK,
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

    values, bias: float32; the other parts of the weight as in SparseWeight.  Returns (N, T) or (T, N), of x's dtype.
    """
    x, values, indices, row_pointers = (tensor.contiguous() for tensor in (x, values, indices, row_pointers))
    bias = None if bias is None else bias.contiguous()
    rows, columns = shape
    block = values.shape[1]
    row_blocks, column_blocks = rows // block, (len(row_pointers) - 1) * block // rows
    tokens = x.shape[1 if feature_major else 0]
    out = x.new_empty((rows, tokens) if feature_major else (tokens, rows))

    def work_on(start: int, tile: int) -> None:
        count = min(tile, tokens - start)
        x_tile = tile_of(x, start, tile, feature_major)
        in_place = feature_major and count == tile
        out_tile = out[:, start:] if in_place else x.new_empty(rows, tile)
        earlier = torch.empty(rows * tile if column_blocks > 1 else 0)
        multiply = product(tile, min(tile, SUMS[block]), block, int(x.dtype == torch.bfloat16))
        tensors = (x_tile, values, indices, row_pointers, earlier, out_tile)
        addresses = [tensor.data_ptr() for tensor in tensors]
        sizes = (out_tile.stride(0) * x.element_size(), row_blocks, column_blocks, -(-columns // column_blocks))
        bias_address = 0 if bias is None else bias.data_ptr()
        in_chunks(lambda *chunk: multiply(*addresses, bias_address, *sizes, *chunk, gelu), row_blocks, x_tile, values)
        if feature_major and not in_place:
            out[:, start : start + count] = out_tile[:, :count]
        elif not feature_major:
            transpose(out_tile[:, :count], out[start : start + count])

    for start, tile in tiles(tokens):
        work_on(start, tile)
    return out


def sampled_product(
    upstream: Tensor, x: Tensor, indices: Tensor, row_pointers: Tensor, shape: Sequence[int], block: int, *, feature_major: bool
) -> Tensor:
    """Σ over tokens of upstream·x, only where the weight has values: their gradient, (len(indices), block) in float32.

    upstream, x: (N, T) and (K, T) if feature_major, else (T, N) and (T, K).
    """
    upstream, x = (tensor.float().contiguous() for tensor in (upstream, x))
    indices, row_pointers = indices.contiguous(), row_pointers.contiguous()
    rows, columns = shape
    row_blocks, column_blocks = rows // block, (len(row_pointers) - 1) * block // rows
    sums = torch.zeros(len(indices), block)
    for start, tile in tiles(x.shape[1 if feature_major else 0]):
        tensors = [tile_of(states, start, tile, feature_major) for states in (upstream, x)]
        addresses = [tensor.data_ptr() for tensor in (*tensors, indices, row_pointers, sums)]
        accumulate = products_of_pairs(tile, min(tile, SUMS[block]), block)
        sizes = (row_blocks, column_blocks, -(-columns // column_blocks))
        in_chunks(partial(accumulate, *addresses, *sizes), row_blocks, tensors[1], sums)
    return sums


def tiles(tokens: int) -> Iterator[tuple[int, int]]:
    """First token and size of each tile; only the last may reach beyond the end."""
    start = 0
    while start < tokens:
        tile = next((tile for tile in TILES if tile <= tokens - start), TILES[-1])
        yield start, tile
        start += tile


def tile_of(states: Tensor, start: int, tile: int, feature_major: bool) -> Tensor:
    """(features, tile) of (features, T) or (T, features), contiguous, with zeros beyond the last token."""
    tokens = states.shape[1 if feature_major else 0]
    if feature_major and tile == tokens:
        return states
    stop = min(start + tile, tokens)
    found = states.new_empty(states.shape[0 if feature_major else 1], tile)
    found[:, stop - start :] = 0
    if feature_major:
        found[:, : stop - start] = states[:, start:stop]
    else:
        transpose(states[start:stop], found[:, : stop - start])
    return found


def transpose(source: Tensor, target: Tensor) -> None:
    """Write sourceᵀ into target, both with neighbouring columns: four times as fast as torch's copy."""
    width = source.element_size()
    strides = (source.stride(0) * width, target.stride(0) * width)
    transposition(width)(source.data_ptr(), strides[0], target.data_ptr(), strides[1], *source.shape)


def in_chunks(run: Callable[[int, int], None], rows: int, tile: Tensor, values: Tensor) -> None:
    """run(first, last) over all rows, a chunk to each of torch's threads where that pays."""
    threads = torch.get_num_threads() if tile.shape[1] * values.numel() >= PARALLEL else 1
    bounds = [rows * i // threads for i in range(threads + 1)]
    others = [pool(os.getpid(), threads - 1).submit(run, *bounds[i : i + 2]) for i in range(1, threads)]
    run(*bounds[:2])
    for other in others:
        other.result()


@cache
def pool(process: int, workers: int) -> ThreadPoolExecutor:
    """Threads of this process: a forked one inherits none."""
    return ThreadPoolExecutor(workers, "sparse_linear")


@cache
def product(tile: int, lanes: int, block: int, bfloat16: int) -> Any:
    """The compiled product for tiles of `tile` tokens: the sums of `lanes` tokens by `block` rows stay in registers."""
    token_bytes = 2 if bfloat16 else 4
    row_bytes, size = tile * token_bytes, lanes * block

    @njit(nogil=True, cache=True)
    def multiply(
        x, values, indices, pointers, earlier, out, bias, out_stride, row_blocks, column_blocks, columns, first, last, act
    ):
        nonzeros = load_int32(pointers + 4 * row_blocks * column_blocks)
        for column_block in range(column_blocks):
            x_block = x + column_block * columns * row_bytes
            for row in range(first, last):
                start = load_int32(pointers + 4 * (column_block * row_blocks + row))
                stop = load_int32(pointers + 4 * (column_block * row_blocks + row + 1))
                for token in range(0, tile, lanes):
                    sums = earlier + 4 * block * (row * tile + token)
                    if column_block:
                        acc = load(size, sums)
                    elif bias:
                        acc = splat(lanes, block, bias + 4 * row * block)
                    else:
                        acc = zeros(size)
                    for p in range(start, stop):
                        if lanes == tile:
                            ahead = x_block + row_bytes * load_uint16(indices + 2 * min(p + AHEAD, nonzeros - 1))
                            prefetch(ahead)
                            prefetch(ahead + row_bytes // 2)
                        column = x_block + row_bytes * load_uint16(indices + 2 * p) + token_bytes * token
                        weight = splat(lanes, block, values + 4 * block * p)
                        acc = fma(weight, load_tile(lanes, block, bfloat16, column), acc)
                    if column_block < column_blocks - 1:
                        store(sums, acc)
                    else:
                        if act:
                            acc = gelu(acc)
                        store_tile(lanes, bfloat16, out + row * block * out_stride + token_bytes * token, out_stride, acc)

    return multiply


@cache
def products_of_pairs(tile: int, lanes: int, block: int) -> Any:
    """The compiled sampled product of two tiles of `tile` tokens."""

    @njit(nogil=True, cache=True)
    def accumulate(upstream, x, indices, pointers, sums, row_blocks, column_blocks, columns, first, last):
        for column_block in range(column_blocks):
            x_block = x + 4 * tile * columns * column_block
            for row in range(first, last):
                start = load_int32(pointers + 4 * (column_block * row_blocks + row))
                stop = load_int32(pointers + 4 * (column_block * row_blocks + row + 1))
                for token in range(0, tile, lanes):
                    g = load_rows(lanes, block, upstream + 4 * (tile * block * row + token), 4 * tile)
                    for p in range(start, stop):
                        column = x_block + 4 * (tile * load_uint16(indices + 2 * p) + token)
                        add_dots(lanes, sums + 4 * block * p, g, load_tile(lanes, block, 0, column))

    return accumulate


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
