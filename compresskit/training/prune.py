"""Pruning while distilling: all three distillation losses at once (SparseBERT); the pruner acts after each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.training.distill import check_heads, check_labels, layer_inputs, layer_losses
from compresskit.training.loop import Batch, Losses
from compresskit.training.losses import soft_cross_entropy

Answers = Callable[[Any, Any, Batch, float], Tensor]  # outputs of student and teacher, batch, temperature, to a loss


def label_answers(own: Any, target: Any, batch: Batch, temperature: float) -> Tensor:
    """The teacher's softened answers; for regression the gold scores. own, target: outputs of student and teacher."""
    if own.logits.shape[-1] == 1:
        return F.mse_loss(own.logits.squeeze(-1), batch["labels"].to(own.logits.dtype))
    return soft_cross_entropy(own.logits, target.logits, temperature)


def all_layers(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    temperature: float = 1.0,
    answers: Answers = label_answers,
    padded: bool = False,
) -> Losses:
    """Hidden states, attention scores and answers of a teacher of the same shape, weights 1 (SparseBERT, section 3).

    answers: the loss on what the head says; `distill_spans.span_answers` for questions. padded: as in
    `distill.layer_losses`. Raises ValueError where student and teacher differ in depth, width, heads or labels.
    """
    for name in ("num_hidden_layers", "hidden_size"):
        if getattr(student.config, name) != getattr(teacher.config, name):
            raise ValueError(
                f"{name} is {getattr(student.config, name)} in the pruned model and {getattr(teacher.config, name)} in "
                "the teacher; pruning while distilling needs a teacher of the same shape"
            )
    mapping = range(student.config.num_hidden_layers + 1)
    check_heads(student.config, teacher.config, mapping)
    check_labels(student, teacher)
    teacher.eval()

    def losses(batch: Batch, step: int) -> dict[str, Tensor]:
        given = layer_inputs(batch, mapping[1:])
        with torch.no_grad():
            target = teacher(**given)
        own = student(**given)
        attention, hidden = layer_losses(own, target, mapping, None, batch, padded)
        answer = answers(own, target, batch, temperature)
        return {
            "loss": attention + hidden + answer,
            "attention_loss": attention.detach(),
            "hidden_loss": hidden.detach(),
            "prediction_loss": answer.detach(),
        }

    return losses
