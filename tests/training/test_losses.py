"""The losses of distillation against their definitions, written out in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compresskit.training.losses import attention_map_mse, attention_score_mse, hidden_state_mse, soft_cross_entropy


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


def test_over_real_tokens_padding_takes_no_part_and_gets_no_gradient():
    student, teacher = [draw(2, 5, 3)], [draw(2, 5, 3, seed=1)]
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    loss = hidden_state_mse(student, teacher, [0], None, mask)
    squares = (student[0] - teacher[0]).detach().square()
    assert loss.item() == pytest.approx(squares[mask.bool()].mean().item(), abs=1e-14)
    loss.backward()
    assert not student[0].grad[1, 2:].any()
    assert student[0].grad[1, :2].all()


def test_a_list_of_projections_has_one_for_each_hidden_state():
    student, teacher = [draw(2, 5, 3, seed=i) for i in range(2)], [draw(2, 5, 4, seed=10 + i) for i in range(2)]
    project = nn.ModuleList([nn.Linear(3, 4), nn.Linear(3, 4)]).double()
    expected = sum((p(s) - t).square().mean() for p, s, t in zip(project, student, teacher, strict=True))
    torch.testing.assert_close(hidden_state_mse(student, teacher, [0, 1], project), expected, rtol=0, atol=1e-14)


def heads(layers: int, seed: int, columns: int) -> list[tuple[Tensor, Tensor]]:
    """Queries and keys (2, 3, 4, columns) of each layer."""
    return [tuple(draw(2, 3, 4, columns, seed=seed + 2 * i + n) for n in range(2)) for i in range(layers)]


def test_attention_layers_count_from_one_and_the_embeddings_entry_is_skipped():
    student, teacher = heads(2, 0, 5), heads(4, 20, 7)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    expected = 0.0
    for (q_s, k_s), (q_t, k_t) in ((student[0], teacher[0]), (student[1], teacher[3])):
        squares = (q_s @ k_s.mT / 5**0.5 - q_t @ k_t.mT / 7**0.5).square()
        expected += squares[0].sum() + squares[1, :, :3, :3].sum()
    loss = attention_score_mse(student, teacher, [0, 1, 4], mask)
    torch.testing.assert_close(loss, expected / (3 * (16 + 9)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("padded_queries", [True, False])
def test_the_loss_on_maps_is_that_on_queries_and_keys(padded_queries):
    student, teacher = heads(2, 0, 5), heads(4, 20, 7)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    lowered = (1 - mask[:, None, None, :]) * -10_000.0
    maps = [[q @ k.mT / q.shape[-1] ** 0.5 + lowered for q, k in layers] for layers in (student, teacher)]
    losses = [
        attention_map_mse(*maps, [0, 1, 4], mask, padded_queries),
        attention_score_mse(student, teacher, [0, 1, 4], mask, padded_queries),
    ]
    torch.testing.assert_close(*losses, rtol=1e-10, atol=0)
    learning = [states for layer in student for states in layer]
    gradients = [torch.autograd.grad(loss, learning) for loss in losses]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-12)


def test_other_heads_are_refused_instead_of_being_stretched():
    mask = torch.ones(2, 4, dtype=torch.long)
    one = [tuple(t[:, :1] for t in heads(1, 0, 4)[0])]
    with pytest.raises(ValueError, match="batch, heads and length must agree"):
        attention_score_mse(one, heads(1, 5, 4), [0, 1], mask)


def test_a_mapping_of_another_length_is_refused():
    with pytest.raises(ValueError, match="zip"):
        hidden_state_mse([draw(1, 1, 1)] * 2, [draw(1, 1, 1)] * 3, [0, 1, 2])
