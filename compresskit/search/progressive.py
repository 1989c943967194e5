"""EfficientBERT's search in three stages: formulas and sizes, formulas of frozen sizes, sizes of frozen formulas.

A candidate is one formula per layer, whose linear maps name the layer's size. Trials are numbered and come in rounds:
all of a round are drawn by what the rounds before it have shown, so they may be scored at the same time, in any order
and on any machine. Which candidate a trial is depends on the seed, its number, the candidates before it and the scores
of the earlier rounds, and on nothing else. Nothing here trains.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from typing import Literal, Protocol

import numpy as np

from compresskit.models import CompactBertConfig
from compresskit.models.feed_forward import (
    HEIGHTS,
    IDS,
    LINEARS,
    SIZES,
    Formula,
    check_runs,
    encode,
    parse,
    plain,
    prepare,
    refusal,
)
from compresskit.search import classifier_tree, costs, formulas

Candidate = tuple[str, ...]


class Space(Protocol):
    """What a stage draws from."""

    def initial(self) -> list[Candidate]:
        """Candidates that are scored before any is drawn."""

    def draw(self, rng: Random) -> Candidate:
        """A random one.  Raises ValueError, with what was found, where none keeps the bounds."""

    def encode(self, candidate: Candidate) -> list[int]:
        """What the classifiers see: equally many numbers for each layer."""

    def behaviour(self, candidate: Candidate) -> Hashable:
        """Equal for candidates that are worth only one trial."""


@dataclass(frozen=True)
class Rules:
    """Which formulas a layer may have, and how many parameters a network: `low` to `high`, as `parameters` counts.

    faithful: the original's rules and its test of behaviour (models/feed_forward.py, search/formulas.py).
    """

    supernet: CompactBertConfig
    low: float = 0.0
    high: float = float("inf")
    heights: tuple[int, int] = HEIGHTS  # least and greatest of a formula's tree
    faithful: bool = False
    max_attempts: int = 1000  # mutants of a layer's seed
    max_draws: int = 10_000  # networks, for one within the bounds

    @cached_property
    def outside(self) -> int:
        """Weights that every candidate has: embeddings and attention."""
        own = feed_forward_parameters(self.supernet.feed_forward or (), self.supernet)
        return costs.parameters(self.supernet) - own

    def parameters(self, candidate: Candidate) -> int:
        """Weights of the encoder, without pooler."""
        return self.outside + feed_forward_parameters(candidate, self.supernet)

    def is_valid(self, formula: Formula) -> bool:
        """Whether the search may choose it and it fits the widths of the supernet."""
        if refusal(formula, self.heights, self.faithful):
            return False
        if not formula.size_index:
            return True
        try:
            hidden, wide = self.supernet.hidden_size, self.supernet.per_layer("intermediate_size")[0]
            check_runs(formula, hidden, wide // int(formula.size_index[-1]), self.supernet.feed_forward_width)  # type: ignore[arg-type]
        except ValueError:
            return False
        return True

    def keeps_bounds(self, candidate: Candidate) -> bool:
        """Whether it is neither too small nor too large."""
        return self.low <= self.parameters(candidate) <= self.high

    def within(self, draw: Callable[[], Candidate]) -> Candidate:
        """The first of max_draws candidates that keeps the bounds; ValueError, with the sizes seen, for none."""
        seen = []
        for _ in range(self.max_draws):
            candidate = draw()
            if self.keeps_bounds(candidate):
                return candidate
            seen.append(self.parameters(candidate))
        raise ValueError(
            f"none of {len(seen)} drawn networks has {self.low:,.0f} to {self.high:,.0f} parameters: they have "
            f"{min(seen):,} to {max(seen):,}; change min_parameters and max_parameters"
        )

    def behaviour(self, candidate: Candidate) -> Hashable:
        """See `formulas.behaviour`."""
        return formulas.behaviour(candidate, self.supernet, self.faithful)


@dataclass(frozen=True)
class FormulasAndSizes:
    """Stage 1: every layer is a mutant of BERT's own feed-forward of one of the sixteen sizes."""

    rules: Rules

    def initial(self) -> list[Candidate]:
        """The network with BERT's own feed-forwards, where it keeps the bounds."""
        own = (str(plain()),) * self.rules.supernet.num_hidden_layers
        return [own] if self.rules.keeps_bounds(own) else []

    def draw(self, rng: Random) -> Candidate:
        """See Space. Layers are drawn independently, and networks until one keeps the bounds."""
        seeds = [plain().resized(size) for size in SIZES]

        def network() -> Candidate:
            return tuple(
                str(formulas.draw(seeds, LINEARS, rng, self.rules.is_valid, self.rules.max_attempts))
                for _ in range(self.rules.supernet.num_hidden_layers)
            )

        return self.rules.within(network)

    def encode(self, candidate: Candidate) -> list[int]:
        """See Space and `described`."""
        return described([parse(formula) for formula in candidate], 1, self.rules.faithful)

    def behaviour(self, candidate: Candidate) -> Hashable:
        """See Space."""
        return self.rules.behaviour(candidate)


