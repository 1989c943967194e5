"""Fine-tuning on labels: the model's own loss."""

from __future__ import annotations

from torch import Tensor, nn

from compresskit.training.loop import Batch, Losses


def supervised(model: nn.Module) -> Losses:
    """Losses of any head that computes its own from the labels of a batch."""

    def losses(batch: Batch, step: int) -> dict[str, Tensor]:
        return {"loss": model(**batch).loss}

    return losses
