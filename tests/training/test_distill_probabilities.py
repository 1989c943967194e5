"""Dynamic-TinyBERT's intermediate step: each distance against its formula, row by row without padding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compresskit.models import CompactBertConfig, CompactBertModel
from compresskit.training import distill_probabilities
from compresskit.training.distill_probabilities import Measures

BATCH = {
    "input_ids": torch.tensor([[2, 7, 3, 0, 0], [2, 9, 9, 14, 3]]),
    "attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
    "token_type_ids": torch.zeros(2, 5, dtype=torch.long),
}


def model(seed: int, layers: int, width: int) -> CompactBertModel:
    torch.manual_seed(seed)
    config = CompactBertConfig(
        vocab_size=20, hidden_size=width, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=8, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.5,
    )  # fmt: skip
    return CompactBertModel(config).double()


def by_hand(student, teacher, mapping, project, measures: Measures) -> tuple[float, float]:
    """Attention and states of each row by itself, weighed by its tokens."""
    attention = states = 0.0
    counts = BATCH["attention_mask"].sum(1).tolist()
    pairs = list(enumerate(mapping))
    for row, count in enumerate(counts):
        given = {name: tensor[row : row + 1, :count] for name, tensor in BATCH.items()}
        own, target = (m(**given, output_hidden_states=True, output_attentions=True) for m in (student, teacher))
        for ours, theirs in [pairs[0], pairs[-1]] if measures.partial_states else pairs:
            a, b = project(own.hidden_states[ours])[0], target.hidden_states[theirs][0]
            each = F.mse_loss(a, b) if measures.states == "mse" else 1 - F.cosine_similarity(a, b, dim=-1).mean()
            states += float(each) * count / sum(counts)
        for ours, theirs in pairs[1:]:
            a, b = own.attentions[ours - 1][0], target.attentions[theirs - 1][0]
            if measures.attention == "mse":
                attention += float(F.mse_loss(a, b)) * count**2 / sum(n**2 for n in counts)
            else:
                attention += float(1 - F.cosine_similarity(a, b, dim=-1).mean()) * count / sum(counts)
    return attention, states


@pytest.mark.parametrize("attention", ["mse", "cosine"])
@pytest.mark.parametrize("states", ["mse", "cosine"])
@pytest.mark.parametrize("partial", [False, True])
def test_distances_are_those_of_real_tokens_alone(attention, states, partial):
    student, teacher, project = model(0, 2, 8), model(1, 4, 12), nn.Linear(8, 12).double()
    measures = Measures(states, attention, state_ratio=0.5, attention_ratio=3.0, partial_states=partial)
    losses = distill_probabilities.intermediate(student, teacher, [0, 1, 4], project, measures=measures)
    got = losses(BATCH, 1)
    maps, hidden = by_hand(student, teacher, [0, 1, 4], project, measures)
    torch.testing.assert_close(got["attention_loss"].item(), maps)
    torch.testing.assert_close(got["hidden_loss"].item(), hidden)
    torch.testing.assert_close(got["loss"].item(), 0.5 * hidden + 3.0 * maps)
    got["loss"].backward()
    assert student.encoder.layer[1].attention.self.query.weight.grad is not None
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_padded_means_run_over_everything():
    student, teacher, project = model(0, 2, 8), model(1, 4, 12), nn.Linear(8, 12).double()
    got = distill_probabilities.intermediate(student, teacher, [0, 2, 4], project, padded=True)(BATCH, 1)
    own, target = (m(**BATCH, output_hidden_states=True, output_attentions=True) for m in (student, teacher))
    hidden = sum(F.mse_loss(project(own.hidden_states[i]), target.hidden_states[2 * i]) for i in range(3))
    maps = sum(F.mse_loss(own.attentions[i], target.attentions[2 * i + 1]) for i in range(2))
    torch.testing.assert_close(got["loss"], hidden + maps)
