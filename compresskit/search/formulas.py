"""Draws of feed-forward formulas: mutants of given ones that a search may choose, and which of them do the same.

The draws are those of DEAP's `mutUniform` (with `genFull`), `mutNodeReplacement` and `mutInsert`, as in EfficientBERT.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from random import Random

import torch
from torch import Tensor

from compresskit.models.config import CompactBertConfig
from compresskit.models.feed_forward import (
    ACTIVATIONS,
    ARITY,
    BINARY,
    ENCODED_NODES,
    LEAVES,
    Formula,
    is_linear,
    parse,
    prepare,
)

SUBTREE_HEIGHT = 3  # of a random subtree, at most
Nodes = tuple[str, ...]


def resized(text: str, size: str) -> str:
    """The formula with linear maps of another size."""
    return str(parse(text).resized(size))


def full(height: int, operators: Sequence[str], rng: Random) -> Nodes:
    """A random tree all of whose leaves are `height` below its root."""
    if not height:
        return (rng.choice(LEAVES),)
    name = rng.choice(operators)
    return (name, *(node for _ in range(ARITY[name]) for node in full(height - 1, operators, rng)))


def mutated(formula: Formula, operators: Sequence[str], rng: Random) -> Formula:
    """The tree after three draws: a random subtree in the place of one, another name for a node, a node put in."""
    place = formula.subtree(rng.randrange(len(formula.nodes)))
    formula = formula.replaced(place, full(rng.randint(0, SUBTREE_HEIGHT), operators, rng))
    at = rng.randrange(len(formula.nodes))
    alike = [name for name in (*LEAVES, *operators) if ARITY[name] == ARITY[formula.nodes[at]]]
    formula = formula.replaced(slice(at, at + 1), [rng.choice(alike)])
    place = formula.subtree(rng.randrange(len(formula.nodes)))
    name = rng.choice(operators)
    arguments: list[Nodes] = [(rng.choice(LEAVES),) for _ in range(ARITY[name])]
    arguments[rng.randrange(len(arguments))] = formula.nodes[place]
    return formula.replaced(place, [name, *(node for argument in arguments for node in argument)])


def draw(
    seeds: Sequence[Formula],
    linears: Sequence[str],
    rng: Random,
    is_valid: Callable[[Formula], bool],
    max_attempts: int,
) -> Formula:
    """A valid mutant of one of the seeds, which is mutated from its given form up to `max_attempts` times.

    linears: the names that its linear maps may have. Where all attempts fail, as they rarely do, the seed itself.
    """
    seed = rng.choice(seeds)
    operators = (*linears, *BINARY, *ACTIVATIONS)
    for _ in range(max_attempts):
        mutant = mutated(seed, operators, rng)
        if _may_be_valid(mutant.nodes) and is_valid(mutant):
            return mutant
    return seed


def _may_be_valid(nodes: Nodes) -> bool:
    """What is quick to see, before the rules are gone through."""
    linears = [node for node in nodes if is_linear(node)]
    return (
        len(nodes) <= ENCODED_NODES
        and len(linears) == 2
        and linears[0] == linears[1]
        and nodes.count("wb1") == 1 == nodes.count("wb2")
    )


def behaviour(candidate: Sequence[str], config: CompactBertConfig, faithful: bool = False) -> Hashable:
    """Equal for networks whose layers compute the same function with weights of the same sizes.

    Each layer's formula is applied to a fixed random input with fixed random weights in float64, and kept as 6 digits
    of three sums over what comes out. faithful: as the original, on 10 x 128 x 540 numbers in float32, one layer after
    the other, of which only the last sum is kept, to 2 decimals; other networks may then share it.
    """
    if faithful:
        return _chained(candidate)
    shares = [wide / config.hidden_size for wide in config.per_layer("intermediate_size")]
    return tuple(
        _fingerprint(text, share, config.feed_forward_width) for text, share in zip(candidate, shares, strict=True)
    )


@lru_cache(maxsize=1 << 16)
def _fingerprint(text: str, wide_share: float, rule: str, hidden: int = 24) -> tuple[str, ...]:
    """The size of a formula, and what it computes in a layer of this intermediate_size / hidden_size."""
    plan = prepare(text, rule)
    inner = max(1, round(wide_share * hidden) // plan.ratio)
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, first, second = drawn(32, hidden), drawn(hidden, inner), drawn(inner, hidden)
    biases, probes = (drawn(inner), drawn(hidden)), drawn(3, 32, hidden)
    out = plan.run(x, lambda t: t @ first / hidden**0.5 + biases[0], lambda t: t @ second / inner**0.5 + biases[1])
    digits = (f"{number:.5e}" for number in (probes * out).sum((1, 2)).tolist())
    return (f"{plan.stack}_{plan.ratio}", *digits)


def _chained(candidate: Sequence[str], shape: tuple[int, int, int] = (10, 128, 540)) -> str:
    hidden = shape[-1]
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    for layer, text in enumerate(candidate):
        plan = prepare(text, "min")
        generator = torch.Generator().manual_seed(1 + 16 * layer + 4 * plan.stack + plan.ratio)
        weights = [torch.rand(hidden, hidden, generator=generator) / hidden for _ in range(2)]
        x = plan.run(x, lambda t: t @ weights[0], lambda t: t @ weights[1])  # noqa: B023  # run at once
    return f"{x.sum():.2f}"
