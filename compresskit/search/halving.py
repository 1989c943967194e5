"""Successive halving: all candidates get a little training, the better half of them twice as much, and so on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compresskit.models.config import CompactBertConfig

Scores = Callable[[Sequence[CompactBertConfig], float], Sequence[float]]


@dataclass(frozen=True)
class Trial:
    """An architecture, the share of the whole budget that it was given, and its score after that (higher is better)."""

    config: CompactBertConfig
    share: float
    score: float


def successive_halving(configs: Sequence[CompactBertConfig], scores: Scores, halvings: int = 0) -> list[Trial]:
    """One trial for each of `configs`, in their order (Jamieson and Talwalkar 2016).

    scores(configs, share) trains to that share of the budget, 2^-halvings at first and 1 at last, and scores. After
    each but the last the lower half stops; of equal scores the earlier configs go on. Without halvings all get 1.
    """
    trials: dict[int, Trial] = {}
    going = list(range(len(configs)))
    for halving in range(halvings, -1, -1):
        share = 2.0**-halving
        found = scores([configs[place] for place in going], share)
        for place, score in zip(going, found, strict=True):
            trials[place] = Trial(configs[place], share, score)
        going.sort(key=lambda place: (-trials[place].score, place))
        going = sorted(going[: math.ceil(len(going) / 2)])
    return [trials[place] for place in sorted(trials)]
