"""Which models no other one beats: the front of cost (lower is better) against score (higher is better)."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def front(points: ArrayLike) -> NDArray[np.bool_]:
    """Which of the points, (N, 2) with cost and score, lie on the front: boolean, (N,).

    A point is beaten by one that is at least as good in both and better in one; equal points do not beat each other.
    """
    points = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    missing = np.flatnonzero(np.isnan(points).any(1))
    if len(missing):
        raise ValueError(f"point {missing[0]} has no cost or no score (NaN); leave such rows out of the comparison")
    distinct, where = np.unique(points, axis=0, return_inverse=True)
    order = np.lexsort((-distinct[:, 1], distinct[:, 0]))  # cheapest first, among equal costs the best score first
    scores = distinct[order, 1]
    on_front = np.empty(len(distinct), dtype=bool)
    on_front[order[:1]] = True
    on_front[order[1:]] = scores[1:] > np.maximum.accumulate(scores)[:-1]
    return on_front[where]
