"""The intermediate step as Dynamic-TinyBERT takes it: hidden states and attention after the softmax.

    L = state_ratio · Σ_i d(W·h_i + b, h'_m(i)) + attention_ratio · Σ_{i≥1} d(P_i, P'_m(i))

with hidden states h and probabilities P of student layer i, those of the teacher with a prime, the teacher layer m(i)
that i learns from (0: the embedding), and a distance d: the mean squared difference, or one minus the mean cosine, over
the features of a token or the keys of a query. Probabilities are those before the dropout.

Shapes: B batch, A heads, S sequence, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from compresskit.training import distributed
from compresskit.training.distill import Network, check_pair, inputs, whole
from compresskit.training.loop import Batch, Losses

Distance = Literal["mse", "cosine"]


@dataclass(frozen=True)
class Measures:
    """How states and probabilities are compared, and how much each counts.

    partial_states: compare the embedding's output and the last state only.
    """

    states: Distance = "mse"
    attention: Distance = "mse"
    state_ratio: float = 1.0
    attention_ratio: float = 1.0
    partial_states: bool = False


def intermediate(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    mapping: Sequence[int],
    project: nn.Module | None,
    padded: bool = False,
    network: Network = whole,
    measures: Measures = Measures(),
) -> Losses:
    """Losses of the first step; the head has no part in them. The teacher is in evaluation mode throughout.

    Means run over real tokens and pairs of them; padded: over padding too, as in the original. network: as in
    `distill.intermediate`. Raises ValueError where the mapping, the heads or, without `project`, the widths do not go
    together.
    """
    check_pair(student, teacher, mapping, project)
    teacher.eval()
    pairs = list(enumerate(mapping))
    compared = [pairs[0], pairs[-1]] if measures.partial_states else pairs

    def losses(batch: Batch, step: int) -> dict[str, Tensor]:
        real = torch.ones_like(batch["attention_mask"]) if padded else batch["attention_mask"]
        given = {**inputs(batch), "output_hidden_states": True}
        with torch.no_grad():
            target = teacher.base_model(**given, output_attention_scores=[layer - 1 for layer in mapping[1:]])
        own = student.base_model(**given, output_attention_scores=True, subnet=network(step))
        states = attention = own.last_hidden_state.new_zeros(())
        for ours, theirs in compared:
            each = project[ours] if isinstance(project, nn.ModuleList) else project
            hidden = own.hidden_states[ours] if each is None else each(own.hidden_states[ours])
            states = states + state_distance(hidden, target.hidden_states[theirs], real, measures.states)
        for ours, theirs in pairs[1:]:
            mine, right = own.attention_scores[ours - 1].softmax(-1), target.attention_scores[theirs - 1].softmax(-1)
            attention = attention + map_distance(mine, right, real, measures.attention)
        if not padded:  # of several processes the one with more tokens counts for more
            lengths = real.sum(-1)
            squares, tokens = distributed.weight(torch.stack([lengths.square().sum(), lengths.sum()]))
            attention, states = attention * squares, states * tokens
        loss = measures.state_ratio * states + measures.attention_ratio * attention
        return {"loss": loss, "attention_loss": attention.detach(), "hidden_loss": states.detach()}

    return losses


def state_distance(student: Tensor, teacher: Tensor, real: Tensor, distance: Distance) -> Tensor:
    """The distance of hidden states, (B, S, H), over the tokens that are `real`, (B, S).  Returns a scalar."""
    chosen = real.bool()
    ours, theirs = student[chosen], teacher.to(student.dtype)[chosen]
    if distance == "mse":
        return F.mse_loss(ours, theirs)
    return 1 - F.cosine_similarity(ours, theirs, dim=-1).mean()


def map_distance(student: Tensor, teacher: Tensor, real: Tensor, distance: Distance) -> Tensor:
    """The distance of probabilities, (B, A, S, S), of queries, and of keys if squared, that are `real`, (B, S)."""
    theirs, queries = teacher.to(student.dtype), real[:, None, :].to(student.dtype)  # (B, 1, S)
    if distance == "cosine":
        cosines = F.cosine_similarity(student, theirs, dim=-1) * queries
        return 1 - cosines.sum() / (student.shape[1] * real.sum().clamp(min=1))
    squares = (student - theirs).square().sum(-1) * queries  # padding as a key has no probability
    return squares.sum() / (student.shape[1] * real.sum(-1).square().sum().clamp(min=1))
