"""Candidates of a whole grid, the random and the fast draw, evolution: limits, seeds, grids, what runs out."""

from __future__ import annotations

from collections import Counter
from random import Random

import numpy as np
import pytest

from compresskit.models import CompactBertConfig, presets
from compresskit.search import select
from compresskit.search.costs import Flops, Parameters
from compresskit.search.select import (
    Constraint,
    candidates,
    draw,
    evolve,
    latency_limit,
    mutated,
    obeys_fast_rule,
    shape_of,
    speedup_band,
)
from compresskit.search.spaces import DIMENSIONS, RELEASED_GRIDS, SPACES, columns_of, config_at, grid, joined, rows

SUPERNET = presets.config("superbert")
SMALL = {  # grids of some hundred points
    "kd": SPACES["kd"](range(1, 4), range(128, 257, 32), range(128, 513, 64), range(180, 253, 24)),
    "mlm": SPACES["mlm"](range(1, 4), range(1, 5), range(128, 257, 32), range(128, 513, 64)),
}
flavours = pytest.mark.parametrize("flavour", sorted(SMALL))


def milliseconds(columns):
    return Flops(128).predict(columns) / 1e7


def found(flavour: str, low: float = 0.0, high: float = float("inf")):
    limits = [Constraint("latency_ms", milliseconds, low, high)]
    return candidates(SMALL[flavour], SUPERNET, limits), limits


def shapes(columns) -> list[tuple[int, ...]]:
    return list(zip(*(columns[name].tolist() for name in DIMENSIONS), strict=True))


# Candidates


@flavours
def test_candidates_are_exactly_the_points_within_all_limits_in_order(flavour):
    limits = [
        Constraint("latency_ms", milliseconds, 10, 60),
        Constraint("parameters", Parameters(SUPERNET).predict, high=6e6),
    ]
    kept = shapes(candidates(SMALL[flavour], SUPERNET, limits))
    every = joined(list(grid(SMALL[flavour], SUPERNET)))
    expected = [
        shape
        for shape, ms, number in zip(shapes(every), milliseconds(every), limits[1].predict(every), strict=True)
        if 10 <= ms <= 60 and number <= 6e6
    ]
    assert kept == expected
    assert 0 < len(kept) < len(shapes(every))


def test_the_published_band_is_085_to_110_of_the_base_divided_by_the_speedup():
    band = speedup_band(milliseconds, 1063, 9)
    assert (band.low, band.high) == (pytest.approx(0.85 * 1063 / 9), pytest.approx(1.10 * 1063 / 9))
    limit = latency_limit(milliseconds, 20)
    assert (limit.low, limit.high) == (17, 20)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: speedup_band(milliseconds, 100, 0), "speedup 0 over 100 ms gives no latency"),
        (lambda: latency_limit(milliseconds, -1), "max_latency_ms is -1; expected a positive number"),
        (lambda: Constraint("parameters", milliseconds, 5, 4), "parameters from 5 to 4 is no range"),
        (
            lambda: found("kd", 1e5, 1e6),
            r"none of 420 architectures keeps latency_ms from 1e\+05 to 1e\+06 \(the space has [\d.]+ to [\d.]+\)",
        ),
    ],
)
def test_limits_that_nothing_can_keep_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Random and fast


@flavours
@pytest.mark.parametrize("rule", select.RULES)
def test_draws_are_different_candidates_that_obey_the_rule_and_repeat_by_seed(flavour, rule):
    kept, _ = found(flavour)
    first, again, other = (draw(kept, SUPERNET, 10, Random(seed), rule=rule) for seed in (1, 1, 2))
    assert [shape_of(c) for c in first] == [shape_of(c) for c in again] != [shape_of(c) for c in other]
    assert len({shape_of(c) for c in first}) == 10
    assert {shape_of(c) for c in first} <= set(shapes(kept))
    assert rule == "random" or obeys_fast_rule(columns_of(first)).all()


def test_too_few_candidates_are_refused_with_their_number():
    kept, _ = found("kd", 0, 12)
    number = len(kept["hidden_size"])
    with pytest.raises(ValueError, match=f"{number} architectures keep the limits, {number + 1} are wanted"):
        draw(kept, SUPERNET, number + 1, Random(0))
    with pytest.raises(ValueError, match="obey the fast rule and keep the limits, 400 are wanted"):
        draw(kept, SUPERNET, 400, Random(0), rule="fast")
    with pytest.raises(ValueError, match="unknown rule 'quick'; known rules: random, fast"):
        draw(kept, SUPERNET, 1, Random(0), rule="quick")


