"""The numba version of attention.feature_major: scores, softmax and values of some queries, all in the cache.

Queries stand side by side in the lanes of a vector, so that the softmax, over keys, takes nothing from a neighbouring
lane. Keys and values are first brought together in groups, whose numbers a product needs one after the other.

Letters: A heads, B batch, D rows per head, S sequence, T = B·S tokens.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from llvmlite.binding import get_host_cpu_features
from torch import Tensor

from compresskit.kernels.numba_sparse import PARALLEL, compiled, run
from compresskit.kernels.numba_vectors import (
    add,
    copy_element,
    exp,
    fma,
    load,
    load_tile,
    maximum,
    multiply,
    reciprocal,
    repeat,
    splat,
    store,
    store_tile,
    subtract,
    zeros,
)


def feature_major(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    mask: Tensor | None,
    batch: int,
    queries: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """As `attention.feature_major`, in float32."""
    query, key, value = (states.contiguous() for states in (query, key, value))
    (features, tokens), out = query.shape, torch.empty_like(value)
    size, seq_len = features // heads, tokens // batch
    lanes, group = GROUPS
    keys = seq_len + -seq_len % group
    scale = torch.tensor([size**-0.5])
    mask = None if mask is None else F.pad(mask.reshape(batch, seq_len), (0, keys - seq_len)).contiguous()
    sums = counted = None
    if queries is not None:  # received by each key of each head, a number for each lane of the queries
        sums = query.new_zeros(batch, heads, keys, lanes)
        counted = F.pad(queries.float(), (0, -seq_len % lanes)).contiguous()  # lanes behind the last query count for 0
    places = [states.data_ptr() for states in (query, key, value, out, scale)]
    places += [0 if part is None else part.data_ptr() for part in (mask, sums, counted)]
    room = 4 * (lanes * (size + keys + group) + keys * size + seq_len * (size + -size % group))
    work = batch * heads
    threads = torch.get_num_threads() if work * size * seq_len**2 >= PARALLEL else 1
    ends = [work * i // threads for i in range(threads + 1)]
    chunks = [(first, last) for first, last in pairwise(ends) if first < last]
    run(attend(lanes, group), (*places, heads, size, seq_len, tokens), room, chunks)
    return out, None if sums is None else sums.sum((1, 3))[:, :seq_len]


@cache
def attend(lanes: int, group: int) -> Any:
    """The compiled kernel: the sums of `lanes` queries by `group` keys, or values' rows, stay in registers."""
    size, line = lanes * group, 4 * lanes

    @compiled
    def attention(query, key, value, out, scale, mask, sums, counted, heads, rows, seq_len, tokens, room, first, last):
        keys = (seq_len + group - 1) // group * group
        whole_rows = (rows + group - 1) // group * group
        scores = room + line * rows
        grouped_keys = scores + line * keys
        grouped_values = grouped_keys + 4 * keys * rows
        spare = grouped_values + 4 * seq_len * whole_rows
        for head in range(first, last):  # of a sequence
            begin = 4 * (head % heads * rows * tokens + head // heads * seq_len)
            for j in range(0, keys, group):
                for d in range(rows):
                    place, goal = key + begin + 4 * (d * tokens + j), grouped_keys + 4 * (j * rows + d * group)
                    if j + group <= seq_len:
                        store(goal, load(group, place))
                    else:
                        copy(place, goal, seq_len - j)
            for d in range(whole_rows):
                goal = grouped_values + 4 * (d // group * group * seq_len + d % group)
                for j in range(seq_len if d < rows else 0):
                    copy_element(4, value + begin + 4 * (d * tokens + j), goal + 4 * group * j)
            for token in range(0, seq_len, lanes):
                count = min(lanes, seq_len - token)
                for d in range(rows):
                    place, goal = query + begin + 4 * (d * tokens + token), room + line * d
                    if count < lanes:
                        copy(place, goal, count)
                        place = goal
                    store(goal, multiply(load(lanes, place), splat(lanes, 1, scale)))
                for j in range(0, keys, group):
                    acc = zeros(size)
                    for d in range(rows):
                        keys_d = splat(lanes, group, grouped_keys + 4 * (j * rows + d * group))
                        acc = fma(keys_d, load_tile(lanes, group, False, room + line * d), acc)
                    if mask:
                        acc = add(acc, splat(lanes, group, mask + 4 * (head // heads * keys + j)))
                    store(scores + line * j, acc)
                highest = load(lanes, scores)
                for j in range(1, seq_len):
                    highest = maximum(load(lanes, scores + line * j), highest)
                total = zeros(lanes)
                for j in range(seq_len):
                    weight = exp(subtract(load(lanes, scores + line * j), highest))
                    total = add(total, weight)
                    store(scores + line * j, weight)
                if sums:
                    whole_tokens = (seq_len + lanes - 1) // lanes * lanes
                    counts = load(lanes, counted + 4 * (head // heads * whole_tokens + token))
                    counts = multiply(reciprocal(total), counts)
                    for j in range(seq_len):
                        goal = sums + line * (head * keys + j)
                        store(goal, fma(load(lanes, scores + line * j), counts, load(lanes, goal)))
                share = repeat(group, reciprocal(total))
                for d in range(0, whole_rows, group):
                    acc = zeros(size)
                    for j in range(seq_len):
                        values_j = splat(lanes, group, grouped_values + 4 * (d * seq_len + j * group))
                        acc = fma(values_j, load_tile(lanes, group, False, scores + line * j), acc)
                    goal = out + begin + 4 * (d * tokens + token)
                    if count == lanes and d + group <= rows:
                        store_tile(lanes, False, goal, 4 * tokens, multiply(acc, share))
                    else:
                        store_tile(lanes, False, spare, line, multiply(acc, share))
                        for i in range(min(group, rows - d)):
                            copy(spare + line * i, goal + 4 * tokens * i, count)

    return attention


@compiled
def copy(source, target, count):
    """So many floats."""
    for i in range(count):
        copy_element(4, source + 4 * i, target + 4 * i)


# Queries and keys whose products are summed in registers; measured where there is AVX-512, with 32 of 16 floats.
GROUPS = (32, 8) if get_host_cpu_features().get("avx512f") else (16, 4)
