"""What a student is asked to match. Pure functions; shapes: B batch, A heads, S sequence, H hidden, C classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MASKED = -100.0  # scores at or below this belong to masked keys


def soft_cross_entropy(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """The student's cross-entropy against the teacher's softened answers:

        L = −1/(B·C) Σ_b Σ_c softmax(teacher/T)_bc · log softmax(student/T)_bc

    student_logits, teacher_logits: (B, C).  Returns a scalar.  The mean runs over the classes too, as in TinyBERT's
    code: C times smaller than the usual cross-entropy; no factor T².
    """
    target = F.softmax(teacher_logits.detach() / temperature, dim=-1)
    return -(target * F.log_softmax(student_logits / temperature, dim=-1)).mean()


def hidden_state_mse(
    student: Sequence[Tensor], teacher: Sequence[Tensor], mapping: Sequence[int], projection: nn.Module | None = None
) -> Tensor:
    """TinyBERT's representation loss, Σ_i mse(W·student_i + b, teacher_mapping[i]), i = 0 being the embedding's output.

    student, teacher: hidden states (B, S, H), H equal unless `projection` maps the student's to the teacher's. The mean
    runs over all elements, padding included.  Returns a scalar.
    """
    states = student if projection is None else [projection(state) for state in student]
    return torch.stack([F.mse_loss(s, teacher[t]) for s, t in zip(states, mapping, strict=True)]).sum()


def attention_score_mse(student: Sequence[Tensor], teacher: Sequence[Tensor], mapping: Sequence[int]) -> Tensor:
    """TinyBERT's attention loss, Σ_i mse(z(student_i), z(teacher_mapping[i])), layers counted from 1 in `mapping`.

    student, teacher: scores before the softmax, (B, A, S, S), masked keys far below zero; z sets these to 0. `mapping`
    is that of the hidden states, its first entry (the embedding) is skipped.  Returns a scalar.
    """
    pairs = [(s, teacher[t - 1]) for s, t in zip(student, mapping[1:], strict=True)]
    for s, t in pairs:
        if s.shape != t.shape:  # one head would be compared with all of the other's
            raise ValueError(f"student scores {tuple(s.shape)} and teacher scores {tuple(t.shape)} differ in shape")
    return torch.stack([F.mse_loss(_unmasked(s), _unmasked(t)) for s, t in pairs]).sum()


def _unmasked(scores: Tensor) -> Tensor:
    return scores.masked_fill(scores <= MASKED, 0.0)
