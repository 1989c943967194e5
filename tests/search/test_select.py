"""Random and fast choice: the limit, the rule, the refusals, and that nothing is measured twice."""

from __future__ import annotations

import contextlib
from random import Random

import pytest

from compresskit.models import CompactBertConfig
from compresskit.search.select import RULES, choose, fast_rule
from compresskit.search.spaces import SPACES

SUPERNET = CompactBertConfig(
    vocab_size=100, hidden_size=192, num_hidden_layers=6, num_attention_heads=6, intermediate_size=384
)


def cost(config: CompactBertConfig) -> float:
    """A latency that is a function of the shape."""
    hidden, wide, qkv = config.hidden_size, config.intermediate_size, config.qkv_size
    return config.num_hidden_layers * hidden * (4 * qkv + 2 * wide) / 1e5


def search(flavour: str = "kd", seed: int = 0, **changes):
    space = SPACES[flavour].within(SUPERNET)
    arguments = {
        "max_latency_ms": 4.0,
        "count": 8,
        "rule": RULES["random"],
        "score": lambda config: float(config.hidden_size),
    }
    return choose(
        lambda rng: space.sample(SUPERNET, rng),
        changes.pop("latency_ms", cost),
        rng=Random(seed),
        **{**arguments, **changes},
    )


def keys(candidates) -> list[tuple]:
    return [candidate.config.key() for candidate in candidates]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("flavour", SPACES)
def test_the_same_seed_chooses_the_same_architectures(flavour, rule):
    first, again, other = (search(flavour, seed, rule=RULES[rule], count=3) for seed in (3, 3, 4))
    assert keys(first) == keys(again)
    assert keys(first) != keys(other)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("flavour", SPACES)
def test_every_candidate_is_within_the_limit_obeys_the_rule_and_carries_its_numbers(flavour, rule):
    candidates = search(flavour, rule=RULES[rule])
    assert len(candidates) == len(set(keys(candidates))) == 8
    for candidate in candidates:
        assert candidate.latency_ms == cost(candidate.config) <= 4.0
        assert RULES[rule](candidate.config)
        assert candidate.score == candidate.config.hidden_size
    scores = [candidate.score for candidate in candidates]
    assert scores == sorted(scores, reverse=True)


def test_the_limit_itself_is_within():
    assert len(search(latency_ms=lambda config: 4.0)) == 8


@pytest.mark.parametrize(
    ("hidden", "wide", "qkv", "obeys"),
    [
        (564, 1054, 512, True),  # AutoTinyBERT's S1 and KD models obey, S2 and S3 do not
        (396, 624, 384, False),
        (432, 384, 256, False),
        (320, 608, 256, True),
        (324, 600, 324, True),
        (280, 512, 276, True),
        (256, 480, 192, True),
        (100, 160, 70, True),  # the borders belong to it
        (100, 190, 100, True),
        (100, 159, 70, False),
        (100, 191, 70, False),
        (100, 160, 69, False),
        (100, 160, 101, False),
    ],
)
def test_the_fast_rule_is_autotinyberts(hidden, wide, qkv, obeys):
    config = CompactBertConfig(hidden_size=hidden, intermediate_size=wide, qkv_size=qkv, num_attention_heads=1)
    assert fast_rule(config) is obeys


def test_duplicates_are_never_timed_or_scored_twice():
    timed, scored = [], []
    shapes = [SUPERNET.changed(hidden_size=hidden) for hidden in (32, 64, 96)]
    candidates = choose(
        lambda rng: rng.choice(shapes),
        lambda config: timed.append(config.key()) or 1.0,
        lambda config: scored.append(config.key()) or 0.0,
        max_latency_ms=2.0,
        count=3,
        rng=Random(0),
    )
    assert len(candidates) == len(timed) == len(set(timed)) == len(scored) == len(set(scored)) == 3


def test_what_is_too_slow_or_breaks_the_rule_is_not_scored_and_the_latter_not_even_timed():
    timed, scored = [], []
    search(
        rule=RULES["fast"],
        latency_ms=lambda config: timed.append(config) or cost(config),
        score=lambda config: scored.append(config) or 0.0,
    )
    assert all(fast_rule(config) for config in timed)
    assert len(timed) > len(scored) == 8


def test_equal_scores_keep_the_order_in_which_they_were_drawn():
    drawn = []
    candidates = search(latency_ms=lambda config: drawn.append(config.key()) or 1.0, score=lambda config: 0.5)
    assert keys(candidates) == drawn


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"max_latency_ms": 0.5, "max_timed": 40},
            r"found \d of 8 architectures at or below 0.5 ms among 40 timed; raise max_latency_ms \(fastest: 0.\d+ ms",
        ),
        (
            {"latency_ms": lambda config: 7.25, "max_timed": 5},
            r"found 0 of 8 architectures at or below 4.0 ms among 5 timed; .* \(fastest: 7.25 ms\) or ask for",
        ),
        ({"count": 30, "max_attempts": 10}, r"found \d+ of 30 architectures .* among 10 timed"),
        (
            {"rule": lambda config: False, "max_attempts": 50},
            "none of 50 drawn architectures obeys the rule; take another",
        ),
    ],
)
def test_too_few_architectures_are_refused_with_what_was_found_and_the_remedy(changes, message):
    with pytest.raises(ValueError, match=message):
        search(**changes)


def test_timing_stops_at_its_bound_and_as_soon_as_there_are_enough():
    for limit, expected in ((1e9, 8), (0.0, 12)):
        timed = []
        with contextlib.suppress(ValueError):
            search(max_latency_ms=limit, max_timed=12, latency_ms=lambda config: timed.append(config) or 1.0)  # noqa: B023
        assert len(timed) == expected
