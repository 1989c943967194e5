"""The answers step of distillation for questions: where in the paragraph the teacher sees the answer begin and end.

Shapes: B batch, S sequence.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.training.distill import inputs
from compresskit.training.loop import Batch, Losses
from compresskit.training.losses import soft_cross_entropy


def span_soft_cross_entropy(
    student_logits: Tensor, teacher_logits: Tensor, attention_mask: Tensor | None, temperature: float = 1.0
) -> Tensor:
    """The student's cross-entropy against the teacher's softened positions, over the real tokens only:

        L = −1/B Σ_b Σ_s softmax(teacher/T)_bs · log softmax(student/T)_bs,   s with attention_mask_bs = 1

    student_logits, teacher_logits: (B, S), of the start or of the end.  Returns a scalar.  Padding stands outside both
    softmaxes; without a mask it takes part. The sum over positions is not divided by their number, which is another in
    every row; no factor T².
    """
    student, teacher = (logits / temperature for logits in (student_logits, teacher_logits.detach()))
    if attention_mask is not None:
        padding = attention_mask == 0
        student, teacher = (logits.masked_fill(padding, torch.finfo(logits.dtype).min) for logits in (student, teacher))
    return -(F.softmax(teacher, dim=-1) * F.log_softmax(student, dim=-1)).sum(-1).mean()


def span_answers(own: Any, target: Any, batch: Batch, temperature: float, padded: bool = False) -> Tensor:
    """Mean of the soft cross-entropies of start and end. own, target: outputs of student and teacher.

    padded: over all positions, padding too, as in Dynamic-TinyBERT's code.
    """
    mask = None if padded else batch["attention_mask"]
    start = span_soft_cross_entropy(own.start_logits, target.start_logits, mask, temperature)
    end = span_soft_cross_entropy(own.end_logits, target.end_logits, mask, temperature)
    return (start + end) / 2


def original_span_answers(own: Any, target: Any, batch: Batch, temperature: float) -> Tensor:
    """The answers' loss of EfficientBERT's code, the sum of start and end of

        L = −1/(B·S) Σ_b Σ_s softmax(teacher/T)_bs · log softmax(student/T)_bs

    with 10⁴ taken from the logits at padding and at position 0, so that "no answer" is not learned; the mean runs over
    padding too. own, target: as in `span_answers`.
    """
    hidden = (batch["attention_mask"] == 0).to(own.start_logits.dtype)
    hidden[:, 0] = 1
    lowered = hidden * -1e4
    return sum(
        (
            soft_cross_entropy(student + lowered, teacher.to(student.dtype) + lowered, temperature)
            for student, teacher in ((own.start_logits, target.start_logits), (own.end_logits, target.end_logits))
        ),
        own.start_logits.new_zeros(()),
    )


def prediction(
    student: PreTrainedModel, teacher: PreTrainedModel, temperature: float = 1.0, padded: bool = False
) -> Losses:
    """Losses of the second step for questions; the gold answers take no part. The teacher is in evaluation mode.

    padded: as in `span_answers`.
    """
    teacher.eval()

    def losses(batch: Batch, step: int) -> dict[str, Tensor]:
        with torch.no_grad():
            target = teacher(**inputs(batch))
        return {"loss": span_answers(student(**inputs(batch)), target, batch, temperature, padded)}

    return losses