@dataclass(frozen=True)
class FormulasOfSizes:
    """Stage 2: every layer is a mutant of the stage-1 winner's layer, or of BERT's own, of the winner's size."""

    rules: Rules
    winner: Candidate

    def initial(self) -> list[Candidate]:
        """The winner, and its sizes with BERT's own feed-forwards."""
        return list(dict.fromkeys([self.winner, plain_of(self.winner)]))

    def draw(self, rng: Random) -> Candidate:
        """See Space. The size of the network is the winner's, so the bounds are not asked."""
        found = []
        for formula in map(parse, self.winner):
            seeds = [formula.resized(None), plain().resized(None)]

            def fits(mutant: Formula, size: str | None = formula.size_index) -> bool:
                return self.rules.is_valid(mutant) and self.rules.is_valid(mutant.resized(size))

            mutant = formulas.draw(seeds, ["linear"], rng, fits, self.rules.max_attempts)
            found.append(str(mutant.resized(formula.size_index)))
        return tuple(found)

    def encode(self, candidate: Candidate) -> list[int]:
        """See Space and `described`; all linear maps have one name."""
        return described([parse(formula).resized(None) for formula in candidate], 2, self.rules.faithful)

    def behaviour(self, candidate: Candidate) -> Hashable:
        """See Space."""
        return self.rules.behaviour(candidate)


@dataclass(frozen=True)
class SizesOfFormulas:
    """Stage 3: every layer has the stage-2 winner's size, or one of the sixteen: 17 rows, drawn with equal chances."""

    rules: Rules
    winner: Candidate

    def initial(self) -> list[Candidate]:
        """The winner, where it keeps the bounds."""
        return [self.winner] if self.rules.keeps_bounds(self.winner) else []

    def draw(self, rng: Random) -> Candidate:
        """See Space. Networks are drawn until one keeps the bounds."""

        def network() -> Candidate:
            rows = [rng.choice([None, *SIZES]) for _ in self.winner]
            return tuple(
                formulas.resized(formula, row) if row else formula
                for formula, row in zip(self.winner, rows, strict=True)
            )

        return self.rules.within(network)

    def encode(self, candidate: Candidate) -> list[int]:
        """See Space: the number of each layer's size."""
        return encode([parse(formula) for formula in candidate], 3)

    def behaviour(self, candidate: Candidate) -> Hashable:
        """See Space: other sizes are another network."""
        return candidate


@dataclass(frozen=True)
class Proposal:
    """The candidate of a trial, and what it took to find it."""

    candidate: Candidate
    duplicates: int = 0  # draws that behave as a candidate before it
    rejected: int = 0  # draws that the classifiers sent elsewhere
    free: bool = False  # no draw was sent where it should go: the next random one


