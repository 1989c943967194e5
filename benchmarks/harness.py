"""Which implementation is faster, and by how much: CPU time of right results only.

All contestants run in turns in this one process, on one thread, after a warm-up; a time is the median of at least 15
rounds of process CPU time, which does not count while other processes hold the core. Every contestant's output is
compared with a reference before and after it is timed, and a wrong one raises: wrong results get no figure.

    if __name__ == "__main__":                                    # benchmarks/score_mse.py
        compare(IMPLEMENTATIONS, {f"S={s}": inputs(s) for s in (64, 128, 384)}, baseline="reference")

writes benchmarks/results/score_mse.json and prints a table and, as the last line, one JSON object
{measure: {"ratio": ..., "floor" or "at_most": ..., "aim": ...}}. A ratio is the baseline's time divided by the
contestant's; goals belong to the measures that have one.
"""

from __future__ import annotations

import copy
import gc
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from random import Random
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.evaluation.latency import describe_machine

RESULTS = Path(__file__).parent / "results"
MIN_ROUNDS = 15
SAMPLE_MS = 2.0  # a faster contestant is called several times per sample, far above the clock's resolution
PACKAGES = ("torch", "transformers", "numpy", "compresskit")

Contestant = Callable[..., Any]


@dataclass(frozen=True)
class Goal:
    """What a ratio must reach (`floor`) or must not exceed (`at_most`), and what is aimed at."""

    aim: float
    floor: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        if (self.floor is None) == (self.at_most is None):
            raise ValueError(f"{self}: give either floor or at_most")


@dataclass(frozen=True)
class Timing:
    """CPU time of one call of a contestant on one input: one sample per round, each the mean of `calls` calls.

    error: the largest relative distance ‖output − reference‖ / ‖reference‖ of its outputs.
    """

    input: str
    contestant: str
    median_ms: float
    error: float
    calls: int
    samples_ms: list[float]


def compare(
    contestants: Mapping[str, Contestant],
    inputs: Mapping[str, Sequence[Any]],
    *,
    baseline: str,
    reference: Contestant | None = None,
    max_error: float | Sequence[float] = 1e-5,
    rounds: int = MIN_ROUNDS,
    goals: Mapping[str, Goal] | None = None,
    name: str | None = None,
) -> list[Timing]:
    """Measure every contestant on every input and publish the ratios, named "<contestant> <input>".

    name: of the result file; None: that of the program, so `python -m benchmarks.NAME` writes NAME.json.
    The rest as in `measure` and `publish`.
    """
    timings = measure(contestants, inputs, baseline=baseline, reference=reference, max_error=max_error, rounds=rounds)
    publish(name or Path(sys.argv[0]).stem, timings, ratios(timings, baseline), goals)
    return timings


def measure(
    contestants: Mapping[str, Contestant],
    inputs: Mapping[str, Sequence[Any]],
    *,
    baseline: str,
    reference: Contestant | None = None,
    max_error: float | Sequence[float] | Mapping[str, float] = 1e-5,
    rounds: int = MIN_ROUNDS,
) -> list[Timing]:
    """Time contestant(*input) for all contestants in turns, input by input.

    reference: called with the same input, gives the right outputs; None: the baseline, called with the input's tensors
    and modules in float64. Outputs are a tensor or number, or any sequence or mapping of outputs. max_error: bound on
    the relative error, one for all outputs, one for each, or one for each contestant by name. Raises ValueError for a
    contestant that is not within it, and for too few rounds.
    """
    if baseline not in contestants:
        raise ValueError(f"the baseline {baseline!r} is no contestant; there are {', '.join(contestants)}")
    if rounds < MIN_ROUNDS:
        raise ValueError(
            f"{rounds} rounds are too few for a median on a shared machine; expected at least {MIN_ROUNDS}"
        )
    timings = []
    with one_thread():
        for label, given in inputs.items():
            expected = reference(*given) if reference else contestants[baseline](*map(as_float64, given))
            timings += _race(contestants, label, given, list(tensors(expected)), max_error, rounds)
    return timings


def _race(
    contestants: Mapping[str, Contestant],
    label: str,
    given: Sequence[Any],
    expected: list[Tensor],
    max_error: float | Sequence[float] | Mapping[str, float],
    rounds: int,
) -> list[Timing]:
    bounds = max_error if isinstance(max_error, Mapping) else dict.fromkeys(contestants, max_error)
    errors, calls = {}, {}
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for name, contestant in contestants.items():
        errors[name] = check(f"{name} on {label}", contestant(*given), expected, bounds[name])
        calls[name] = max(1, math.ceil(SAMPLE_MS / max(_cpu_ms(contestant, given, 1), 1e-3)))
        _cpu_ms(contestant, given, calls[name])
    order, shuffle = list(contestants), Random(0).shuffle
    with no_collection():
        for _ in range(rounds):
            shuffle(order)  # nobody always runs after the same other
            for name in order:
                samples[name].append(_cpu_ms(contestants[name], given, calls[name]))
    for name, contestant in contestants.items():  # nobody has changed the inputs, or answers from memory
        errors[name] = max(errors[name], check(f"{name} on {label}", contestant(*given), expected, bounds[name]))
    return [
        Timing(label, name, median(samples[name]), errors[name], calls[name], samples[name]) for name in contestants
    ]


