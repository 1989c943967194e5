"""The numba version of sparse_linear.py: products of a pruned weight on the CPU, compiled on first use.

Activations are worked on in tiles of up to 128 consecutive tokens. The sums of one output row over a tile stay in
registers while each of the row's values is multiplied with the tile row of its feature; the tile rows of one block of
columns lie in the second-level cache, whose rate is the limit. Compiled code is kept on disk, beside this file or in
the user's cache folder, and made anew when this file changes (touch it after a change of numba_vectors.py).

Letters: N output features (rows of the weight), K input features (its columns), T tokens.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
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

TILES = (128, 64, 32)  # tokens
AHEAD = 12  # nonzeros: how early the cache is asked for activations; 14 % faster than without, 24 is too early
TURNED = 64  # output rows that are turned to row-major at once, from the first-level cache
PARALLEL = 30_000_000  # multiply-adds; to hand half of fewer to a second thread (80 µs) gains little or loses


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
    x, values, bias = x.contiguous(), values.contiguous(), None if bias is None else bias.contiguous()
    (rows, columns), block, element = shape, values.shape[1], x.element_size()
    tokens = x.shape[1 if feature_major else 0]
    out = empty_output((rows, tokens) if feature_major else (tokens, rows), x.dtype)
    column_blocks = (len(row_pointers) - 1) * block // rows
    weight = (values.data_ptr(), indices.data_ptr(), row_pointers.data_ptr(), 0 if bias is None else bias.data_ptr())
    sizes = (tokens, columns, rows // block, column_blocks, feature_major, gelu)
    features = -(-columns // column_blocks)
    stop = 0
    for start, stop, tile, kernel in products(tokens, SUMS[block], block, x.dtype):
        room = 4 * tile * rows if column_blocks > 1 else 0
        if not feature_major or tokens != tile:
            room += element * tile * (features + TURNED)
        chunks = chunks_of(start, stop, tile, rows // block, values.numel())
        run(kernel, (x.data_ptr(), *weight, out.data_ptr(), *sizes), room, chunks)
    if stop < tokens:
        rest = (..., slice(stop, None)) if feature_major else (slice(stop, None),)
        more = padded(x[rest], feature_major)
        y = linear(more, values, indices, row_pointers, bias, shape, gelu=gelu, feature_major=feature_major)
        out[rest] = y[:, : tokens - stop] if feature_major else y[: tokens - stop]
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
    upstream, x = (padded(states.float(), feature_major).contiguous() for states in (upstream, x))
    rows, columns = shape
    tokens = x.shape[1 if feature_major else 0]
    found = torch.zeros(len(indices), block)
    column_blocks = (len(row_pointers) - 1) * block // rows
    features = -(-columns // column_blocks)
    addresses = [tensor.data_ptr() for tensor in (upstream, x, indices, row_pointers, found)]
    sizes = (tokens, columns, rows // block, column_blocks, feature_major)
    for start, stop, tile in spans(tokens):
        kernel = products_of_pairs(tile, min(tile, SUMS[block]), block)
        chunks = chunks_of(start, stop, stop - start, rows // block, found.numel())  # all tokens add to the same sums
        run(kernel, (*addresses, *sizes), 4 * tile * (rows + features), chunks)
    return found


def spans(tokens: int) -> Iterator[tuple[int, int, int]]:
    """First token, last token and tile of those that fill tiles: many of the largest, and one of another size."""
    whole = tokens - tokens % TILES[0]
    if whole:
        yield 0, whole, TILES[0]
    if tokens - whole in TILES:
        yield whole, tokens, tokens - whole


def padded(states: Tensor, feature_major: bool) -> Tensor:
    """With tokens of zeros until all fill tiles; one tile with zeros takes less time than two smaller ones."""
    rest = states.shape[1 if feature_major else 0] % TILES[0]
    more = min(tile for tile in TILES if tile >= rest) - rest if rest else 0
    return F.pad(states, (0, more) if feature_major else (0, 0, 0, more)) if more else states


def empty_output(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Memory for the result. Above 32 MiB torch's comes in new pages of 4 KiB at every call, and to map them takes as
    long as the product; numpy asks for large pages, a fifth of the time.
    """
    size = shape[0] * shape[1] * dtype.itemsize
    if size <= 32 << 20:
        return torch.empty(*shape, dtype=dtype)
    memory = torch.from_numpy(np.empty(size + 64, np.uint8))
    aligned = -memory.data_ptr() % 64
    return memory[aligned : aligned + size].view(dtype).view(shape)


Chunk = tuple[int, ...]  # bounds of what a thread works on: the last arguments of a kernel