@dataclass
class Proposer:
    """Which candidate a trial is.

    initial_trials: of the first round, which is drawn at random; refit_every: of every later one. exploration: see
    `classifier_tree.walk`. max_rejections: draws that the classifiers may refuse before a random one is taken;
    max_duplicates: draws in a row that may be known already before the space counts as exhausted.
    """

    space: Space
    seed: int
    initial_trials: int = 80
    refit_every: int = 10
    exploration: float = 0.0
    max_rejections: int = 20_000
    max_duplicates: int = 1000
    _trees: dict[int, classifier_tree.Node] = field(default_factory=dict)  # by the first trial of their round
    _keys: dict[Candidate, Hashable] = field(default_factory=dict)

    def round_of(self, number: int) -> range:
        """The trials, counted from 0, that are drawn by the same scores as this one."""
        if number < self.initial_trials:
            return range(self.initial_trials)
        first = number - (number - self.initial_trials) % self.refit_every
        return range(first, first + self.refit_every)

    def propose(self, number: int, before: Sequence[Candidate], scores: Mapping[int, float]) -> Proposal:
        """The candidate of trial `number`.

        before: the candidates of all trials below it; scores: by number, of those of earlier rounds at least.
        Raises ValueError where the space has nothing new.
        """
        initial = self.space.initial()
        if number < len(initial):
            return Proposal(initial[number])
        mine = self.round_of(number)
        rng = Random(f"{self.seed} trial {number}")
        known = {self._key(candidate) for candidate in before}
        tree = self.tree(mine.start, before, scores) if mine.start else None
        path = classifier_tree.walk(tree, self.exploration, number - mine.start) if tree else ()
        duplicates = rejected = in_a_row = 0
        while True:
            candidate = self.space.draw(rng)
            if self._key(candidate) in known:
                duplicates, in_a_row = duplicates + 1, in_a_row + 1
                if in_a_row == self.max_duplicates:
                    raise ValueError(
                        f"trial {number + 1}: {in_a_row} draws in a row behave as one of the {len(known)} networks "
                        "before them, so hardly any is left within the bounds; lower max_trials or widen the bounds"
                    )
                continue
            in_a_row = 0
            free = rejected == self.max_rejections
            if tree is None or free or classifier_tree.accepts(tree, path, self.space.encode(candidate)):
                return Proposal(candidate, duplicates, rejected, free)
            rejected += 1

    def tree(self, first: int, before: Sequence[Candidate], scores: Mapping[int, float]) -> classifier_tree.Node:
        """The classifiers of the round that begins with trial `first`, grown on all trials before it."""
        if first not in self._trees:
            encodings = np.array([self.space.encode(candidate) for candidate in before[:first]])
            ordered = np.array([scores[number] for number in range(first)])
            self._trees[first] = classifier_tree.grow(encodings, ordered, self.seed)
        return self._trees[first]

    def _key(self, candidate: Candidate) -> Hashable:
        if candidate not in self._keys:
            self._keys[candidate] = self.space.behaviour(candidate)
        return self._keys[candidate]


def described(candidate: Sequence[Formula], search_stage: Literal[1, 2], faithful: bool = False) -> list[int]:
    """Of each layer the nodes in prefix order by their numbers, filled up to 20, and how often each kind occurs.

    faithful: without these counts, as the original. With them tens of scored candidates teach what takes hundreds
    where an operator may stand in any of 20 places.
    """
    numbers: list[int] = []
    for formula in candidate:
        numbers += encode([formula], search_stage)
        if not faithful:
            numbers += [formula.nodes.count(name) for name in IDS[search_stage]]
    return numbers


def plain_of(candidate: Candidate) -> Candidate:
    """BERT's own feed-forwards of the same sizes."""
    return tuple(str(plain().resized(parse(formula).size_index)) for formula in candidate)


def random_of(candidate: Candidate, rules: Rules, rng: Random) -> Candidate:
    """Random formulas of the same sizes: mutants of BERT's own feed-forwards."""
    own = plain_of(candidate)
    return FormulasOfSizes(rules, own).draw(rng)


def feed_forward_parameters(candidate: Sequence[str], config: CompactBertConfig) -> int:
    """Weights of all feed-forwards of a candidate."""
    plans = [prepare(text, "min") for text in candidate]
    wide = config.per_layer("intermediate_size")
    return sum(costs.feed_forwards(config.hidden_size, f, p.stack, p.ratio) for p, f in zip(plans, wide, strict=True))
