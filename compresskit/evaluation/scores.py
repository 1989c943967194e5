"""A score and how sure it is: what every task's evaluation returns, and the two intervals in use."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
SEED = 0
NEAR = 0.05
Z = 1.959963984540054  # the normal distribution's 97.5 % point
WILSON = "95 % Wilson"
BOOTSTRAP = f"95 % percentile bootstrap over rows, {RESAMPLES} resamples, seed {SEED}"


@dataclass(frozen=True)
class Score:
    """One model on one data set. Shares lie between 0 and 1; correlations between -1 and 1."""

    metrics: dict[str, float]  # by their names in MLflow: eval/accuracy, …, and eval/loss where there is one
    value: float  # the task's main metric
    low: float  # of value: 95 % interval, which always contains it
    high: float
    interval: str  # how the interval was computed
    rows: int
    majority: float  # value of the best guess that ignores the input

    @property
    def near_chance(self) -> bool:
        """Whether the best guess that ignores the input is less than 5 points below, or not below the interval."""
        return self.value < self.majority + NEAR or self.low <= self.majority

    @property
    def loss(self) -> float | None:
        """Mean over the rows; None where the task has no loss on its answers (question answering)."""
        return self.metrics.get("eval/loss")


def wilson(correct: int, rows: int) -> tuple[float, float]:
    """95 % interval of a share. Unlike a bootstrap it has a width also at 0 and at 1 (Wilson 1927)."""
    share, spread = correct / rows, Z * Z / rows
    middle = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(share * (1 - share) / rows + spread / (4 * rows))
    return max(min(middle - half, share), 0.0), min(max(middle + half, share), 1.0)


def percentiles(resampled: NDArray, value: float) -> tuple[float, float]:
    """The middle 95 % of a metric's resampled values, as an interval that can be drawn as an error bar.

    In the rare case that `value` itself lies outside (small sets, skewed metric) the interval is widened to it.
    """
    low, high = np.quantile(resampled, [0.025, 0.975])
    return min(float(low), value), max(float(high), value)


def row_counts(rows: int) -> Iterator[NDArray]:
    """How often each row is drawn in each of the resamples, in blocks (b, rows) that stay below 8 MB."""
    rng = np.random.default_rng(SEED)
    size = min(max(1_000_000 // rows, 1), RESAMPLES)
    for start in range(0, RESAMPLES, size):
        block = min(size, RESAMPLES - start)
        drawn = rng.integers(rows, size=(block, rows)) + np.arange(block)[:, None] * rows
        yield np.bincount(drawn.ravel(), minlength=block * rows).reshape(block, rows).astype(np.float64)
