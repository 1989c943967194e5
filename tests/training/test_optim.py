"""Which parameters decay, and how the learning rate rises and falls."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compresskit.models import CompactBertConfig, CompactBertForSequenceClassification
from compresskit.training.optim import BertAdam, adamw, adaptive_warmup, bert_schedule, linear_schedule


def names_by_decay(optimizer, **modules) -> dict[float, set[str]]:
    owner = {id(p): f"{label}.{name}" for label, module in modules.items() for name, p in module.named_parameters()}
    return {group["weight_decay"]: {owner[id(p)] for p in group["params"]} for group in optimizer.param_groups}


def test_biases_and_layer_norms_do_not_decay_and_every_parameter_is_there_once():
    model = CompactBertForSequenceClassification(
        CompactBertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    )
    project = nn.Linear(8, 12)
    groups = names_by_decay(adamw([model, project], 1e-3, weight_decay=0.05), model=model, project=project)
    assert groups.keys() == {0.05, 0.0}
    assert "project.weight" in groups[0.05]
    assert {"model.bert.embeddings.word_embeddings.weight", "model.classifier.weight"} < groups[0.05]
    assert all(name.endswith("bias") or "LayerNorm" in name for name in groups[0.0])
    assert not any("bias" in name or "LayerNorm" in name for name in groups[0.05])
    everything = {f"model.{name}" for name, _ in model.named_parameters()} | {"project.weight", "project.bias"}
    assert groups[0.05] | groups[0.0] == everything
    assert not groups[0.05] & groups[0.0]


def test_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    assert names_by_decay(adamw([model], 1.0), m=model) == {0.01: {"m.1.weight"}, 0.0: {"m.1.bias"}}


def test_a_step_is_adam_with_decoupled_decay():
    layer = nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(2.0)
        layer.bias.fill_(3.0)
    optimizer = adamw([layer], 0.1, weight_decay=0.5)
    layer.weight.grad, layer.bias.grad = torch.tensor([[4.0]]), torch.tensor([-5.0])
    optimizer.step()  # the first step of Adam is the gradient's sign
    assert layer.weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5) - 0.1)
    assert layer.bias.item() == pytest.approx(3.0 + 0.1)


def rates(num_steps: int, warmup_ratio: float) -> list[float]:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    scheduler = linear_schedule(optimizer, num_steps, warmup_ratio)
    used = []
    for _ in range(num_steps):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return [*used, optimizer.param_groups[0]["lr"]]


@pytest.mark.parametrize(
    ("num_steps", "warmup_ratio", "expected"),
    [
        (10, 0.2, [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0]),
        (4, 0.0, [1, 3 / 4, 2 / 4, 1 / 4, 0]),
        (1, 0.1, [1, 0]),
        (2, 0.9, [1 / 2, 1, 0]),
    ],
)
def test_the_rate_rises_over_the_warmup_and_falls_to_zero_and_no_step_is_wasted_at_zero(
    num_steps, warmup_ratio, expected
):
    assert rates(num_steps, warmup_ratio) == pytest.approx(expected)


@pytest.mark.parametrize("num_steps", [1, 7, 100, 333])
@pytest.mark.parametrize("warmup_ratio", [0.0, 0.1, 0.29, 0.99])
def test_the_rate_never_exceeds_the_given_one_and_reaches_it_once(num_steps, warmup_ratio):
    used = rates(num_steps, warmup_ratio)
    top = used.index(max(used))
    assert used[top] == pytest.approx(1.0)
    assert used[: top + 1] == sorted(used[: top + 1])
    assert used[top:] == sorted(used[top:], reverse=True)
    assert min(used[:-1]) > 0
    assert used[-1] == 0


@pytest.mark.parametrize("warmup_steps", [10, 10**6])
def test_a_warmup_as_long_as_the_run_rises_to_its_end_and_a_longer_one_gives_way(warmup_steps):
    warmup = adaptive_warmup(10, warmup_steps, 0.2)
    assert rates(10, warmup.ratio)[9] > 0
    optimizer = BertAdam(nn.Linear(1, 1).parameters(), lr=1.0)
    schedule = bert_schedule(optimizer, 10, "warmup_linear", warmup.ratio, first_step=1)
    used = []
    for _ in range(10):
        used.append(optimizer.param_groups[0]["lr"])
        schedule.step()
    if warmup_steps == 10:
        assert used == pytest.approx([n / 10 for n in range(1, 11)])
        assert warmup.rule == "warmup_steps 10 of 10"
    else:
        assert used == pytest.approx([0.5, 1, *(n / 8 for n in range(7, -1, -1))])
        assert warmup.rule == "warmup_ratio 0.2, for warmup_steps 1000000 exceeds the run's 10 steps"
