"""Ways of choosing architectures under limits. Nothing here trains or times.

AutoTinyBERT's four: `candidates` filters a whole grid, `draw` takes some of them at random, by the fast rule where
asked to, and `evolve` proposes the next ones from what was scored.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compresskit.models.config import CompactBertConfig
from compresskit.models.elastic import check_fits
from compresskit.search.spaces import DIMENSIONS, Columns, Space, config_at, grid, grid_size, joined, rows

BAND = (0.85, 1.10)  # of the target: how far from it a predicted latency may be, as published
MUTATIONS = {  # of each dimension: how probable a move is, and how many steps of the grid it goes at most
    "num_hidden_layers": (0.25, 1),
    "hidden_size": (0.5, 1),
    "intermediate_size": (0.5, 2),
    "num_attention_heads": (0.25, 2),
    "qkv_size": (0.25, 2),
}
Shape = tuple[int, ...]  # the numbers of DIMENSIONS: equal for equal subnets of one supernet
RULES = ("random", "fast")


@dataclass(frozen=True)
class Constraint:
    """low ≤ predict(columns) ≤ high. name: what is predicted, with its unit, for messages and tables."""

    name: str
    predict: Callable[[Columns], NDArray[Any]]
    low: float = 0.0
    high: float = float("inf")

    def __post_init__(self) -> None:
        """Refuse a band that nothing can be in."""
        if not 0 <= self.low <= self.high:
            raise ValueError(f"{self.name} from {self.low:g} to {self.high:g} is no range of positive numbers")


def speedup_band(predict: Callable[[Columns], NDArray[Any]], base_ms: float, speedup: float) -> Constraint:
    """The published limit: 0.85 to 1.10 times what is `speedup` times as fast as the base, BERT-base as a rule."""
    if not speedup > 0 or not base_ms > 0:
        raise ValueError(f"speedup {speedup:g} over {base_ms:g} ms gives no latency; both are positive numbers")
    return Constraint("latency_ms", predict, *(share * base_ms / speedup for share in BAND))


def latency_limit(predict: Callable[[Columns], NDArray[Any]], max_latency_ms: float) -> Constraint:
    """A limit that is kept: 0.85 to 1 times max_latency_ms, as smaller networks would waste it."""
    if not max_latency_ms > 0:
        raise ValueError(f"max_latency_ms is {max_latency_ms:g}; expected a positive number")
    return Constraint("latency_ms", predict, BAND[0] * max_latency_ms, max_latency_ms)


def candidates(space: Space, supernet: CompactBertConfig, constraints: Sequence[Constraint]) -> Columns:
    """Every architecture of the space that keeps all constraints, in the order of the original's loops.

    Raises ValueError, with what the space has to offer, where there is none.
    """
    parts = []
    spans = [(float("inf"), float("-inf"))] * len(constraints)
    for part in grid(space, supernet):
        kept = np.ones(len(part["num_hidden_layers"]), dtype=bool)
        for number, constraint in enumerate(constraints):
            predicted = constraint.predict(part)
            kept &= (constraint.low <= predicted) & (predicted <= constraint.high)
            low, high = spans[number]
            spans[number] = min(low, float(predicted.min())), max(high, float(predicted.max()))
        parts.append(rows(part, kept))
    found = joined(parts)
    if not len(found["num_hidden_layers"]):
        wanted = [
            f"{c.name} from {c.low:.4g} to {c.high:.4g} (the space has {low:.4g} to {high:.4g})"
            for c, (low, high) in zip(constraints, spans, strict=True)
        ]
        raise ValueError(f"none of {grid_size(space)} architectures keeps {' and '.join(wanted)}; change the limits")
    return found


def obeys_fast_rule(columns: Columns) -> NDArray[np.bool_]:
    """AutoTinyBERT's shape of a good network, 1.6 h ≤ f ≤ 1.9 h and 0.7 h ≤ q ≤ h, for every architecture."""
    hidden, wide, qkv = (columns[name] for name in ("hidden_size", "intermediate_size", "qkv_size"))
    return (1.6 * hidden <= wide) & (wide <= 1.9 * hidden) & (0.7 * hidden <= qkv) & (qkv <= hidden)


def draw(
    found: Columns, supernet: CompactBertConfig, count: int, rng: Random, *, rule: str = "random"
) -> list[CompactBertConfig]:
    """`count` different architectures of `found`, drawn with equal probability; rule "fast": among those that obey it.

    Raises ValueError where there are fewer.
    """
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r}; known rules: {', '.join(RULES)}")
    chosen = rows(found, obeys_fast_rule(found)) if rule == "fast" else found
    size = len(chosen["num_hidden_layers"])
    if size < count:
        whose = "obey the fast rule and keep the limits" if rule == "fast" else "keep the limits"
        raise ValueError(f"{size} architectures {whose}, {count} are wanted; ask for fewer, or change limits or space")
    return [config_at(chosen, index, supernet) for index in rng.sample(range(size), count)]


def shape_of(config: CompactBertConfig) -> Shape:
    """The canonical form in which subnets of one supernet are compared, however they were written down.

    Raises ValueError where its layers differ: searched architectures are the same in every layer.
    """
    numbers = {name: config.brief(name) for name in DIMENSIONS}
    if uneven := [name for name, number in numbers.items() if not isinstance(number, int)]:
        raise ValueError(f"{uneven[0]} is {numbers[uneven[0]]}; a searched architecture has one number for all layers")
    return tuple(numbers.values())  # type: ignore[arg-type]


