"""What a search may look at: the space, what says how long an architecture takes, and the limits."""

from __future__ import annotations

from typing import Literal, Protocol

from compresskit import tracking
from compresskit.evaluation.latency import Clock
from compresskit.models import CompactBertConfig, elastic, presets
from compresskit.search import select
from compresskit.search.costs import Flops, ModelBytes, Parameters
from compresskit.search.predictor import Conditions, LatencyPredictor, Predictor
from compresskit.search.select import Constraint
from compresskit.search.spaces import RELEASED_GRIDS, Space, columns_of, space_of
from compresskit.stages.journal import Journal
from compresskit.stages.latency_predictor import conditions
from compresskit.stages.timing import Timed, measure

BASE_ROUNDS = 30


class LimitParams(Protocol):
    """The parameters of a search that say where it looks, and how slow and large a network may be."""

    flavour: Literal["mlm", "kd"]
    space: Literal["supernet", "released"]
    speedup: float
    speedup_over: Literal["supernet", "bert-base"]
    max_latency_ms: float
    max_parameters: int
    max_gflops: float
    max_model_mb: float
    predictor: str
    latency_batch_size: int
    latency_seq_len: int
    latency_threads: int
    latency_clock: Clock


def space_for(params: LimitParams, supernet: CompactBertConfig) -> Space:
    """The values of each dimension; ValueError where the released ones exceed the supernet's."""
    if params.space == "supernet":
        return space_of(params.flavour, supernet)
    space = RELEASED_GRIDS[params.flavour]
    largest = space.complete({name: max(values) for name, values in vars(space).items()}, supernet)
    elastic.check_fits(supernet, supernet.changed(**largest))
    return space


def latency_for(
    params: LimitParams, supernet: CompactBertConfig, journal: Journal
) -> tuple[Predictor, Conditions, float]:
    """What says how long an architecture takes, under which conditions, and how long the base takes under them.

    Raises ValueError where the predictor was made under other conditions than this process can offer.
    """
    if params.predictor:
        fitted = LatencyPredictor.load(tracking.resolve(params.predictor))
        known = fitted.conditions
        known.check(conditions(params.flavour, known.threads, known.batch_size, known.seq_len, known.clock))
        if params.speedup_over == "supernet":  # predicted as its subnets are, so that an error of both cancels out
            return fitted, known, float(fitted.predict(columns_of([supernet]))[0])
        return fitted, known, fitted.reference_ms["bert-base"]
    known = conditions(
        params.flavour, params.latency_threads, params.latency_batch_size, params.latency_seq_len, params.latency_clock
    )
    bases = {"supernet": supernet, "bert-base": presets.config("bert-base", vocab_size=supernet.vocab_size)}
    base = {"base": bases[params.speedup_over]}
    base_ms = journal.once("base", lambda: measure(base, known, BASE_ROUNDS)["base"])
    return Timed(supernet, known, journal), known, base_ms


def constraints_for(
    params: LimitParams, supernet: CompactBertConfig, latency: Predictor, seq_len: int, base_ms: float
) -> list[Constraint]:
    """All limits, that of latency the last: it may have to be timed."""
    exact = {
        "parameters": (Parameters(supernet).predict, params.max_parameters),
        "flops": (Flops(seq_len).predict, params.max_gflops * 1e9),
        "model_bytes": (ModelBytes(supernet).predict, params.max_model_mb * 1e6),
    }
    limits = [Constraint(name, predict, high=high) for name, (predict, high) in exact.items() if high]
    if params.max_latency_ms:
        return [*limits, select.latency_limit(latency.predict, params.max_latency_ms)]
    return [*limits, select.speedup_band(latency.predict, base_ms, params.speedup)]
