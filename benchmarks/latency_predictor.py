"""Latency predicted from 60 measured architectures, judged on 60 others, and on what a search chooses:

    python -m benchmarks.latency_predictor

Random subnets of the published KD space, one sequence of 128 tokens, float32 as this suite runs it. Beside the errors
of the physical-features predictor, the published network (4 x 2000 wide, its own training) and the FLOPs line stand the
machine's own: 15 architectures are measured twice. For each of 10 latency limits a search then takes 25 candidates by
the fast rule, the largest of them is chosen (nothing is trained here, so size stands for score), and measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import MIN_ROUNDS, Goal, Timing, publish
from compresskit.evaluation import latency
from compresskit.kernels.float32 import choose_float32_matmul
from compresskit.models import CompactBertConfig, CompactBertModel, presets
from compresskit.search.costs import Parameters
from compresskit.search.predictor import Fit, FlopsLine, HeldOut, Mlp, Physical, held_out
from compresskit.search.select import candidates, draw, latency_limit, shape_of
from compresskit.search.spaces import DIMENSIONS, RELEASED_GRIDS, SPACES, columns_of

FITTED, UNSEEN, REPEATED, LIMITS, GROUP = 60, 60, 15, 10, 8
ROUNDS = MIN_ROUNDS
SEQ_LEN = 128
SUPERNET = presets.config("superbert")
WAYS: dict[str, Fit] = {"physical": Physical.fit, "flops": FlopsLine.fit, "mlp": partial(Mlp.fit, width=2000)}


def measured(configs: Sequence[CompactBertConfig], what: str) -> tuple[NDArray[np.float64], list[Timing]]:
    """CPU milliseconds of each architecture, and the timings."""
    builders = [(f"{what} {number}", partial(CompactBertModel, config)) for number, config in enumerate(configs)]
    groups = [dict(builders[first : first + GROUP]) for first in range(0, len(builders), GROUP)]
    batch = latency.random_batch(SUPERNET.vocab_size, 1, SEQ_LEN)
    with TemporaryDirectory() as folder:
        results = [
            result
            for group in latency.measure_groups(groups, batch, Path(folder), rounds=ROUNDS, clock="cpu")
            for result in group
        ]
    timings = [Timing(f"1 x {SEQ_LEN}", r.name, r.latency_p50_ms, 0.0, 1, list(r.samples_ms)) for r in results]
    return np.array([timing.median_ms for timing in timings]), timings


def sample(count: int, seed: int) -> list[CompactBertConfig]:
    """Different random subnets."""
    rng = Random(seed)
    drawn: dict[tuple, CompactBertConfig] = {}
    while len(drawn) < count:
        config = SPACES["kd"]().sample(SUPERNET, rng)
        drawn.setdefault(config.key(), config)
    return list(drawn.values())


def chosen(physical: Physical, limits: Sequence[float]) -> list[CompactBertConfig]:
    """For each limit the largest of 25 that the fast rule draws."""
    best = []
    for number, limit in enumerate(limits):
        found = candidates(RELEASED_GRIDS["kd"], SUPERNET, [latency_limit(physical.predict, limit)])
        finalists = draw(found, SUPERNET, 25, Random(number), rule="fast")
        sizes = Parameters(SUPERNET).predict(columns_of(finalists))
        best.append(finalists[int(np.argmax(sizes))])
    return best


def main() -> None:
    """Measure, fit, choose, measure what was chosen."""
    choice = choose_float32_matmul()
    configs = sample(FITTED + UNSEEN, seed=0)
    ms, timings = measured(configs, "architecture")
    again, repeated = measured(configs[:REPEATED], "architecture, again,")
    noise_pct = float(np.mean(np.abs(again / ms[:REPEATED] - 1))) * 100

    known, unseen = columns_of(configs[:FITTED]), columns_of(configs[FITTED:])
    fitted = {way: fit(known, ms[:FITTED], SEQ_LEN, 0) for way, fit in WAYS.items()}
    errors: dict[str, HeldOut] = {
        way: held_out(way, ms[FITTED:], predictor.predict(unseen)) for way, predictor in fitted.items()
    }
    physical = fitted["physical"]
    assert isinstance(physical, Physical)

    lowest, highest = np.quantile(ms, [0.1, 0.9])
    limits = np.geomspace(lowest, highest, LIMITS).tolist()
    finalists = chosen(physical, limits)
    chosen_ms, chosen_timings = measured(finalists, "chosen for limit")
    shares = chosen_ms / np.array(limits)

    mape = {way: error.mape_pct for way, error in errors.items()}
    bound = max(5.0, 2.5 * noise_pct)
    publish(
        "latency_predictor",
        timings + repeated + chosen_timings,
        {
            "MAPE (%)": mape["physical"],
            "Spearman": errors["physical"].spearman,
            "MAPE against the published network's": mape["physical"] / mape["mlp"],
            "MAPE against the FLOPs line's": mape["physical"] / mape["flops"],
            "limits within which the chosen one is, of 10": float(((shares >= 0.85) & (shares <= 1.10)).sum()),
            "repeat noise (%)": noise_pct,
        },
        {
            "MAPE (%)": Goal(at_most=bound, aim=3.5),
            "Spearman": Goal(floor=0.99, aim=0.998),
            "MAPE against the published network's": Goal(at_most=0.75, aim=0.5),
            "MAPE against the FLOPs line's": Goal(at_most=1.0, aim=0.5),
            "limits within which the chosen one is, of 10": Goal(floor=9, aim=10),
        },
        notes={
            "matmul": asdict(choice),
            "architectures": {name: column.tolist() for name, column in columns_of(configs).items()},
            "held_out": {way: asdict(error) for way, error in errors.items()},
            "coefficients": physical.coefficients,
            "limits_ms": limits,
            "chosen": [dict(zip(DIMENSIONS, shape_of(config), strict=True)) for config in finalists],
            "measured_over_limit": shares.tolist(),
        },
    )


if __name__ == "__main__":
    main()