def ratios(timings: Sequence[Timing], baseline: str) -> dict[str, float]:
    """How many times faster than the baseline each other contestant is, by "<contestant> <input>"."""
    base = {timing.input: timing.median_ms for timing in timings if timing.contestant == baseline}
    return {f"{t.contestant} {t.input}": base[t.input] / t.median_ms for t in timings if t.contestant != baseline}


def publish(
    name: str,
    timings: Sequence[Timing],
    measures: Mapping[str, float],
    goals: Mapping[str, Goal] | None = None,
    *,
    notes: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, float]]:
    """Write benchmarks/results/<name>.json, print the table, and last the measures with their goals as one JSON object.

    measures: ratios by name, those of `ratios` or others. notes: facts for the file, such as an error looked at.
    Raises ValueError for a goal of a measure that is not there.
    """
    goals = goals or {}
    if unknown := sorted(goals.keys() - measures.keys()):
        raise ValueError(f"goal for {unknown[0]!r}, which is not measured; there are {', '.join(measures)}")
    summary = {}
    for measure_name, ratio in measures.items():
        goal = asdict(goals[measure_name]) if measure_name in goals else {}
        bounds = {key: goal[key] for key in ("floor", "at_most", "aim") if goal.get(key) is not None}
        summary[measure_name] = {"ratio": round(ratio, 4), **bounds}
    record = {
        "name": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "threads": 1,
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        "clock": "process CPU time",
        "notes": dict(notes or {}),
        "measures": summary,
        "timings": [asdict(timing) for timing in timings],
    }
    RESULTS.mkdir(exist_ok=True)
    unfinished = RESULTS / f".{name}.{os.getpid()}.tmp"
    unfinished.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(unfinished, RESULTS / f"{name}.json")
    print(table(timings))
    print(json.dumps(summary, ensure_ascii=False))
    return summary


def table(timings: Sequence[Timing]) -> str:
    """One line per input and contestant: median CPU time, quartiles, relative error."""
    lines = [f"{'input':<34} {'contestant':<28} {'median ms':>10} {'quartiles ms':>21} {'rel. error':>11}"]
    for t in timings:
        low, _, high = quantiles(t.samples_ms, n=4)
        spread = f"{low:.3f} - {high:.3f}"
        lines.append(f"{t.input:<34} {t.contestant:<28} {t.median_ms:>10.3f} {spread:>21} {t.error:>11.1e}")
    return "\n".join(lines)


def check(who: str, output: Any, expected: Sequence[Tensor], max_error: float | Sequence[float]) -> float:
    """The largest relative error of the outputs; ValueError where one exceeds its bound, is NaN or of another shape."""
    found = list(tensors(output))
    if [tensor.shape for tensor in found] != [tensor.shape for tensor in expected]:
        shapes = [[tuple(tensor.shape) for tensor in group] for group in (found, expected)]
        raise ValueError(f"{who}: outputs of shapes {shapes[0]}, the reference has {shapes[1]}")
    bounds = max_error if isinstance(max_error, Sequence) else [max_error] * len(expected)
    errors = []
    for ours, right, bound in zip(found, expected, bounds, strict=True):
        distance, size = (ours - right).norm().item(), right.norm().item()
        errors.append(distance / size if size > 0 else distance)
        if not errors[-1] <= bound:  # NaN is not
            raise ValueError(f"{who}: relative error {errors[-1]:.3g} exceeds {bound:.3g}; wrong results get no figure")
    return max(errors)


def tensors(output: Any) -> Iterator[Tensor]:
    """Every tensor and number of an output, detached, in float64."""
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, (list, tuple)):
        for part in output:
            yield from tensors(part)
    else:
        yield torch.as_tensor(output).detach().to("cpu", torch.float64)


def as_float64(value: Any) -> Any:
    """A float64 copy of a floating-point tensor or of a module; anything else as it is."""
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).double()
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().double().requires_grad_(value.requires_grad)
    return value


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread, so that CPU time is the time of the work and not of threads that wait for each other."""
    found = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(found)


@contextmanager
def no_collection() -> Iterator[None]:
    """Without Python's garbage collector, whose pauses would fall on contestants at random."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _cpu_ms(contestant: Contestant, given: Sequence[Any], calls: int) -> float:
    """CPU milliseconds of one call, averaged over `calls`."""
    start = time.process_time_ns()
    for _ in range(calls):
        contestant(*given)
    return (time.process_time_ns() - start) / calls / 1e6
