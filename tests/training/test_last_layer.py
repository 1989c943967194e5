"""AutoTinyBERT's distillation of the last layer, against its definition, in parts, and by subnets in turn."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from compresskit.models import CompactBertConfig, CompactBertModel
from compresskit.training import pretrain
from compresskit.training.loop import summed
from compresskit.training.pretrain import dense_fit, last_layer, released_form

CONFIG = CompactBertConfig(
    vocab_size=30, hidden_size=12, num_hidden_layers=3, num_attention_heads=3, intermediate_size=16,
    max_position_embeddings=16, hidden_dropout_prob=0, attention_probs_dropout_prob=0,
)  # fmt: skip
SMALL, WHOLE = CONFIG.changed(num_hidden_layers=2, hidden_size=8, qkv_size=6), None
TEACHER = CONFIG.changed(num_hidden_layers=4, hidden_size=18, qkv_size=18)


def network(config: CompactBertConfig, seed: int) -> CompactBertModel:
    model = CompactBertModel(config, add_pooling_layer=False).double().train()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
    return model


def parts() -> tuple[CompactBertModel, CompactBertModel, pretrain.DenseFit]:
    torch.manual_seed(0)
    project, kept = dense_fit(12, 18, 0.3, {})
    assert not kept
    return network(CONFIG, 1), network(TEACHER, 2), project.double()


def batch() -> dict[str, Tensor]:
    ids = torch.randint(5, 30, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(9) < torch.tensor([[9], [4], [6]])).long()
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


def definition(model, teacher, project, subnet) -> tuple[Tensor, Tensor]:
    """Each row alone and unpadded, every pair of heads by its maps."""
    attention = hidden = torch.zeros((), dtype=torch.float64)
    given = batch()
    lengths = given["attention_mask"].sum(1)
    for row, length in enumerate(lengths.tolist()):
        ids = given["input_ids"][row : row + 1, :length]
        own = model(ids, subnet=subnet, output_attention_scores=True)
        target = teacher(ids, output_attention_scores=True)
        attention = attention + (own.attention_scores[-1] - target.attention_scores[-1]).square().sum()
        width = own.last_hidden_state.shape[-1]
        state = F.linear(own.last_hidden_state, project.weight[:, :width], project.bias)
        hidden = hidden + (state - target.last_hidden_state).square().sum()
    return attention / (3 * lengths.square().sum()), hidden / (18 * lengths.sum())


def learned(pieces) -> tuple[dict[str, Tensor], int]:
    """The sums of the numbers, after every piece has given its gradient; how many there were."""
    found = []
    for piece in pieces:
        piece["loss"].backward()
        found.append({name: value.detach() for name, value in piece.items()})
    return summed(found), len(found)


@pytest.mark.parametrize("kept_maps", [192, 0], ids=["maps", "products"])
def test_loss_and_gradient_are_those_of_the_definition_also_where_no_maps_are_built(kept_maps, monkeypatch):
    monkeypatch.setattr(pretrain, "KEPT_MAPS", kept_maps)
    model, teacher, project = parts()
    numbers, count = learned(last_layer(model, teacher, project, lambda step: [WHOLE, SMALL])(batch(), 1))
    ours = [parameter.grad for parameter in (*model.parameters(), *project.parameters())]
    model.zero_grad()
    project.zero_grad()
    terms = [definition(model, teacher, project, subnet) for subnet in (WHOLE, SMALL)]
    (sum(attention + hidden for attention, hidden in terms) / 2).backward()
    assert count == 2
    close = {"rtol": 1e-6, "atol": 1e-7}  # the shares of the parts are float32
    torch.testing.assert_close(numbers["attention_loss"], (terms[0][0] + terms[1][0]) / 2, **close)
    torch.testing.assert_close(numbers["hidden_loss"], (terms[0][1] + terms[1][1]) / 2, **close)
    torch.testing.assert_close(numbers["loss_whole"], sum(terms[0]), **close)
    torch.testing.assert_close(numbers["loss_subnets"], sum(terms[1]), **close)
    for mine, parameter in zip(ours, (*model.parameters(), *project.parameters()), strict=True):
        torch.testing.assert_close(mine, parameter.grad, **close)


def test_a_batch_in_parts_has_the_loss_and_the_gradient_of_the_whole():
    found = []
    for micro_batches in (1, 2, 3, 7):
        model, teacher, project = parts()
        numbers, count = learned(last_layer(model, teacher, project, micro_batches=micro_batches)(batch(), 1))
        assert count == min(micro_batches, 3)
        found.append([*numbers.values(), *(p.grad for p in (*model.parameters(), *project.parameters()))])
    for other in found[1:]:
        for ours, whole in zip(other, found[0], strict=True):
            torch.testing.assert_close(ours, whole, rtol=1e-6, atol=1e-7)


def test_the_teacher_runs_once_per_part_in_evaluation_mode_without_gradients_and_hands_on_its_last_layer_alone():
    model, teacher, project = parts()
    said = []
    teacher.register_forward_hook(lambda module, given, output: said.append((module.training, output)))
    learned(last_layer(model, teacher, project, lambda step: [WHOLE, SMALL, SMALL], 2)(batch(), 1))
    assert len(said) == 2
    for training, output in said:
        assert not training
        assert output.hidden_states is None
        assert [scores is None for scores in output.attention_scores] == [True, True, True, False]
        assert not output.last_hidden_state.requires_grad
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_faithful_sees_padding_and_counts_it():
    model, teacher, project = parts()
    given = batch()
    numbers, _ = learned(last_layer(model, teacher, project, faithful=True)(given, 1))
    called = {"input_ids": given["input_ids"], "token_type_ids": given["attention_mask"]}
    own, target = (network(**called, output_attention_scores=True) for network in (model, teacher))
    attention = F.mse_loss(own.attention_scores[-1], target.attention_scores[-1])
    hidden = F.mse_loss(project(own.last_hidden_state), target.last_hidden_state)
    torch.testing.assert_close(numbers["loss"], (attention + hidden).detach(), rtol=1e-6, atol=1e-7)


def test_a_projection_is_kept_by_its_name_where_its_widths_are_right():
    _, _, project = parts()
    again, kept = dense_fit(12, 18, 0.02, released_form(project.float()))
    assert kept
    assert torch.equal(again.weight, project.weight)
    other, kept = dense_fit(8, 18, 0.02, released_form(project))
    assert not kept
    assert other.weight.std().item() == pytest.approx(0.02, rel=0.3)
    assert (other.bias == 0).all()


def test_another_number_of_heads_than_the_teachers_is_refused_with_a_remedy():
    model, _, project = parts()
    teacher = network(TEACHER.changed(num_attention_heads=6), 2)
    with pytest.raises(ValueError, match=r"the last layer has 3 attention heads, the teacher's 6; .*give the model as"):
        last_layer(model, teacher, project)
