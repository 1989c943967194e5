"""Distilling where an answer begins and ends: the loss against its formula, and padding that takes no part."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from compresskit.models import CompactBertConfig, CompactBertForQuestionAnswering
from compresskit.training import distill_spans, prune

MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
BATCH = {
    "input_ids": torch.tensor([[2, 7, 3, 0, 0], [2, 9, 9, 14, 3], [2, 0, 0, 0, 0]]),
    "attention_mask": MASK,
    "token_type_ids": torch.zeros(3, 5, dtype=torch.long),
    "start_positions": torch.tensor([1, 3, 0]),
    "end_positions": torch.tensor([1, 3, 0]),
}


def logits(seed: int) -> torch.Tensor:
    return torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def model(seed: int, layers: int = 2) -> CompactBertForQuestionAnswering:
    torch.manual_seed(seed)
    config = CompactBertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=8, hidden_dropout_prob=0.5, initializer_range=0.5,
    )  # fmt: skip
    return CompactBertForQuestionAnswering(config).double()


def by_hand(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """The mean over the rows, each cut to its real tokens."""
    rows = []
    for s, t, length in zip(student, teacher, MASK.sum(1), strict=True):
        p, q = (torch.softmax(x[:length] / temperature, 0) for x in (t, s))
        rows.append(-(p * q.log()).sum())
    return torch.stack(rows).mean()


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_the_loss_is_the_cross_entropy_of_each_rows_real_positions(temperature):
    found = distill_spans.span_soft_cross_entropy(logits(0), logits(1), MASK, temperature)
    torch.testing.assert_close(found, by_hand(logits(0), logits(1), temperature))


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_padding_changes_neither_value_nor_gradient(temperature):
    student, teacher = logits(0), logits(1)
    disturbed = [torch.where(MASK == 1, x, 1e6).float().requires_grad_() for x in (student, teacher)]
    loss = distill_spans.span_soft_cross_entropy(*disturbed, MASK, temperature)
    loss.backward()
    plain = student.clone().requires_grad_()
    by_hand(plain, teacher, temperature).backward()
    torch.testing.assert_close(disturbed[0].grad.double(), plain.grad, rtol=1e-5, atol=1e-6)
    assert (disturbed[0].grad[MASK == 0] == 0).all()
    assert disturbed[1].grad is None  # nothing flows into the teacher


def test_the_prediction_loss_is_the_mean_of_start_and_end_of_a_teacher_in_evaluation_mode():
    teacher, student = model(0).train(), model(1).eval()
    found = distill_spans.prediction(student, teacher, 2.0)(BATCH, 1)["loss"]
    inputs = {name: BATCH[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    own, target = student(**inputs), teacher.eval()(**inputs)
    start, end = (by_hand(own[name], target[name], 2.0) for name in ("start_logits", "end_logits"))
    torch.testing.assert_close(found, (start + end) / 2)


def test_a_student_that_answers_as_its_teacher_has_nothing_left_to_learn():
    teacher = model(0).eval()
    student = model(0).eval()
    distill_spans.prediction(student, teacher)(BATCH, 1)["loss"].backward()
    assert max(float(p.grad.abs().max()) for p in student.parameters() if p.grad is not None) < 1e-12


def test_pruning_distils_the_answers_of_questions_too():
    student, teacher = model(1).eval(), model(0)
    values = prune.all_layers(student, teacher, 1.0, distill_spans.span_answers)(BATCH, 1)
    expected = distill_spans.prediction(student, teacher)(BATCH, 1)["loss"]
    torch.testing.assert_close(values["prediction_loss"], expected.detach())
    torch.testing.assert_close(
        values["loss"].detach(), values["attention_loss"] + values["hidden_loss"] + values["prediction_loss"]
    )


def test_efficientberts_loss_leaves_out_the_first_position_and_divides_by_all_of_them():
    own, target = SimpleNamespace(), SimpleNamespace()
    for seed, (output, name) in enumerate((o, n) for o in (own, target) for n in ("start_logits", "end_logits")):
        setattr(output, name, logits(seed))
    loss = distill_spans.original_span_answers(own, target, BATCH, temperature=1.0)
    rows = []
    for name in ("start_logits", "end_logits"):
        for s, t, length in zip(getattr(own, name), getattr(target, name), MASK.sum(1), strict=True):
            p, q = (torch.softmax(x[1:length] if length > 1 else x, 0) for x in (t, s))  # all lowered alike: none is
            rows.append(-(p * q.log()).sum())
    torch.testing.assert_close(loss, torch.stack(rows).sum() / (3 * 5))
    changed = SimpleNamespace(start_logits=target.start_logits.clone(), end_logits=target.end_logits)
    changed.start_logits[:2, 0] += 3  # the teacher finds no answer
    torch.testing.assert_close(distill_spans.original_span_answers(own, changed, BATCH, 1.0), loss)
    assert not torch.isclose(*(distill_spans.span_answers(own, t, BATCH, 1.0) for t in (target, changed)))
