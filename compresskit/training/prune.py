"""Pruning while distilling: all three distillation losses at once (SparseBERT); the pruner acts after each step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.training.distill import check_heads, check_labels, inputs
from compresskit.training.loop import Batch, Losses
from compresskit.training.losses import attention_score_mse, hidden_state_mse, soft_cross_entropy


def all_layers(student: PreTrainedModel, teacher: PreTrainedModel, temperature: float = 1.0) -> Losses:
    """Hidden states, attention scores and answers of a teacher of the same shape, weights 1.

    Raises ValueError where student and teacher differ in depth, width, heads or labels.
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
        asked = {"output_hidden_states": True, "output_attention_scores": True}
        with torch.no_grad():
            target = teacher(**inputs(batch), **asked)
        own = student(**inputs(batch), **asked)
        attention = attention_score_mse(own.attention_scores, target.attention_scores, mapping)
        hidden = hidden_state_mse(own.hidden_states, target.hidden_states, mapping)
        if student.config.num_labels == 1:
            answer = F.mse_loss(own.logits.squeeze(-1), batch["labels"].to(own.logits.dtype))
        else:
            answer = soft_cross_entropy(own.logits, target.logits, temperature)
        return {
            "loss": attention + hidden + answer,
            "attention_loss": attention.detach(),
            "hidden_loss": hidden.detach(),
            "prediction_loss": answer.detach(),
        }

    return losses
