"""The tree of classifiers: what it learns, where it stops, and which way it is walked."""

from __future__ import annotations

import numpy as np
import pytest

from compresskit.search import classifier_tree
from compresskit.search.classifier_tree import Node, accepts, grow, height, importance, nodes, split, walk


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier_tree, "ROUNDS", 20)
    monkeypatch.setattr(classifier_tree, "TUNING_TRIALS", 4)


def scored(count: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Encodings of 3 layers with 4 numbers, whose second layer's first number decides the score."""
    rng = np.random.default_rng(seed)
    encodings = rng.integers(0, 6, (count, 12))
    return encodings, (encodings[:, 4] >= 3) * 0.3 + rng.normal(size=count) * 0.02


@pytest.mark.parametrize(("count", "levels"), [(1, 1), (400, 1), (401, 2), (800, 2), (1600, 3), (3200, 4), (3201, 5)])
def test_the_height_follows_the_number_of_scores(count, levels):
    assert height(count) == levels


def test_it_finds_what_makes_the_difference_and_lets_through_what_has_it():
    encodings, scores = scored()
    root = grow(encodings, scores, seed=0)
    assert root.accuracy > 0.9
    assert root.size == 60
    assert root.better.median > root.median > root.worse.median - 1e-9
    new, _ = scored(40, seed=1)
    agreed = [accepts(root, (True,), encoding) == (encoding[4] >= 3) for encoding in new]
    assert sum(agreed) >= 36
    assert all(accepts(root, (True,), e) != accepts(root, (False,), e) for e in new)
    lost = importance(root, encodings, scores, 3, seed=0)
    assert lost[1] > 0.2 > abs(lost[0]) + abs(lost[2])


def test_a_seed_gives_the_same_tree_and_two_levels_have_seven_nodes():
    encodings, scores = scored(48)
    first, again = (grow(encodings, scores + encodings[:, 8] * 0.1, seed=3, levels=2) for _ in range(2))
    told = [
        [repr((path, node.median, node.accuracy, node.visits)) for path, node in nodes(tree)] for tree in (first, again)
    ]
    assert told[0] == told[1]
    assert len(nodes(first)) in (3, 5, 7)


@pytest.mark.parametrize(
    "scores",
    [[], [0.5], [0.0] * 40, [0.0] * 38 + [0.5, 0.6], [0.9] * 39 + [0.1]],
    ids=["none", "one", "equal", "few above", "one below"],
)  # fmt: skip
def test_scores_that_cannot_be_split_leave_a_leaf(scores):
    encodings = np.random.default_rng(0).integers(0, 9, (len(scores), 12))
    root = grow(encodings, np.array(scores), seed=0)
    assert root.classifier is None
    assert walk(root) == ()
    assert accepts(root, (), [0] * 12)
    assert importance(root, encodings, np.array(scores), 3, 0) == [0.0] * 3


def test_where_most_fail_the_others_are_the_better_half():
    assert split(np.array([0.0] * 6 + [0.3, 0.4, 0.5])).tolist() == [False] * 6 + [True] * 3
    assert split(np.array([0.1, 0.2, 0.3])).tolist() == [False, True, True]
    assert split(np.zeros(4)) is None


def test_encodings_that_say_nothing_leave_a_leaf():
    rng = np.random.default_rng(0)
    assert grow(np.zeros((40, 12), dtype=int), rng.random(40), seed=0).classifier is None


def tree(better: float, worse: float, visits: tuple[int, int]) -> Node:
    return Node(0.5, sum(visits), object(), 0.8, Node(better, 1), Node(worse, 1), visits)


def test_without_exploration_the_better_half_is_always_taken():
    assert {walk(tree(0.2, 0.9, (30, 1)), 0.0, turn) for turn in range(5)} == {(True,)}


def test_exploration_goes_where_few_have_been_and_counts_its_own_walks():
    root = tree(0.6, 0.5, (30, 2))
    assert walk(root, 0.01) == (True,)
    assert walk(root, 0.2) == (False,)
    ways = [walk(root, 0.2, turn) for turn in range(40)]
    assert ways[0] == (False,)
    assert set(ways) == {(True,), (False,)}
    assert walk(tree(0.6, 0.5, (4, 0)), 0.2) == (False,)


def test_a_tree_does_not_depend_on_the_number_of_threads(monkeypatch):
    encodings, scores = scored(50, seed=2)
    alone = grow(encodings, scores, seed=1)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    other = grow(encodings, scores, seed=1)
    new, _ = scored(30, seed=5)
    assert [alone.classifier.predict_proba(new).tolist()] == [other.classifier.predict_proba(new).tolist()]