def chunks_of(start: int, stop: int, tile: int, row_blocks: int, values: int) -> list[Chunk]:
    """First and last token, first and last block of rows, for each of torch's threads if there is work enough: the rows
    are shared out, or the tokens if tiles are many.
    """
    threads = torch.get_num_threads()
    if threads == 1 or values * (stop - start) < PARALLEL:
        return [(start, stop, 0, row_blocks)]
    tiles = (stop - start) // tile
    by_tokens = tiles >= 4 * threads
    ends = [(tiles if by_tokens else row_blocks) * i // threads for i in range(threads + 1)]
    if by_tokens:
        return [(start + tile * a, start + tile * b, 0, row_blocks) for a, b in pairwise(ends)]
    return [(start, stop, a, b) for a, b in pairwise(ends)]


def run(kernel: Callable[..., None], given: Sequence[Any], room_bytes: int, chunks: Sequence[Chunk]) -> None:
    """kernel(*given, room, *chunk) for every chunk, each in a thread and with room of its own."""
    if len(chunks) == 1:
        return in_room(kernel, given, room_bytes, chunks[0])
    threads = pool(os.getpid(), len(chunks) - 1)
    others = [threads.submit(in_room, kernel, given, room_bytes, chunk) for chunk in chunks[1:]]
    in_room(kernel, given, room_bytes, chunks[0])
    for other in others:
        other.result()


def in_room(kernel: Callable[..., None], given: Sequence[Any], room_bytes: int, chunk: Chunk) -> None:
    """One chunk of `run`."""
    room = torch.empty(room_bytes, dtype=torch.uint8) if room_bytes else None
    kernel(*given, 0 if room is None else room.data_ptr(), *chunk)


@cache
def pool(process: int, workers: int) -> ThreadPoolExecutor:
    """Threads of this process: a forked one inherits none."""
    return ThreadPoolExecutor(workers, "sparse_linear")


def compiled(function: Callable[..., None]) -> Any:
    """The function as numba compiles it; kept on disk if there is a folder that may be written to."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # "cannot cache function …: no locator available"
        return njit(nogil=True)(function)


@compiled
def transpose(source, source_stride, target, target_stride, rows, columns, element):
    """Write a matrix of so many rows and columns, elements of 2 or 4 bytes, transposed."""
    whole_rows, whole_columns = rows - rows % BLOCK, columns - columns % BLOCK
    for column in range(0, whole_columns, BLOCK):
        for row in range(0, whole_rows, BLOCK):
            place = source + row * source_stride + column * element
            goal = target + column * target_stride + row * element
            if element == 4:
                transpose_block(4, place, source_stride, goal, target_stride)
            else:
                transpose_block(2, place, source_stride, goal, target_stride)
    for row in range(rows):
        for column in range(whole_columns if row < whole_rows else 0, columns):
            place = source + row * source_stride + column * element
            goal = target + column * target_stride + row * element
            if element == 4:
                copy_element(4, place, goal)
            else:
                copy_element(2, place, goal)


@compiled
def pack(states, feature_major, tokens, features, token, tile, first, last, element, room):
    """Write (features, tile) of states, (features, tokens) if feature_major else (tokens, features), side by side."""
    if feature_major:
        stride = tokens * element
        for feature in range(first, last):
            source = states + feature * stride + token * element
            for line in range(0, tile * element, 64):
                prefetch(source + 16 * stride + line)
                store(room + line, load(16, source + line))
            room += tile * element
    else:
        source = states + (token * features + first) * element
        transpose(source, features * element, room, tile * element, tile, last - first, element)


@lru_cache(maxsize=1024)
def products(tokens: int, sums: int, block: int, dtype: torch.dtype) -> list[tuple[int, int, int, Any]]:
    """The spans of so many tokens with their kernels, kept: to look them up would take a tenth of a small product."""
    return [(*span, product(span[2], min(span[2], sums), block, dtype == torch.bfloat16)) for span in spans(tokens)]


@cache
def product(tile: int, lanes: int, block: int, bfloat16: bool) -> Any:
    """The compiled product for tiles of `tile` tokens: the sums of `lanes` tokens by `block` rows stay in registers."""
    element = 2 if bfloat16 else 4
    row_bytes, size = tile * element, lanes * block

    @compiled
    def multiply(
        x, values, indices, row_pointers, bias, out,
        tokens, columns, row_blocks, column_blocks, feature_major, activate,
        room, start, stop, begin, end,
    ):  # fmt: skip
        width = (columns + column_blocks - 1) // column_blocks
        earlier = room
        packed = room + 4 * tile * row_blocks * block if column_blocks > 1 else room
        turned = packed + width * row_bytes
        for token in range(start, stop, tile):
            for column_block in range(column_blocks):
                is_last = column_block == column_blocks - 1
                pointers = row_pointers + 4 * row_blocks * column_block
                last_value = load_int32(pointers + 4 * row_blocks) - 1
                first = width * column_block
                tile_x = packed
                if feature_major and tokens == tile:
                    tile_x = x + row_bytes * first
                else:
                    last = min(first + width, columns)
                    pack(x, feature_major, tokens, columns, token, tile, first, last, element, packed)
                for row in range(begin, end):
                    p_start, p_stop = load_int32(pointers + 4 * row), load_int32(pointers + 4 * (row + 1))
                    for lane in range(0, tile, lanes):
                        sums = earlier + 4 * block * (row * tile + lane)
                        acc = zeros(size) if column_block == 0 else load(size, sums)
                        for p in range(p_start, p_stop):
                            if lanes == tile:  # else the row's other tokens have brought the line
                                ahead = tile_x + row_bytes * load_uint16(indices + 2 * min(p + AHEAD, last_value))
                                prefetch(ahead)
                                prefetch(ahead + row_bytes // 2)
                            column = tile_x + row_bytes * load_uint16(indices + 2 * p) + element * lane
                            weight = splat(lanes, block, values + 4 * block * p)
                            acc = fma(weight, load_tile(lanes, block, bfloat16, column), acc)
                        if not is_last:
                            store(sums, acc)
                            continue
                        if bias:
                            acc = add(acc, splat(lanes, block, bias + 4 * block * row))
                        if activate:
                            acc = gelu(acc)
                        if feature_major:
                            goal = out + element * (block * row * tokens + token + lane)
                            store_tile(lanes, bfloat16, goal, element * tokens, acc)
                        else:
                            goal = turned + row_bytes * (block * (row - begin) % TURNED) + element * lane
                            store_tile(lanes, bfloat16, goal, row_bytes, acc)
                    ready = block * (row + 1 - begin)  # rows of this chunk
                    if is_last and not feature_major and (ready % TURNED == 0 or row == end - 1):
                        count = (ready - 1) % TURNED + 1
                        goal = out + element * (token * row_blocks * block + block * (row + 1) - count)
                        transpose(turned, row_bytes, goal, element * row_blocks * block, count, tile, element)

    return multiply


@cache
def products_of_pairs(tile: int, lanes: int, block: int) -> Any:
    """The compiled sampled product for tiles of `tile` tokens."""

    @compiled
    def accumulate(
        upstream, x, indices, row_pointers, found,
        tokens, columns, row_blocks, column_blocks, feature_major,
        room, start, stop, begin, end,
    ):  # fmt: skip
        width = (columns + column_blocks - 1) // column_blocks
        rows, packed = room, room + 4 * tile * row_blocks * block
        for token in range(start, stop, tile):
            first, last = block * begin, block * end
            place = rows + 4 * tile * first
            pack(upstream, feature_major, tokens, block * row_blocks, token, tile, first, last, 4, place)
            for column_block in range(column_blocks):
                pointers = row_pointers + 4 * row_blocks * column_block
                last_value = load_int32(pointers + 4 * row_blocks) - 1
                first = width * column_block
                pack(x, feature_major, tokens, columns, token, tile, first, min(first + width, columns), 4, packed)
                for row in range(begin, end):
                    p_start, p_stop = load_int32(pointers + 4 * row), load_int32(pointers + 4 * (row + 1))
                    for lane in range(0, tile, lanes):
                        g = load_rows(lanes, block, rows + 4 * (tile * block * row + lane), 4 * tile)
                        for p in range(p_start, p_stop):
                            if lanes == tile:
                                ahead = packed + 4 * tile * load_uint16(indices + 2 * min(p + AHEAD, last_value))
                                prefetch(ahead)
                                prefetch(ahead + 2 * tile)
                            column = packed + 4 * (tile * load_uint16(indices + 2 * p) + lane)
                            add_dots(lanes, found + 4 * block * p, g, load_tile(lanes, block, False, column))

    return accumulate


def _sums() -> dict[int, int]:
    """Tokens whose sums stay in registers, by rows that share columns; measured where there is AVX-512."""
    features = get_host_cpu_features()
    if features.get("avx512f"):  # 32 registers of 16 floats
        return {1: 128, 4: 64, 8: 32, 16: 16}
    return {1: 64, 4: 16, 8: 8, 16: 4}  # 16 of 8 floats, or 32 of 4


SUMS = _sums()
