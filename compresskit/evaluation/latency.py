"""Wall time of one call, for several contestants under the same conditions: in one process and taken in turns."""

import gc
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from compresskit.evaluation.inference import device_of, evaluating

Batch = Mapping[str, Tensor]
Contestant = nn.Module | Callable[[Batch], object]
Clock = Literal["wall", "cpu"]
CLOCKS: dict[Clock, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
MIN_ROUNDS = 10  # that a time budget leaves: below it a 95 % quantile says nothing


@dataclass(frozen=True)
class Latency:
    """One contestant's times, and all that has to be known to compare them with others."""

    name: str
    latency_p50_ms: float
    latency_p95_ms: float
    iqr_ms: float  # distance of the quartiles
    relative_iqr: float  # iqr_ms / latency_p50_ms: above 0.1 the machine was busy
    rounds: int
    threads: int
    batch_size: int
    seq_len: int
    samples_ms: tuple[float, ...]  # in the order of the rounds
    machine: dict[str, str | int]


def random_batch(vocab_size: int, batch_size: int, seq_len: int, seed: int = 0) -> dict[str, Tensor]:
    """A batch without padding: input_ids, token_type_ids, attention_mask, each (batch_size, seq_len)."""
    ids = torch.randint(vocab_size, (batch_size, seq_len), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "token_type_ids": torch.zeros_like(ids), "attention_mask": torch.ones_like(ids)}


def measure(
    contestants: Mapping[str, Contestant],
    batch: Batch,
    *,
    threads: int = 1,
    rounds: int = 30,
    warmup: int = 3,
    budget_s: float | None = None,
    clock: Clock = "wall",
    seed: int = 0,
) -> list[Latency]:
    """Time every contestant on `batch`, once per round, each round in another order drawn by `seed`.

    contestants: modules, called as model(**batch) in evaluation mode on the device they are on, and functions, called
    with the batch, that return when their work is done (one that wraps a module sets its mode itself). All run in
    inference mode. Interleaving makes a slow moment of the machine hit all alike. warmup: rounds that are not counted.
    budget_s: stop when the counted rounds have taken that long, but not before 10 of them. clock: "cpu" counts the time
    of this process, not that of others which hold the core meanwhile; right for one thread only. Torch's number of
    threads and the modules' modes are restored, errors included.
    """
    if not contestants:
        raise ValueError("there is nothing to measure: no contestants")
    if rounds < 1 or warmup < 0 or threads < 1:
        raise ValueError(f"expected rounds >= 1, warmup >= 0, threads >= 1; got {rounds}, {warmup}, {threads}")
    if clock == "cpu" and threads > 1:
        raise ValueError(f"the clock 'cpu' adds up {threads} threads; take the clock 'wall', or one thread")
    now = CLOCKS[clock]
    calls = {name: _call(contestant, batch) for name, contestant in contestants.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order, rng = list(calls), Random(seed)
    with ExitStack() as stack:
        stack.enter_context(evaluating(*(c for c in contestants.values() if isinstance(c, nn.Module))))
        stack.enter_context(_threads(threads))
        stack.enter_context(_no_collection())
        for _ in range(warmup):
            for call in calls.values():
                call()
        begin = time.perf_counter()
        for done in range(rounds):
            if budget_s is not None and done >= MIN_ROUNDS and time.perf_counter() - begin > budget_s:
                break
            rng.shuffle(order)
            for name in order:
                start = now()
                calls[name]()
                samples[name].append((now() - start) * 1000)
    batch_size, seq_len = batch["input_ids"].shape
    machine = describe_machine()
    return [_latency(name, times, threads, batch_size, seq_len, machine) for name, times in samples.items()]


def measure_groups(
    groups: Sequence[Mapping[str, Callable[[], Contestant]]], batch: Batch, folder: Path, **settings: Any
) -> Iterator[list[Latency]]:
    """`measure` for more contestants than fit into memory: one group after the other is built, timed and dropped.

    groups: functions that build the contestants. folder: where each group's results are kept as soon as it is timed; a
    later call with the same groups reads those that are there instead of timing them again. settings: of `measure`.
    Raises ValueError where the folder holds results of other contestants.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, group in enumerate(groups):
        path = folder / f"group-{number:04}.json"
        if path.exists():
            found = [
                Latency(**{**kept, "samples_ms": tuple(kept["samples_ms"])}) for kept in json.loads(path.read_text())
            ]
            if [result.name for result in found] != list(group):
                raise ValueError(f"{path} holds times of other contestants; measure into another folder")
        else:
            found = measure({name: build() for name, build in group.items()}, batch, **settings)
            unfinished = path.with_suffix(".tmp")
            unfinished.write_text(json.dumps([asdict(result) for result in found]))
            os.replace(unfinished, path)
        yield found


def table(results: list[Latency]) -> pd.DataFrame:
    """One row per contestant, fastest first; without samples and machine."""
    rows = [{k: v for k, v in vars(result).items() if k not in ("samples_ms", "machine")} for result in results]
    return pd.DataFrame(rows).sort_values("latency_p50_ms", ignore_index=True)


def describe_machine() -> dict[str, str | int]:
    """What a timing depends on beside the model: processor, usable cores, torch and its float32 matmul precision."""
    described: dict[str, str | int] = {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "torch": torch.__version__,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }
    if torch.cuda.is_available():
        described["gpu"] = torch.cuda.get_device_name()
    return described


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _call(contestant: Contestant, batch: Batch) -> Callable[[], object]:
    if not isinstance(contestant, nn.Module):
        return lambda: contestant(batch)
    device = device_of(contestant)
    inputs = {name: tensor.to(device) for name, tensor in batch.items()}
    if device.type != "cuda":
        return lambda: contestant(**inputs)

    def call() -> None:
        contestant(**inputs)
        torch.cuda.synchronize(device)  # the call itself only queues the work

    return call


@contextmanager
def _threads(number: int) -> Iterator[None]:
    found = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(found)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without the garbage collector, whose rare long pauses would fall on contestants at random."""
    found = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if found:
            gc.enable()


def _latency(
    name: str, times: list[float], threads: int, batch_size: int, seq_len: int, machine: dict[str, str | int]
) -> Latency:
    low, median, high, p95 = (float(q) for q in np.quantile(times, [0.25, 0.5, 0.75, 0.95]))
    return Latency(
        name=name,
        latency_p50_ms=median,
        latency_p95_ms=p95,
        iqr_ms=high - low,
        relative_iqr=(high - low) / median,
        rounds=len(times),
        threads=threads,
        batch_size=batch_size,
        seq_len=seq_len,
        samples_ms=tuple(times),
        machine=machine,
    )
