"""How much to prune at which step: fast at first, when there is much to spare, ever slower towards the target.

The curve is that of Zhu and Gupta, "To prune, or not to prune" (2017), which SparseBERT follows (its section 3).
"""

import math
from dataclasses import dataclass


def cubic_sparsity(step: int, begin: int, end: int, final_sparsity: float) -> float:
    """Sparsity to hold at `step`: 0 until `begin`, `final_sparsity` from `end` on, and between them
        s = final_sparsity · (1 − (1 − u)³),   u = (step − begin) / (end − begin).

    A matrix that starts at sparsity s0 holds s0 + cubic_sparsity(step, begin, end, final_sparsity − s0).
    """
    if begin >= end:
        raise ValueError(f"pruning ends at step {end}, which is not after its begin at step {begin}; train longer")
    progress = min(max((step - begin) / (end - begin), 0.0), 1.0)
    return final_sparsity * (1 - (1 - progress) ** 3)


@dataclass(frozen=True)
class Schedule:
    """When masks change, and to which sparsity: at `begin` + k · `frequency`, k = 1, 2, …, and at `end`.

    faithful: as SparseBERT's code, which never updates at `end` itself and counts progress in whole updates, so that
    where `frequency` divides R = end − begin the target is missed by (target − start) · (frequency / R)³; and a matrix
    beyond the target is led back to it.

    Raises ValueError for an empty interval or a frequency below one step.
    """

    begin: int
    end: int
    frequency: int
    faithful: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.begin < self.end:
            raise ValueError(
                f"pruning from step {self.begin} to step {self.end} is no interval; expected 0 <= begin < end"
            )
        if self.frequency < 1:
            raise ValueError(f"frequency is a number of steps, at least 1, not {self.frequency}")

    @property
    def last(self) -> int:
        """The step of the last update; `begin` where there is none."""
        if not self.faithful:
            return self.end
        return self.begin + (math.ceil((self.end - self.begin) / self.frequency) - 1) * self.frequency

    def due(self, step: int) -> int:
        """The latest step up to `step` at which masks change; at most `begin` where none has come yet."""
        return self.last if step >= self.last else step - (step - self.begin) % self.frequency

    def sparsity(self, due: int, start: float, target: float) -> float:
        """What is to hold after the update of step `due` where the share of zeros was `start` before the first one."""
        if self.faithful:
            done, updates = (due - self.begin) // self.frequency, (self.end - self.begin) // self.frequency
            return target + (start - target) * (1 - done / updates) ** 3
        return min(start + cubic_sparsity(due, self.begin, self.end, max(target - start, 0.0)), 1.0)


def pruning_window(num_steps: int, begin_share: float, pruning_share: float) -> tuple[int, int]:
    """First and last step of the rising sparsity, at least one step apart, from shares of the whole run."""
    begin = min(int(num_steps * begin_share), num_steps - 1)
    return begin, min(max(begin + 1, round(num_steps * (begin_share + pruning_share))), num_steps)
