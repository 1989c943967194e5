"""The losses of distillation against their definitions, written out in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compresskit.training.losses import attention_score_mse, hidden_state_mse, soft_cross_entropy


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 4.0])
@pytest.mark.parametrize(("B", "C"), [(6, 3), (1, 2), (5, 1)])
def test_soft_cross_entropy_is_the_mean_over_batch_and_classes_without_the_temperatures_square(B, C, temperature):
    student, teacher = draw(B, C), draw(B, C, seed=1)
    s, t = (x.detach().numpy() / temperature for x in (student, teacher))
    expected = -sum(softmax(t)[b, c] * np.log(softmax(s)[b, c]) for b in range(B) for c in range(C)) / (B * C)
    loss = soft_cross_entropy(student, teacher, temperature)
    assert loss.item() == pytest.approx(expected, abs=1e-14)

    loss.backward()
    slope = (softmax(s) - softmax(t)) / (B * C * temperature)
    torch.testing.assert_close(student.grad.numpy(), slope, rtol=0, atol=1e-14)
    assert teacher.grad is None


def test_equal_logits_have_no_gradient_and_the_entropy_as_loss():
    student = draw(4, 3)
    loss = soft_cross_entropy(student, student.detach().clone())
    p = softmax(student.detach().numpy())
    assert loss.item() == pytest.approx(-(p * np.log(p)).mean(), abs=1e-14)
    loss.backward()
    assert student.grad.abs().max() < 1e-16


def test_hidden_states_are_compared_by_mapping_through_the_projection_over_all_elements():
    student, teacher = [draw(2, 5, 3, seed=i) for i in range(3)], [draw(2, 5, 4, seed=10 + i) for i in range(7)]
    project, mapping = nn.Linear(3, 4).double(), [0, 2, 5]
    w, b = project.weight.detach().numpy(), project.bias.detach().numpy()
    expected = sum(
        ((s.detach().numpy() @ w.T + b - teacher[t].detach().numpy()) ** 2).sum() / (2 * 5 * 4)
        for s, t in zip(student, mapping, strict=True)
    )
    loss = hidden_state_mse(student, teacher, mapping, project)
    assert loss.item() == pytest.approx(expected, abs=1e-13)
    loss.backward()
    assert all(state.grad.abs().min() > 0 for state in student)
    assert project.weight.grad.abs().min() > 0
    assert teacher[1].grad is None  # not in the mapping


def test_equal_widths_are_compared_as_they_are():
    student, teacher = [draw(2, 5, 3, seed=i) for i in range(2)], [draw(2, 5, 3, seed=10 + i) for i in range(3)]
    expected = sum(((s - t) ** 2).mean() for s, t in ((student[0], teacher[0]), (student[1], teacher[2])))
    torch.testing.assert_close(hidden_state_mse(student, teacher, [0, 2]), expected, rtol=0, atol=1e-14)


def test_scores_of_masked_keys_count_as_zero_and_get_no_gradient():
    student, teacher = draw(2, 3, 4, 4), draw(2, 3, 4, 4, seed=1)
    masked = torch.zeros(2, 1, 1, 4, dtype=torch.float64)
    masked[1, ..., 2:] = -10_000
    with torch.no_grad():
        student[0, 0, 0, 0] = -100.0  # the border itself counts as masked
        student[0, 0, 0, 1] = -99.0
    loss = attention_score_mse([student + masked], [teacher + masked], [0, 1])

    total = 0.0
    for index in np.ndindex(2, 3, 4, 4):
        s, t = ((x + masked)[index].item() for x in (student, teacher))
        total += ((s if s > -100 else 0) - (t if t > -100 else 0)) ** 2
    assert loss.item() == pytest.approx(total / (2 * 3 * 4 * 4), abs=1e-10)
    loss.backward()
    assert not student.grad[1, ..., 2:].any()
    assert student.grad[0, 0, 0, 0] == 0
    assert student.grad[0, 0, 0, 1] != 0


def test_attention_layers_count_from_one_and_the_embeddings_entry_is_skipped():
    student, teacher = [draw(1, 2, 3, 3, seed=i) for i in range(2)], [draw(1, 2, 3, 3, seed=10 + i) for i in range(4)]
    expected = (student[0] - teacher[0]).square().mean() + (student[1] - teacher[3]).square().mean()
    torch.testing.assert_close(attention_score_mse(student, teacher, [0, 1, 4]), expected, rtol=0, atol=1e-14)


def test_other_heads_are_refused_instead_of_being_stretched():
    with pytest.raises(
        ValueError, match=r"student scores \(2, 1, 4, 4\) and teacher scores \(2, 3, 4, 4\) differ in shape"
    ):
        attention_score_mse([draw(2, 1, 4, 4)], [draw(2, 3, 4, 4)], [0, 1])


def test_a_mapping_of_another_length_is_refused():
    with pytest.raises(ValueError, match="zip"):
        hidden_state_mse([draw(1, 1, 1)] * 2, [draw(1, 1, 1)] * 3, [0, 1, 2])
