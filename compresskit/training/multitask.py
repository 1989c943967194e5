"""Several tasks in one model: each batch is of one task, whose own losses it has (EfficientBERT, section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from compresskit.training.loop import Batch, Losses


def by_task(losses: Sequence[Losses]) -> Losses:
    """The losses of the task that a batch of `batching.Mixed` belongs to."""

    def of_batch(batch: Batch, step: int) -> dict[str, Tensor]:
        return losses[int(batch["task"][0])](batch, step)

    return of_batch
