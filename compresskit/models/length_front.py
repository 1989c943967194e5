"""A model with its front of length configurations: which of them is run is chosen on the machine that serves it.

The front is the field `length_front` of the config, so it is saved and loaded with the model:

    seq_len   tokens of an input without padding, to which costs and times belong
    full      what the model does at full length: score, macs, latency_ms (median, on the machine of the search)
    points    the same with length_config, from the cheapest to the dearest
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Sequence
from random import Random
from statistics import median
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from compresskit.models import lengths

Model = TypeVar("Model", bound=PreTrainedModel)

ROUNDS = 9  # of timing, after two that do not count
NUMBERS = ("score", "macs", "latency_ms")
_measured: dict[tuple, list[float]] = {}  # by model and conditions: a process asks its machine once


def check(front: Any, num_layers: int, max_tokens: int) -> None:
    """Raise ValueError unless `front` is a front for a model of so many layers, as the module's head describes it."""
    try:
        seq_len, full, points = front["seq_len"], front["full"], front["points"]
        missing = [name for point in [full, *points] for name in NUMBERS if not isinstance(point[name], (int, float))]
        configs = [point["length_config"] for point in points]
        if missing or not isinstance(seq_len, int) or not 1 <= seq_len <= max_tokens:
            raise TypeError(f"{(missing or ['seq_len'])[0]} is not as it should be")
    except (TypeError, KeyError) as error:
        raise ValueError(
            "length_front is no front of length configs: it needs seq_len, full and points, each with score, macs and "
            f"latency_ms ({error}); search again with the stage length_search, or delete the field"
        ) from None
    for config in configs:
        lengths.check(config, num_layers, max_tokens)


def at(
    model: Model,
    *,
    speedup: float | None = None,
    max_latency_ms: float | None = None,
    batch_size: int = 1,
    seq_len: int | None = None,
    threads: int | None = None,
) -> Model:
    """The model with the config of its front that scores best among those that are fast enough here.

    speedup: times as fast as the same model at full length. max_latency_ms: of one call. Exactly one of the two. Both
    are measured on this machine, once in a process, with random tokens: batch_size sequences of seq_len tokens (None:
    that of the search) on `threads` (None: torch's). The weights are shared; the config says which lengths are run.
    Raises ValueError where there is no front, or nothing on it is fast enough, with what is.
    """
    if (speedup is None) == (max_latency_ms is None):
        raise ValueError("say either speedup or max_latency_ms")
    wanted = speedup if speedup is not None else max_latency_ms
    assert wanted is not None
    if not wanted > 0:
        raise ValueError(f"{'speedup' if speedup is not None else 'max_latency_ms'} is {wanted:g}; it must be above 0")
    front = front_of(model)
    points = [{**front["full"], "length_config": None}, *front["points"]]
    seq_len, threads = seq_len or front["seq_len"], threads or torch.get_num_threads()
    times = latencies(model, [point["length_config"] for point in points], batch_size, seq_len, threads)
    limit = times[0] / speedup if speedup is not None else wanted
    enough = [number for number, ms in enumerate(times) if ms <= limit]
    if not enough:
        fastest = min(range(len(times)), key=times.__getitem__)
        lengths_there, ms = points[fastest]["length_config"], times[fastest]
        asked = (
            f"takes at most {limit:.3g} ms" if speedup is None else f"is {speedup:g} times as fast as the full length"
        )
        raise ValueError(
            f"none of {len(points)} length configs {asked} on this machine: full length takes {times[0]:.3g} ms, the "
            f"fastest, {lengths_there}, {ms:.3g} ms ({times[0] / ms:.2f} times as fast); ask for less, or search with "
            "a larger max_drop"
        )
    best = max(enough, key=lambda number: (points[number]["score"], -times[number]))
    return with_lengths(model, points[best]["length_config"])


def front_of(model: PreTrainedModel) -> dict[str, Any]:
    """The model's front; ValueError where it has none."""
    front = getattr(model.config, "length_front", None)
    if not front:
        raise ValueError("this model has no front of length configs; make one with the stage length_search")
    return front


def with_lengths(model: Model, length_config: Sequence[int] | Sequence[float] | None) -> Model:
    """The same model, weights and all shared, whose config runs these lengths; None: full length."""
    config = model.config.changed(length_config=None if length_config is None else list(length_config))
    twin = _with_config(model, config)
    if (encoder := model._modules.get("bert")) is not None:
        twin.bert = _with_config(encoder, config)
    return twin


def _with_config(module: Any, config: Any) -> Any:
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    twin.config = config
    return twin


def latencies(
    model: PreTrainedModel, configs: Sequence[Sequence[int] | None], batch_size: int, seq_len: int, threads: int
) -> list[float]:
    """Median milliseconds of one call at each of the length configs, timed by turns; kept in memory.

    A room below evaluation cannot ask it; its benchmarks time more carefully.
    """
    device = next(model.parameters()).device
    key = (
        model.config.to_json_string(),
        str(device),
        str(model.dtype),
        json.dumps(configs),
        batch_size,
        seq_len,
        threads,
    )
    if key in _measured:
        return _measured[key]
    ids = torch.randint(model.config.vocab_size, (batch_size, seq_len), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)}
    twins = [with_lengths(model, config) for config in configs]
    samples: list[list[float]] = [[] for _ in twins]
    order, rng = list(range(len(twins))), Random(0)
    training = [(module, module.training) for module in model.modules()]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for twin in twins:
            twin.eval()
        with torch.inference_mode():
            for number in range(2 + ROUNDS):
                rng.shuffle(order)
                for index in order:
                    start = time.perf_counter()
                    twins[index](**batch)
                    if device.type == "cuda":
                        torch.cuda.synchronize(device)
                    if number >= 2:
                        samples[index].append((time.perf_counter() - start) * 1000)
    finally:
        torch.set_num_threads(before)
        for module, mode in training:
            module.training = mode
    _measured[key] = [median(times) for times in samples]
    return _measured[key]
