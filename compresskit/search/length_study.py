"""Bayesian and genetic searches for length configurations, by Optuna: local, seeded, with a journal on the disk.

The original asks a paid service for 150 observations of six lengths from 91 to 384, score against time. Here a trial is
the share of its tokens that each layer keeps, for any depth and length: `tpe` looks for the best score within a budget
of cost, `nsga2` for the whole front.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from compresskit.search.lengths import Lengths
from compresskit.search.optuna_journal import open_journal

Kind = Literal["tpe", "nsga2"]
STUDY = "lengths"


def search(
    kind: Kind,
    journal: Path,
    seq_len: int,
    layers: int,
    cost: Callable[[Lengths], float],
    score: Callable[[Sequence[Lengths]], Sequence[float]],
    *,
    trials: int,
    at_once: int = 4,
    max_drop: float = 0.2,
    shortest: int = 2,
    budget: float = float("inf"),
    seed: int = 0,
) -> Iterator[list[Lengths]]:
    """Run trials and hand out those of each batch, which are scored together; none is scored that has no place in it.

    cost: lower is better; tpe: at most `budget`, dearer ones are tried but count as no answer. score: higher is better.
    max_drop: largest share that a layer drops. journal: file of Optuna's; a search that was stopped goes on in it to
    the same trials, as every draw is a function of `seed` and the trial's number. at_once changes them, how many
    processes score does not.
    """
    if trials < 1 or at_once < 1 or not 0 <= max_drop < 1 or not 1 <= shortest <= seq_len:
        raise ValueError(
            f"{trials} trials, {at_once} at once, of {layers} layers that drop at most {max_drop:g} and keep "
            f"{shortest} of {seq_len} tokens cannot be searched"
        )

    def lengths_of(trial: FrozenTrial) -> Lengths:
        return from_shares([trial.params[f"keep{i}"] for i in range(layers)], seq_len, shortest)

    def sampler(number: int) -> BaseSampler:
        drawn = int.from_bytes(hashlib.sha256(f"{seed} trial {number}".encode()).digest()[:4], "big")
        if kind == "nsga2":
            return NSGAIISampler(seed=drawn, population_size=max(4, min(50, trials // 4)))
        with warnings.catch_warnings(category=ExperimentalWarning, action="ignore"):
            return TPESampler(
                seed=drawn,
                multivariate=True,
                n_startup_trials=min(10, max(2, trials // 4)),
                constraints_func=lambda trial: [cost(lengths_of(trial)) - budget],
            )

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions: list[Literal["minimize", "maximize"]] = ["maximize"] if kind == "tpe" else ["maximize", "minimize"]
    storage = open_journal(journal)
    study = optuna.create_study(storage=storage, study_name=STUDY, directions=directions, load_if_exists=True)
    starts = [1.0, 1 - max_drop / 2, 1 - max_drop]  # the same for every layer: nothing dropped, half, most

    def drawn(number: int) -> FrozenTrial:
        """Trial `number` with all its parameters, drawn beside the file, where Optuna's ask writes one by one."""
        beside = optuna.create_study(directions=directions, sampler=sampler(number))
        beside.add_trials([trial for trial in study.trials if trial.state == TrialState.COMPLETE])
        if number < len(starts):
            beside.enqueue_trial({f"keep{i}": starts[number] for i in range(layers)})
        trial = beside.ask()
        for layer in range(layers):
            trial.suggest_float(f"keep{layer}", 1 - max_drop, 1.0)
        return beside.trials[-1]

    for first in range(0, trials, at_once):
        numbers = range(first, min(first + at_once, trials))
        for number in numbers[max(0, len(study.trials) - first) :]:
            storage.create_new_trial(study._study_id, template_trial=drawn(number))  # one line of the file
        batch = [study.trials[number] for number in numbers]
        found = [lengths_of(trial) for trial in batch]
        scores = score(list(dict.fromkeys(found)))
        by_lengths = dict(zip(dict.fromkeys(found), scores, strict=True))
        for tried, lengths in zip(batch, found, strict=True):
            if tried.state == TrialState.RUNNING:
                study.sampler = sampler(tried.number)
                value = by_lengths[lengths]
                study.tell(tried.number, [value] if kind == "tpe" else [value, cost(lengths)])
        yield found


def from_shares(shares: Sequence[float], seq_len: int, shortest: int) -> Lengths:
    """Every layer keeps that share of the tokens before it, rounded, and at least `shortest`."""
    found, length = [], seq_len
    for share in shares:
        length = min(length, max(round(length * share), shortest))
        found.append(length)
    return tuple(found)
