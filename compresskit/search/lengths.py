"""The search for length configurations of the Length-Adaptive Transformer (Kim & Cho 2021) and Dynamic-TinyBERT.

A length configuration says how many tokens are left after each layer. The evolutionary search keeps a front of score
against cost: constant ratios to start with, then mutations and crossovers of what is on the front. Score and cost are
functions; nothing here trains, times or loads a model.

L layers, T tokens of the input (seq_len).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, NamedTuple, Protocol

Lengths = tuple[int, ...]  # tokens left after each layer, never rising
INITIAL, MUTATION, CROSSOVER = range(3)
PUBLISHED_LAYERS, PUBLISHED_SEQ_LEN = 12, 384  # whose ratios the released code starts with, whatever the model


class Entry(NamedTuple):
    """What is known of a length configuration; the score is NaN until it is scored."""

    cost: float
    score: float
    method: int = INITIAL
    parents: tuple[Lengths, ...] | None = None


class Draws(Protocol):
    """What a search draws from: random.Random."""

    def random(self) -> float:
        """From 0 to 1."""

    def choice(self, population: Sequence[Lengths], /) -> Lengths:
        """One of them."""

    def sample(self, population: Sequence[Lengths], k: int, /) -> Sequence[Lengths]:
        """Different ones."""

    def randrange(self, start: int, stop: int, /) -> int:
        """From start to stop - 1."""


# Constant ratios


def constant_ratio(seq_len: int, layers: int, ratio: float, shortest: int = 2) -> Lengths:
    """Every layer drops the share `ratio` of its tokens: l ← ⌈l (1 − ratio)⌉, but keeps `shortest`."""
    if not 0 <= ratio < 1:
        raise ValueError(f"a layer cannot drop {ratio:g} of its tokens; the ratio is at least 0 and below 1")
    found, length = [], seq_len
    for _ in range(layers):
        length = max(ceil(length * (1 - ratio)), min(shortest, seq_len))
        found.append(length)
    return tuple(found)


def share_left(ratio: float, layers: int, seq_len: int) -> float:
    """A(ratio) = Σ lᵢ / (L T): the mean share of tokens left when every layer drops that ratio, without a shortest."""
    total, length = 0, seq_len
    for _ in range(layers):
        length = ceil(length * (1 - ratio))
        total += length
    return total / (layers * seq_len)


def ratio_that_leaves(share: float, layers: int, seq_len: int) -> float:
    """The ratio from which on A(ratio) ≤ share, by bisection to 1e-12."""
    low, high = 0.0, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        if share_left(middle, layers, seq_len) > share:
            low = middle
        else:
            high = middle
    return low


def first_ratios(count: int, max_drop: float, layers: int, seq_len: int) -> list[float]:
    """Ratios whose shares A lie evenly between A(max_drop) and 1, both excluded; the highest ratio first."""
    lowest = share_left(max_drop, layers, seq_len)
    step = (1 - lowest) / (count + 1)
    return [ratio_that_leaves(lowest + step * number, layers, seq_len) for number in range(1, count + 1)]


# Fronts


def frontier(entries: Mapping[Lengths, Entry], *, faithful: bool = False) -> list[Lengths]:
    """By rising cost, those that score higher than all cheaper ones; the costliest always, as the area needs its end.

    Of equal costs only the best score counts. faithful: as released, which keeps both where the second is better.
    """
    ordered = sorted(entries, key=lambda lengths: entries[lengths][:2])
    if not faithful:
        best: dict[float, Lengths] = {entries[lengths].cost: lengths for lengths in ordered}
        ordered = list(best.values())
    kept = ordered[:1]
    for lengths in ordered[1:-1]:
        if entries[lengths].score > entries[kept[-1]].score:
            kept.append(lengths)
    return kept + ordered[1:][-1:]


def area(front: Sequence[Lengths], entries: Mapping[Lengths, Entry], lower: float, upper: float) -> float:
    """Area under the front by the left rule, Σ (xⱼ₊₁ − xⱼ) yⱼ / (upper − lower): the mean score over the costs."""
    points = [entries[lengths] for lengths in front]
    steps = ((right.cost - left.cost) * left.score for left, right in itertools.pairwise(points))
    return sum(steps) / (upper - lower) if upper > lower else 0.0


def convex_hull(front: Sequence[Lengths], entries: Mapping[Lengths, Entry]) -> list[Lengths]:
    """The upper hull of a front, from left to right: what no mixture of two others beats ("parents")."""
    hull = list(front[:2])
    for lengths in front[2:]:
        x, y = entries[lengths][:2]
        if y <= entries[hull[-1]].score:
            continue
        while len(hull) > 1:
            (x0, y0), (x1, y1) = (entries[point][:2] for point in hull[-2:])
            if (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) < 0:  # a turn to the right
                break
            hull.pop()
        hull.append(lengths)
    return hull


# The evolutionary search


@dataclass(frozen=True)
class Generation:
    """What is known after `number` rounds of mutations and crossovers; the population is then the front."""

    number: int
    area: float
    hull: list[Lengths]
    notice: str = ""  # where the round ended before it had all that were wanted


class Evolution:
    """Everything that was tried (`store`), and those that breed (`population`, in the order of their coming).

    cost: lower is better, known without scoring; between that of the smallest and that of the full configuration.
    score: of several configurations at once, higher is better. max_drop: ratio of the smallest configuration.
    faithful: the start has the ratios of 12 layers and 384 tokens whatever the model, and `frontier` is as released.
    """

    def __init__(
        self,
        seq_len: int,
        layers: int,
        cost: Callable[[Lengths], float],
        score: Callable[[Sequence[Lengths]], Sequence[float]],
        *,
        max_drop: float = 0.2,
        shortest: int = 2,
        faithful: bool = False,
    ):
        if not 1 <= shortest <= seq_len or layers < 1:
            raise ValueError(f"{layers} layers that keep {shortest} of {seq_len} tokens cannot be searched")
        self.seq_len, self.layers, self.cost, self.score = seq_len, layers, cost, score
        self.max_drop, self.shortest, self.faithful = max_drop, shortest, faithful
        self.store: dict[Lengths, Entry] = {}
        self.population: list[Lengths] = []
        self.lower, self.upper = 0.0, float("inf")

    def load(self, known: Mapping[Lengths, tuple[float, float]]) -> None:
        """Take over costs and scores of an earlier search; where they came from is not kept, as in the original."""
        self.store |= {lengths: Entry(cost, score) for lengths, (cost, score) in known.items()}

    def start(self, population_size: int) -> list[bool]:
        """The smallest and the full configuration, whose costs become the limits, then constant ratios between them.

        Returns which of the latter were new.
        """
        ends = constant_ratio(self.seq_len, self.layers, self.max_drop, self.shortest), (self.seq_len,) * self.layers
        for lengths in ends:
            self.add(lengths)
        self.lower, self.upper = (self.store[lengths].cost for lengths in ends)
        shape = (PUBLISHED_LAYERS, PUBLISHED_SEQ_LEN) if self.faithful else (self.layers, self.seq_len)
        ratios = first_ratios(population_size, self.max_drop, *shape)
        added = [self.add(constant_ratio(self.seq_len, self.layers, ratio, self.shortest)) for ratio in ratios]
        self.score_new()
        return added

    def add(self, lengths: Lengths, method: int = INITIAL, parents: tuple[Lengths, ...] | None = None) -> bool:
        """Let a configuration join the population, unless its cost is outside the limits or it is there already."""
        if lengths not in self.store:
            cost = self.cost(lengths)
            if not self.lower <= cost <= self.upper:
                return False
            self.store[lengths] = Entry(cost, float("nan"), method, parents)
        if lengths in self.population or not self.lower <= self.store[lengths].cost <= self.upper:
            return False
        self.population.append(lengths)
        return True

    def score_new(self) -> None:
        """Score everything that has no score yet: costs alone decide what joins, so all can be scored together."""
        new = [lengths for lengths, entry in self.store.items() if entry.score != entry.score]
        for lengths, score in zip(new, self.score(new) if new else [], strict=True):
            self.store[lengths] = self.store[lengths]._replace(score=score)

    def mutate(self, rng: Draws, probability: float = 0.5) -> bool:
        """Each layer of a random parent gets, with that probability, another length between its neighbours'."""
        parent = rng.choice(self.population)
        child: list[int] = []
        for layer, length in enumerate(parent):
            if rng.random() < probability:
                lowest = self.shortest if layer == self.layers - 1 else parent[layer + 1]
                length = rng.randrange(lowest, (child[-1] if child else self.seq_len) + 1)
            child.append(length)
        return self.add(tuple(child), MUTATION, (parent,))

    def cross(self, rng: Draws) -> bool:
        """The rounded mean of two random parents."""
        one, two = rng.sample(self.population, 2)
        return self.add(tuple((a + b + 1) // 2 for a, b in zip(one, two, strict=True)), CROSSOVER, (one, two))

    def reduce(self) -> tuple[float, list[Lengths]]:
        """Leave only the front in the population; returns its area and its hull."""
        population = {lengths: self.store[lengths] for lengths in self.population}
        self.population = frontier(population, faithful=self.faithful)
        return (
            area(self.population, self.store, self.lower, self.upper),
            convex_hull(self.population, self.store),
        )

    def run(
        self,
        iterations: int,
        rng_of: Callable[[int], Draws],
        *,
        mutations: int = 30,
        crossovers: int = 30,
        probability: float = 0.5,
        max_attempts: int = 1000,
    ) -> Iterator[Generation]:
        """So many rounds after `start`; each state of the front is handed out, that before the first round too.

        rng_of: what the round of that number, from 0, draws from: a function of seed and number, so that a search that
        is run again finds the same. max_attempts: mutations, and as many crossovers, that a round tries at most; one
        that gets fewer than it wants goes on with a notice, one that gets none ends the search.
        """
        notice = ""
        for number in range(iterations + 1):
            yield Generation(number, *self.reduce(), notice)
            if number == iterations:
                return
            rng = rng_of(number)
            got = [
                _accepted(lambda rng=rng: self.mutate(rng, probability), mutations, max_attempts),
                _accepted(lambda rng=rng: len(self.population) > 1 and self.cross(rng), crossovers, max_attempts),
            ]
            self.score_new()
            notice = ""
            if got != [mutations, crossovers]:
                notice = (
                    f"round {number + 1} found {got[0]} of {mutations} mutations and {got[1]} of {crossovers} "
                    f"crossovers in {max_attempts} attempts each"
                )
            if not sum(got) and mutations + crossovers:
                yield Generation(number + 1, *self.reduce(), notice + ": nothing new is left, the search ends")
                return


def _accepted(attempt: Callable[..., Any], wanted: int, max_attempts: int) -> int:
    found = 0
    for _ in range(max_attempts):
        if found == wanted:
            break
        found += bool(attempt())
    return found