# Evolution


def first_generation(flavour: str, count: int = 25, seed: int = 0, **limits):
    kept, constraints = found(flavour, **limits)
    drawn = draw(kept, SUPERNET, count, Random(seed))
    return [(config, float(n)) for n, config in enumerate(drawn)], kept, SMALL[flavour], SUPERNET, constraints


@flavours
@pytest.mark.parametrize("crossover", [0.0, 1.0])
def test_children_are_new_different_within_the_limits_and_repeat_by_seed(flavour, crossover):
    given = first_generation(flavour, low=20, high=80)
    first, again, other = (evolve(*given, Random(seed), crossover=crossover) for seed in (1, 1, 2))
    born = [shape_of(c) for c in first]
    assert born == [shape_of(c) for c in again] != [shape_of(c) for c in other]
    assert len(set(born)) == 25
    assert not set(born) & {shape_of(config) for config, _ in given[0]}
    assert all(20 <= ms <= 80 for ms in milliseconds(columns_of(first)))
    assert all(c.vocab_size == SUPERNET.vocab_size for c in first)


def test_half_of_the_children_are_random_and_half_are_near_a_good_parent():
    space, limits = RELEASED_GRIDS["kd"], [Constraint("latency_ms", milliseconds, 100, 110)]
    kept = candidates(space, SUPERNET, limits)
    good = draw(kept, SUPERNET, 1, Random(3))[0]
    near = 0
    for seed in range(40):
        for child in evolve([(good, 1.0)], kept, space, SUPERNET, limits, Random(seed), children=5):
            moved = np.abs(np.array(shape_of(child)) - np.array(shape_of(good)))
            near += bool((moved <= [1, 16, 64, 0, 24]).all())
    assert 75 < near < 125  # of 200, four standard deviations; of 30,000 candidates hardly one is so near by chance


def test_parents_are_the_best_by_mean_fitness_and_the_fitter_have_more_children():
    space = SPACES["kd"](range(1, 9), range(128, 769, 4), range(128, 3073, 4), range(180, 769, 12))
    a, b, c = (SUPERNET.changed(hidden_size=h, intermediate_size=f, qkv_size=q) for h, f, q in
               ((200, 400, 240), (400, 1200, 480), (600, 2400, 720)))  # fmt: skip
    scored = [(a, 3.0), (b, 2.0), (b, 2.0), (c, 1.0), (c, 10.0), (c, -10.0)]  # c: a third
    nearest = Counter(
        min((a, b, c), key=lambda parent: abs(parent.hidden_size - child.hidden_size)).hidden_size
        for seed in range(8)  # few children each, so that no parent runs out of mutants
        for child in evolve(scored, columns_of([]), space, SUPERNET, [], Random(seed), children=40)
    )
    assert nearest[600] == 0  # the lowest among the parents weighs nothing
    assert nearest[200] / nearest[400] == pytest.approx((3 - 1 / 3) / (2 - 1 / 3), rel=0.3)
    only_two = evolve(scored, columns_of([]), space, SUPERNET, [], Random(0), children=40, parents=2)
    assert {min((a, b, c), key=lambda p: abs(p.hidden_size - x.hidden_size)).hidden_size for x in only_two} == {200}
    equal = evolve([(a, 1.0), (b, 1.0)], columns_of([]), space, SUPERNET, [], Random(0), children=100)
    assert 30 < sum(child.hidden_size < 300 for child in equal) < 70


