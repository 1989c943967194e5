"""LengthDrop: how sub-models are drawn, what they learn, and that a step is the sum of its parts."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.amp import GradScaler

from compresskit.models import (
    CompactBertConfig,
    CompactBertForQuestionAnswering,
    CompactBertForSequenceClassification,
)
from compresskit.training import distill, distill_spans, lengthdrop
from compresskit.training.lengthdrop import Sandwich, divergence, seeded
from compresskit.training.loop import learned

MASK = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1]])
BATCH = {
    "input_ids": torch.tensor([[2, 7, 3, 5, 6, 0, 0], [2, 9, 9, 14, 3, 8, 3]]),
    "attention_mask": MASK,
    "token_type_ids": torch.zeros(2, 7, dtype=torch.long),
}
SPANS = BATCH | {"start_positions": torch.tensor([1, 3]), "end_positions": torch.tensor([1, 4])}


def model(model_class: type, seed: int = 0, **changes):
    torch.manual_seed(seed)
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2,
             "intermediate_size": 12, "max_position_embeddings": 8, "initializer_range": 0.5,
             "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip
    return model_class(CompactBertConfig(**sizes, **changes)).double()


def logits(seed: int, width: int = 7) -> Tensor:
    return torch.randn(2, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_divergence_is_that_of_the_formula_and_pulls_only_at_the_sub_model():
    sub, full = logits(0).requires_grad_(), logits(1).requires_grad_()
    q, p = sub.softmax(-1), full.softmax(-1)
    right = (q * (q.log() - p.log())).sum(-1).mean()
    got = divergence(sub, full)
    torch.testing.assert_close(got, right)
    got.backward()
    assert full.grad is None
    assert sub.grad.abs().sum() > 0


def test_padding_takes_no_part_unless_asked():
    sub, full = logits(0), logits(1)
    rows = [divergence(s[None, :n], f[None, :n]) for s, f, n in zip(sub, full, MASK.sum(1), strict=True)]
    torch.testing.assert_close(divergence(sub, full, MASK), torch.stack(rows).mean())
    outputs = [{"start_logits": x, "end_logits": x} for x in (sub, full)]
    own, theirs = (lengthdrop.same_answers(*outputs, SPANS, padded) for padded in (False, True))
    torch.testing.assert_close(own, divergence(sub, full, MASK))
    torch.testing.assert_close(theirs, divergence(sub, full))


def test_draws_are_a_function_of_seed_and_step():
    def drawn(seed: int, step: int) -> list:
        return Sandwich(layer_probability=0.2).draw(300, 6, seeded(seed, step))

    assert drawn(1, 5) == drawn(1, 5)
    steps = [drawn(1, step) for step in range(1, 30)]
    assert len({str(step) for step in steps}) == 29
    assert drawn(2, 5) != drawn(1, 5)


@pytest.mark.parametrize("probability", [None, 0.3])
def test_every_part_has_lengths_that_fall_and_layers_that_are_there(probability):
    for step in range(50):
        whole, smallest, *others = Sandwich(3, layer_probability=probability, layer_bound=1).draw(
            40, 4, seeded(0, step)
        )
        assert whole.lengths is None
        assert len(others) == 3
        for part in (whole, smallest, *others):
            assert part.layers
            assert part.layers == sorted(set(part.layers) & set(range(4)))
        for part in (smallest, *others):
            assert part.lengths == sorted(part.lengths, reverse=True)
            assert part.lengths[-1] >= 2
            assert part.lengths[0] <= 40
        if probability is None:
            assert (whole.layers, smallest.layers, smallest.lengths) == ([0, 1, 2, 3], [0, 1, 2], [32, 26, 21, 21])


def test_where_all_layers_would_be_left_out_one_stays_unless_as_in_the_original():
    parts = [part for step in range(30) for part in Sandwich(layer_probability=0.95).draw(9, 2, seeded(0, step))]
    assert {len(part.layers) for part in parts} == {1, 2}
    assert {part.layers[0] for part in parts} == {0, 1}
    faithful = [
        part for step in range(30)
        for part in Sandwich(layer_probability=0.95, maybe_no_layers=True).draw(9, 2, seeded(0, step))
    ]  # fmt: skip
    assert [] in [part.layers for part in faithful]


def test_lengths_drawn_token_by_token_have_the_mean_they_should():
    sandwich = Sandwich(length_probability=0.1)
    firsts = [part.lengths[0] for step in range(200) for part in sandwich.draw(100, 2, seeded(0, step))[2:]]
    assert abs(sum(firsts) / len(firsts) - 90) < 1


@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("head", ["spans", "classes", "grades"])
def test_a_step_is_the_mean_of_its_forward_passes(head, taught):
    labels = {"spans": {}, "classes": {"labels": torch.tensor([0, 2])}, "grades": {"labels": torch.tensor([0.5, 2.0])}}
    batch = SPANS if head == "spans" else BATCH | labels[head]
    model_class = CompactBertForQuestionAnswering if head == "spans" else CompactBertForSequenceClassification
    options = {} if head == "spans" else {"num_labels": 3 if head == "classes" else 1}
    own, teacher = (model(model_class, seed, **options) for seed in (0, 1))
    by_teacher = distill_spans.span_answers if head == "spans" else distill.label_answers
    answers = lengthdrop.taught(teacher, by_teacher) if taught else lengthdrop.supervised
    losses = lengthdrop.lengthdrop(own, answers, Sandwich(), partial(seeded, 3))
    numbers = learned(losses, batch, 7, None, GradScaler("cpu", enabled=False))
    got = {name: parameter.grad.clone() for name, parameter in own.named_parameters() if parameter.grad is not None}
    own.zero_grad()

    _, *parts = Sandwich().draw(7, 3, seeded(3, 7))
    full = own(**batch)
    total = answers(full, batch)
    for part in parts:
        sub = own(**batch, length_config=part.lengths)
        total = total + lengthdrop.same_answers(sub, full, batch, False)
    (total / 4).backward()
    torch.testing.assert_close(numbers["loss"], total.detach() / 4)
    assert numbers["divergence"] > 0
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, dict(own.named_parameters())[name].grad, msg=name)
