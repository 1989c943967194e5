"""Ways of choosing architectures under a latency limit. Nothing here trains or times: both are functions handed in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from compresskit.models.config import CompactBertConfig


@dataclass(frozen=True)
class Candidate:
    """An architecture, its measured latency, and its score (higher is better)."""

    config: CompactBertConfig
    latency_ms: float
    score: float


def fast_rule(config: CompactBertConfig) -> bool:
    """AutoTinyBERT's shape of a good network, 1.6 h ≤ f ≤ 1.9 h and 0.7 h ≤ q ≤ h, judged on the first layer."""
    hidden, wide = config.hidden_size, config.per_layer("intermediate_size")[0]
    return 1.6 * hidden <= wide <= 1.9 * hidden and 0.7 * hidden <= config.per_layer("qkv_size")[0] <= hidden


def anything(config: CompactBertConfig) -> bool:
    """No rule: the random choice."""
    return True


RULES: dict[str, Callable[[CompactBertConfig], bool]] = {"random": anything, "fast": fast_rule}


def choose(
    sample: Callable[[Random], CompactBertConfig],
    latency_ms: Callable[[CompactBertConfig], float],
    score: Callable[[CompactBertConfig], float],
    *,
    max_latency_ms: float,
    count: int,
    rng: Random,
    rule: Callable[[CompactBertConfig], bool] = anything,
    max_attempts: int = 100_000,
    max_timed: int = 500,
) -> list[Candidate]:
    """`count` different architectures that obey `rule` and the limit, the best score first.

    Architectures are timed until enough are fast enough, at most `max_timed`; drawn at most `max_attempts` times.
    Raises ValueError with what was found, and the fastest seen, where the limits are reached first.
    """
    seen: set[tuple] = set()
    fitting: list[tuple[CompactBertConfig, float]] = []
    fastest = float("inf")
    timed = 0
    for _ in range(max_attempts):
        if len(fitting) == count or timed == max_timed:
            break
        config = sample(rng)
        if config.key() in seen or not rule(config):
            continue
        seen.add(config.key())
        timed += 1
        latency = latency_ms(config)
        fastest = min(fastest, latency)
        if latency <= max_latency_ms:
            fitting.append((config, latency))
    if not timed:
        raise ValueError(f"none of {max_attempts} drawn architectures obeys the rule; take another rule or space")
    if len(fitting) < count:
        raise ValueError(
            f"found {len(fitting)} of {count} architectures at or below {max_latency_ms} ms among {timed} timed; raise "
            f"max_latency_ms (fastest: {fastest:.3g} ms) or ask for fewer"
        )
    candidates = [Candidate(config, latency, score(config)) for config, latency in fitting]
    return sorted(candidates, key=lambda candidate: -candidate.score)
