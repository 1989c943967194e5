"""Draws of formulas keep the rules of the language; equal behaviour is seen through other words."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compresskit.models import CompactBertConfig
from compresskit.models.feed_forward import ACTIVATIONS, ARITY, BINARY, LINEARS, Formula, parse, plain, refusal
from compresskit.search import formulas

OPERATORS = (*LINEARS, *BINARY, *ACTIVATIONS)
CONFIG = CompactBertConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
                           feed_forward=[str(plain(4, 1))] * 2, vocab_size=50)  # fmt: skip


@given(seed=st.integers(0, 10**9), height=st.integers(0, 3))
def test_a_full_tree_has_all_leaves_at_its_height(seed, height):
    nodes = formulas.full(height, OPERATORS, Random(seed))
    formula, depths, above = Formula(nodes), [], [0]
    for node in nodes:
        depth = above.pop()
        above += [depth + 1] * ARITY[node]
        depths += [] if ARITY[node] else [depth]
    assert set(depths) == {height} == {formula.height}


@settings(max_examples=60)
@given(seed=st.integers(0, 10**9))
def test_mutants_are_trees_and_what_is_drawn_is_valid(seed):
    rng = Random(seed)
    mutant = formulas.mutated(plain(), OPERATORS, rng)  # Formula refuses what is no tree
    assert len(mutant.nodes) >= 2
    drawn = formulas.draw([plain()], ["linear1_1"], rng, lambda f: refusal(f) is None, 300)
    assert refusal(drawn) is None
    assert set(drawn.nodes) & set(LINEARS) == {"linear1_1"}


def test_every_kind_of_change_occurs_and_a_seed_repeats_its_draws():
    def draws(seed: int, count: int) -> list[str]:
        rng = Random(seed)
        linears = ["linear2_2"]
        return [
            str(formulas.draw([plain(2, 2)], linears, rng, lambda f: refusal(f) is None, 1000)) for _ in range(count)
        ]

    found = draws(0, 50)
    assert found[:10] == draws(0, 10) != draws(1, 10)
    assert len(set(found)) > 25
    lengths = [len(parse(text).nodes) for text in found]
    assert min(lengths) == 6
    assert max(lengths) >= 9
    for name in (*ACTIVATIONS, *BINARY):
        assert any(f"{name}(" in text for text in found), name


def test_without_a_valid_mutant_the_seed_is_kept():
    assert formulas.draw([plain(3, 2)], LINEARS, Random(0), lambda f: False, 5) == plain(3, 2)


def layers(*texts: str) -> tuple[str, ...]:
    return tuple(f"linear1_1({text},wb2)" for text in texts)


@pytest.mark.parametrize("faithful", [False, True])
def test_the_same_function_in_other_words_is_a_duplicate(faithful):
    swish = "swish(linear1_1(x,wb1))"
    first, second = "mul(linear1_1(x,wb1),x)", "mul(x,linear1_1(x,wb1))"
    a, b = (formulas.behaviour(layers(one, swish), CONFIG, faithful) for one in (first, second))
    assert a == b
    other = formulas.behaviour(layers(first, "gelu(linear1_1(x,wb1))"), CONFIG, faithful)
    assert other != a


def test_close_functions_and_other_sizes_are_no_duplicates():
    base = formulas.behaviour(layers("gelu(linear1_1(x,wb1))", "relu(linear1_1(x,wb1))"), CONFIG)
    swapped = formulas.behaviour(layers("relu(linear1_1(x,wb1))", "gelu(linear1_1(x,wb1))"), CONFIG)
    leaky = formulas.behaviour(layers("gelu(linear1_1(x,wb1))", "leaky_relu(linear1_1(x,wb1))"), CONFIG)
    stacked = formulas.behaviour((str(plain(2, 1)), str(plain(1, 1))), CONFIG)
    single = formulas.behaviour((str(plain(1, 1)), str(plain(1, 1))), CONFIG)
    assert len({base, swapped, leaky, stacked, single}) == 5