def evolve(
    scored: Sequence[tuple[CompactBertConfig, float]],
    found: Columns,
    space: Space,
    supernet: CompactBertConfig,
    constraints: Sequence[Constraint],
    rng: Random,
    *,
    children: int = 25,
    parents: int = 25,
    random_share: float = 0.5,
    crossover: float = 0.0,
    max_attempts: int = 1000,
) -> list[CompactBertConfig]:
    """The next generation: different architectures that keep the constraints and that nobody has scored yet.

    scored: every architecture so far with its fitness, higher is better; several fitnesses of one are averaged.
    found: what `candidates` gave. Each child is, with probability random_share, a uniformly drawn candidate, else a
    mutant of one of the best `parents`, drawn with weights fitness − lowest fitness among them (all equal: uniformly).
    crossover: probability that a mutant first takes each number from one of two parents. A parent off the grid moves to
    the values of the grid next to it. max_attempts: mutants of one parent; a parent without a new one in as many has no
    more children in this generation. Raises ValueError, with how many were found, when nothing is left to try.
    """
    seen = {shape_of(config) for config, _ in scored}
    living = _parents(scored, space, supernet, parents)
    left = len(found["num_hidden_layers"]) > 0
    born: list[CompactBertConfig] = []
    while len(born) < children:
        if not left and not living:
            raise ValueError(
                f"found {len(born)} of {children} new architectures within the limits: all candidates are scored, and "
                f"no parent had another mutant in {max_attempts} attempts; widen the limits or end the search"
            )
        if left and (not living or rng.random() < random_share):
            child = _unseen(found, seen, rng)
            left = child is not None
        elif living:
            parent = _roulette(living, rng)
            child = _mutant(parent, living, space, supernet, constraints, seen, rng, crossover, max_attempts)
            if child is None:
                living.remove(parent)
        if child is not None:
            seen.add(child)
            born.append(supernet.changed(**dict(zip(DIMENSIONS, child, strict=True))))
    return born


Parent = tuple[dict[str, int], float]  # its numbers in the dimensions of the space, and its fitness


def _parents(
    scored: Sequence[tuple[CompactBertConfig, float]], space: Space, supernet: CompactBertConfig, count: int
) -> list[Parent]:
    fitness: dict[Shape, list[float]] = {}
    for config, number in scored:
        fitness.setdefault(shape_of(config), []).append(number)
    best = sorted(((fmean(numbers), shape) for shape, numbers in fitness.items()), key=lambda pair: -pair[0])[:count]
    made = []
    for number, shape in best:
        named = dict(zip(DIMENSIONS, shape, strict=True))
        check_fits(supernet, supernet.changed(**named))
        own = {name: named[name] for name in vars(space)}
        if (whole := space.complete(own, supernet)) != named:
            raise ValueError(f"{named} is not of this flavour, which makes it {whole}; search with the other flavour")
        made.append((own, number))
    return made


def _roulette(living: Sequence[Parent], rng: Random) -> Parent:
    lowest = min(fitness for _, fitness in living)
    weights = [fitness - lowest for _, fitness in living]
    return rng.choices(living, weights if any(weights) else None)[0]


def _unseen(found: Columns, seen: set[Shape], rng: Random) -> Shape | None:
    """A candidate that is not in `seen`, each with the same probability; None where all are."""
    size = len(found["num_hidden_layers"])
    for _ in range(100):  # enough unless nearly all are seen
        index = rng.randrange(size)
        shape = tuple(int(found[name][index]) for name in DIMENSIONS)
        if shape not in seen:
            return shape
    rest = [s for s in zip(*(found[name].tolist() for name in DIMENSIONS), strict=True) if s not in seen]
    return rng.choice(rest) if rest else None


def _mutant(
    parent: Parent,
    living: Sequence[Parent],
    space: Space,
    supernet: CompactBertConfig,
    constraints: Sequence[Constraint],
    seen: set[Shape],
    rng: Random,
    crossover: float,
    max_attempts: int,
) -> Shape | None:
    """A new architecture near `parent` that keeps the constraints; None where max_attempts bring none."""
    for _ in range(max_attempts):
        own = dict(parent[0])
        if rng.random() < crossover:
            other = _roulette(living, rng)[0]
            own = {name: rng.choice((number, other[name])) for name, number in own.items()}
        named = space.complete(mutated(own, space, rng), supernet)
        shape = tuple(named[name] for name in DIMENSIONS)
        if shape not in seen and _keeps(named, constraints):
            return shape
    return None


def mutated(own: Mapping[str, int], space: Space, rng: Random) -> dict[str, int]:
    """The numbers of an architecture in the dimensions of the space, moved as MUTATIONS says."""
    moved = dict(own)
    for name in own:
        probability, reach = MUTATIONS[name]
        if rng.random() < probability:
            moved[name] = _moved(own[name], sorted(vars(space)[name]), rng.randint(-reach, reach))
    return moved


def _moved(value: int, values: Sequence[int], steps: int) -> int:
    """So many grid values up or down; where that leaves the grid, the old value."""
    nearest = bisect_right(values, value) - 1 if steps > 0 else bisect_left(values, value)
    to = nearest + steps
    return values[to] if steps and 0 <= to < len(values) else value


def _keeps(named: Mapping[str, int], constraints: Sequence[Constraint]) -> bool:
    columns = {name: np.array([named[name]]) for name in DIMENSIONS}
    return all(c.low <= float(c.predict(columns)[0]) <= c.high for c in constraints)