@flavours
def test_moves_have_their_probabilities_and_reach(flavour):
    space, rng = RELEASED_GRIDS[flavour], Random(0)
    middle = {name: values[len(values) // 2] for name, values in vars(space).items()}
    steps: dict[str, Counter] = {name: Counter() for name in middle}
    for _ in range(4000):
        for name, value in mutated(middle, space, rng).items():
            grid_of = list(vars(space)[name])
            steps[name][grid_of.index(value) - grid_of.index(middle[name])] += 1
    for name, (probability, reach) in select.MUTATIONS.items():
        if name in steps:
            share = probability / (2 * reach + 1)
            for step in range(-reach, reach + 1):
                expected = share + (1 - probability) * (step == 0)
                assert steps[name][step] / 4000 == pytest.approx(expected, abs=0.03), (name, step)
            assert set(steps[name]) == set(range(-reach, reach + 1))


def test_a_move_off_the_grid_keeps_the_value_and_an_off_grid_value_moves_to_its_neighbours():
    def moves(value, steps):
        return [select._moved(value, [128, 144, 160], step) for step in steps]

    assert moves(128, (-2, -1, 0, 1, 2, 3)) == [128, 128, 128, 144, 160, 128]
    assert moves(150, (-2, -1, 0, 1, 2)) == [128, 144, 150, 160, 150]
    assert moves(100, (-1, 0, 1)) == [100, 100, 128]
    assert moves(200, (-1, 0, 1)) == [160, 200, 200]


@pytest.mark.parametrize("name", [name for name in presets.PRESETS if name.startswith("autotinybert")])
def test_every_published_architecture_can_be_a_parent_on_the_released_grid(name):
    flavour = "kd" if "-kd-" in name else "mlm"
    parent = presets.config(name)
    ms = float(milliseconds(columns_of([parent]))[0])
    limits = [speedup_band(milliseconds, ms, 1)]
    space = RELEASED_GRIDS[flavour]
    children = evolve([(parent, 1.0)], columns_of([]), space, SUPERNET, limits, Random(0), children=8)
    assert len({shape_of(child) for child in children}) == 8
    for child in children:
        assert 0.85 * ms <= milliseconds(columns_of([child]))[0] <= 1.1 * ms
        for field in vars(space):
            assert getattr(child, field) in (*vars(space)[field], getattr(parent, field))


def test_a_parent_of_twelve_heads_has_children():
    parent = SUPERNET.changed(num_hidden_layers=4)
    children = evolve([(parent, 1.0)], columns_of([]), RELEASED_GRIDS["mlm"], SUPERNET, [], Random(0), children=20)
    assert {child.num_attention_heads for child in children} <= {10, 11, 12}
    assert all(child.qkv_size == 64 * child.num_attention_heads for child in children)


def test_what_was_scored_under_another_spelling_is_known():
    kept, limits = found("kd", 0, 11)
    everything = [config_at(kept, n, SUPERNET) for n in range(len(kept["hidden_size"]))]
    listed = [c.changed(qkv_size=c.per_layer("qkv_size"), intermediate_size=c.per_layer("intermediate_size"))
              for c in everything[:-2]]  # fmt: skip
    children = evolve([(c, 1.0) for c in listed], kept, SMALL["kd"], SUPERNET, limits, Random(0), children=2)
    assert {shape_of(c) for c in children} == {shape_of(c) for c in everything[-2:]}


def test_evolution_ends_with_a_clear_message_when_nothing_is_left():
    kept, limits = found("kd", 0, 11)
    size = len(kept["hidden_size"])
    scored = [(config_at(kept, n, SUPERNET), 1.0) for n in range(size - 3)]
    with pytest.raises(
        ValueError, match=r"found 3 of 25 new architectures within the limits: .* in 50 attempts; widen"
    ):
        evolve(scored, kept, SMALL["kd"], SUPERNET, limits, Random(0), max_attempts=50)


@pytest.mark.parametrize(
    ("parent", "flavour", "message"),
    [
        (
            CompactBertConfig(num_hidden_layers=2, intermediate_size=[100, 200]),
            "kd",
            r"intermediate_size is \[100, 200\]",
        ),
        (presets.config("autotinybert-s1"), "kd", "not of this flavour.*search with the other"),
        (presets.config("autotinybert-kd-s1"), "mlm", "not of this flavour"),
        (CompactBertConfig(num_hidden_layers=9), "kd", "num_hidden_layers 9 exceeds the supernet's 8"),
    ],
)
def test_a_parent_that_is_no_subnet_of_the_flavour_is_refused(parent, flavour, message):
    with pytest.raises(ValueError, match=message):
        evolve([(parent, 1.0)], rows(found(flavour)[0], []), SMALL[flavour], SUPERNET, [], Random(0))
