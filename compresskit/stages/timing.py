"""Latencies of a supernet's subnets on this machine: each timed when it is asked for, and finalists by turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from compresskit.evaluation import latency
from compresskit.evaluation.latency import Clock
from compresskit.models import CompactBertConfig, CompactBertModel
from compresskit.search import arch_text, select
from compresskit.search.predictor import Conditions
from compresskit.search.select import Constraint
from compresskit.search.spaces import Columns, Space, config_at, rows
from compresskit.stages.journal import Journal
from compresskit.stages.scoring import name_of
from compresskit.stages.session import on_device
from compresskit.training.progress import watched

PREFIX = "latency, "  # of architectures in the journal


@dataclass
class Timed:
    """A predictor that times: every architecture once, all under the same conditions."""

    supernet: CompactBertConfig
    conditions: Conditions
    journal: Journal
    rounds: int = 11

    def predict(self, columns: Columns) -> NDArray[Any]:
        """Median milliseconds of each architecture."""
        configs = (config_at(columns, index, self.supernet) for index in range(len(columns["hidden_size"])))
        return np.array([self.journal.once(PREFIX + name_of(config), self._timer(config)) for config in configs])

    def known(self) -> list[tuple[CompactBertConfig, float]]:
        """Every architecture that was timed so far."""
        return [
            (arch_text.parse(key.removeprefix(PREFIX), self.supernet), ms)
            for key, ms in self.journal.values.items()
            if key.startswith(PREFIX)
        ]

    def _timer(self, config: CompactBertConfig) -> Any:
        return lambda: measure({"subnet": config}, self.conditions, self.rounds)["subnet"]


def measure(configs: Mapping[str, CompactBertConfig], conditions: Conditions, rounds: int) -> dict[str, float]:
    """Median milliseconds of encoders of these shapes, timed by turns; weights are of no account."""
    batch = latency.random_batch(
        min(config.vocab_size for config in configs.values()), conditions.batch_size, conditions.seq_len
    )
    results = latency.measure(
        {name: on_device(CompactBertModel(config)) for name, config in configs.items()},
        batch,
        threads=conditions.threads,
        rounds=rounds,
        clock=cast(Clock, conditions.clock),
    )
    return {result.name: result.latency_p50_ms for result in results}


def timed_candidates(
    space: Space, latency: Timed, constraints: Sequence[Constraint], max_timed: int, *, fast_only: bool, seed: int
) -> Columns:
    """Of `max_timed` architectures of the space, drawn by `seed`, those that keep all constraints, latency the last.

    fast_only: draw among those that obey the fast rule. Raises ValueError, with the fastest seen, where there is none.
    """
    *exact, limit = constraints
    found = select.candidates(space, latency.supernet, exact)
    if fast_only:
        found = rows(found, select.obeys_fast_rule(found))
    size = len(found["hidden_size"])
    drawn = rows(found, Random(seed).sample(range(size), min(size, max_timed)))
    count = len(drawn["hidden_size"])
    singly = (latency.predict(rows(drawn, [index]))[0] for index in range(count))
    times = np.array(list(watched("time architectures", singly, count)))
    kept = rows(drawn, (limit.low <= times) & (times <= limit.high))
    if not len(kept["hidden_size"]):
        seen = f"they take {times.min():.3g} to {times.max():.3g} ms" if count else "none is left to be timed"
        raise ValueError(
            f"none of {count} timed architectures takes {limit.low:.3g} to {limit.high:.3g} ms: {seen}; change the "
            "limit, raise max_timed, or make a predictor with the stage latency_predictor"
        )
    return kept
