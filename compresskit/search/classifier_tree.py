"""Which part of a space is worth drawing from: a tree of classifiers over encodings (EfficientBERT, after LaNAS).

A node splits its scored candidates at their median and trains a classifier to tell the better half from the worse by
their encodings; each half is split again. A walk goes from the root to the more promising child, and a new candidate is
worth scoring where every classifier on the way sends it the same way.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import optuna
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedKFold
from threadpoolctl import threadpool_limits

FOLDS = 3  # of the cross-validation that judges a classifier
ROUNDS = 100  # of boosting, as published
TUNING_TRIALS = 10  # as published
HEIGHTS = (400, 800, 1600, 3200)  # numbers of scored candidates above which the tree gets a level more
Path = tuple[bool, ...]  # True: the better half


def height(scored: int) -> int:
    """Levels of classifiers for so many scored candidates: 1 up to 400, 2 up to 800, …, 5 above 3200."""
    return 1 + sum(scored > limit for limit in HEIGHTS)


@dataclass(frozen=True)
class Node:
    """Candidates, and the classifier that tells their better half; without one it is a leaf."""

    median: float
    size: int  # candidates that it was made of
    classifier: HistGradientBoostingClassifier | None = None
    accuracy: float = math.nan  # of the classifier, on candidates that were held out (mean over folds)
    better: Node | None = None
    worse: Node | None = None
    visits: tuple[int, int] = (0, 0)  # of its candidates, how many the classifier takes for better and for worse


def split(scores: NDArray[np.float64]) -> NDArray[np.bool_] | None:
    """Which scores belong to the better half: those at the median or above it.

    Where none lies below, such as when half of the candidates failed and score 0, those above it; None where all are
    equal.
    """
    median = np.median(scores)
    better = scores >= median
    if better.all():
        better = scores > median
    return better if better.any() else None


def grow(encodings: NDArray[np.int64], scores: NDArray[np.float64], seed: int, levels: int | None = None) -> Node:
    """The tree over N scored candidates, encodings (N, D).  levels: of classifiers; None: as `height` says.

    A node stays a leaf where its scores are all equal, where a half is too small to be judged by cross-validation, and
    where no classifier is better than a guess. The same seed gives the same tree, whatever the number of threads.
    """
    levels = height(len(scores)) if levels is None else levels
    leaf = Node(float(np.median(scores)) if len(scores) else math.nan, len(scores))
    better = split(scores) if len(scores) and levels else None
    if better is None or min(better.sum(), (~better).sum()) < FOLDS:
        return leaf
    with threadpool_limits(1, "openmp"):  # of several threads the sums depend on their number
        accuracy, settings = _tuned(encodings, better, seed)
        if accuracy <= max(0.5, better.mean(), 1 - better.mean()):
            return leaf
        classifier = _classifier(seed, **settings).fit(encodings, better)
        taken = classifier.predict(encodings)
    visits = (int(taken.sum()), int((~taken).sum()))
    above, below = (grow(encodings[half], scores[half], seed, levels - 1) for half in (better, ~better))
    return Node(leaf.median, leaf.size, classifier, accuracy, above, below, visits)


def walk(root: Node, exploration: float = 0.0, turn: int = 0) -> Path:
    """The way from the root to the leaf that is drawn from, the `turn`-th time since the tree was grown.

    At each node to the child of the larger U = median + exploration · √(2 ln n / n_child), n being the candidates that
    the classifier sends there and the walks before this one. exploration 0, as published: always the better half.
    """
    walked: Counter[Path] = Counter()
    path: Path = ()
    for _ in range(turn + 1):
        node, path = root, ()
        while node.classifier is not None and node.better and node.worse:
            counts = [visits + walked[(*path, side)] for visits, side in zip(node.visits, (True, False), strict=True)]
            bonus = [
                exploration * math.sqrt(2 * math.log(sum(counts)) / count) if count else math.inf for count in counts
            ]
            worths = [node.better.median + bonus[0], node.worse.median + bonus[1]]
            side = not exploration or worths[0] >= worths[1]
            path = (*path, side)
            walked[path] += 1
            node = node.better if side else node.worse
    return path


def accepts(root: Node, path: Path, encoding: Sequence[int]) -> bool:
    """Whether every classifier on the path sends the candidate the path's way; True for the empty path of a leaf."""
    node: Node | None = root
    for side in path:
        assert node is not None
        assert node.classifier is not None
        if (node.classifier.predict_proba(np.asarray([encoding]))[0, 1] >= 0.5) != side:
            return False
        node = node.better if side else node.worse
    return True


def importance(
    root: Node, encodings: NDArray[np.int64], scores: NDArray[np.float64], parts: int, seed: int
) -> list[float]:
    """How much accuracy the root's classifier loses when one of `parts` equal blocks of columns is shuffled.

    encodings: (N, D) of scored candidates, of which D / parts columns describe a layer. Mean of 10 shuffles; zeros
    where the root is a leaf.
    """
    better = split(scores) if root.classifier else None
    if root.classifier is None or better is None:
        return [0.0] * parts
    rng, own = np.random.default_rng(seed), root.classifier.score(encodings, better)
    width, lost = encodings.shape[1] // parts, []
    for part in range(parts):
        columns = slice(part * width, (part + 1) * width)
        drops = []
        for _ in range(10):
            shuffled = encodings.copy()
            shuffled[:, columns] = rng.permutation(encodings[:, columns])
            drops.append(own - root.classifier.score(shuffled, better))
        lost.append(float(np.mean(drops)))
    return lost


def nodes(root: Node, path: Path = ()) -> list[tuple[Path, Node]]:
    """All nodes with their ways from the root, the root first."""
    below = [(root.better, True), (root.worse, False)]
    return [(path, root), *(found for child, side in below if child for found in nodes(child, (*path, side)))]


def _tuned(encodings: NDArray[np.int64], better: NDArray[np.bool_], seed: int) -> tuple[float, dict[str, float]]:
    """The best cross-validated accuracy of TUNING_TRIALS settings that TPE proposes, and these settings."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    study.optimize(partial(_judged, encodings, better, seed), n_trials=TUNING_TRIALS)
    optuna.logging.set_verbosity(verbosity)
    return study.best_value, study.best_params


def _judged(encodings: NDArray[np.int64], better: NDArray[np.bool_], seed: int, trial: optuna.Trial) -> float:
    settings: dict[str, float] = {
        "learning_rate": trial.suggest_float("learning_rate", 0.01, 0.5, log=True),
        "max_leaf_nodes": trial.suggest_int("max_leaf_nodes", 2, 64, log=True),
        "min_samples_leaf": trial.suggest_int("min_samples_leaf", 2, 20, log=True),
        "max_features": trial.suggest_float("max_features", 0.2, 1.0),
        "l2_regularization": trial.suggest_float("l2_regularization", 0.0, 2.0),
    }
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    right = [
        _classifier(seed, **settings).fit(encodings[train], better[train]).score(encodings[test], better[test])
        for train, test in folds.split(encodings, better)
    ]
    return float(np.mean(right))


def _classifier(seed: int, **settings: float) -> HistGradientBoostingClassifier:
    return HistGradientBoostingClassifier(max_iter=ROUNDS, early_stopping=False, random_state=seed, **settings)
