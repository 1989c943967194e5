"""What a student is asked to match. Pure functions; shapes: B batch, A heads, S sequence, H hidden, C classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compresskit.kernels.score_mse import score_mse


def soft_cross_entropy(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """The student's cross-entropy against the teacher's softened answers:

        L = −1/(B·C) Σ_b Σ_c softmax(teacher/T)_bc · log softmax(student/T)_bc

    student_logits, teacher_logits: (B, C).  Returns a scalar.  The mean runs over the classes too, as in TinyBERT's
    code: C times smaller than the usual cross-entropy; no factor T².
    """
    target = F.softmax(teacher_logits.detach() / temperature, dim=-1)
    return -(target * F.log_softmax(student_logits / temperature, dim=-1)).mean()


def hidden_state_mse(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    mapping: Sequence[int],
    projection: nn.Module | None = None,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """TinyBERT's representation loss, Σ_i mse(W·student_i + b, teacher_mapping[i]), i = 0 being the embedding's output.

    student, teacher: hidden states (B, S, H), H equal unless `projection` maps the student's to the teacher's: one
    module for all of them, or a list with one for each. attention_mask: (B, S); the mean then runs over real tokens,
    without it over all elements, padding included, as in TinyBERT's code.  Returns a scalar.
    """
    real = None if attention_mask is None else attention_mask.flatten().nonzero().squeeze(1)
    projections = projection if isinstance(projection, nn.ModuleList) else [projection] * len(mapping)
    total = []
    for own, target, project in zip(student, mapping, projections, strict=True):
        ours, theirs = (_rows(states, real) for states in (own, teacher[target]))
        total.append(F.mse_loss(ours if project is None else project(ours), theirs.to(ours.dtype)))
    return torch.stack(total).sum()


def _rows(states: Tensor, real: Tensor | None) -> Tensor:
    """(B, S, H) as rows of tokens, those at the positions `real` only."""
    rows = states.flatten(0, 1)
    return rows if real is None or len(real) == len(rows) else rows.index_select(0, real)


def attention_score_mse(
    student: Sequence[tuple[Tensor, Tensor]],
    teacher: Sequence[tuple[Tensor, Tensor]],
    mapping: Sequence[int],
    attention_mask: Tensor,
    padded_queries: bool = False,
) -> Tensor:
    """TinyBERT's attention loss, Σ_i mse(student_i, teacher_mapping[i]) of scores before the softmax.

    student, teacher: queries and keys of each layer, (B, A, S, D); `mapping` is that of the hidden states, its first
    entry (the embedding) is skipped. The scores themselves are never built; attention_mask and padded_queries as in
    `kernels.score_mse`. TinyBERT's code also leaves out scores of real keys below -100, which do not occur in a
    working model; here they count.  Returns a scalar.
    """
    total = []
    for (q_s, k_s), target in zip(student, mapping[1:], strict=True):
        q_t, k_t = (states.to(q_s.dtype) for states in teacher[target - 1])
        total.append(score_mse(q_s, k_s, q_t, k_t, attention_mask, padded_queries))
    return torch.stack(total).sum()


def attention_map_mse(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    mapping: Sequence[int],
    attention_mask: Tensor,
    padded_queries: bool = False,
) -> Tensor:
    """`attention_score_mse` of scores that were built anyway: student, teacher, (B, A, S, S) of each layer."""
    keys = attention_mask[:, None, None, :].to(student[0].dtype)
    total = []
    for own, target in zip(student, mapping[1:], strict=True):
        difference = (own - teacher[target - 1].to(own.dtype)) * keys
        if padded_queries:
            total.append(difference.square().mean())
        else:
            pairs = own.shape[1] * attention_mask.sum(-1).square().sum().clamp(min=1)
            total.append((difference * keys.mT).square().sum() / pairs)
    return torch.stack(total).sum()


def visible_score_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """AutoTinyBERT's attention loss, mse(z(student), z(teacher)) with z(a) = a where a > -100, else 0.

    student, teacher: scores before the softmax, (B, A, S, S).  Returns a scalar: the mean over all elements.
    """
    ours, theirs = (scores.masked_fill(scores <= -100, 0.0) for scores in (student, teacher))
    return F.mse_loss(ours, theirs)
