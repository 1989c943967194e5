"""The peer of the super-net benchmark is the original: its recorded losses, and a step with our loss and gradients."""

from __future__ import annotations

import pytest
import torch

from benchmarks.autotinybert_original import SuperOriginal, last_layer_losses, step_loss
from benchmarks.tinybert_original import Original
from compresskit.models import CompactBertConfig, CompactBertModel
from compresskit.models.checkpoints import Checkpoint
from compresskit.training.pretrain import dense_fit, last_layer
from tests.oracle_cases import Case, folder

CASES = sorted((folder() / "autotinybert").glob("superbert_kd*.json"))


def test_there_are_recorded_numbers():
    assert CASES


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_peers_losses_are_those_of_the_released_program(path):
    case = Case(path)
    source = Checkpoint.of(case.config(), case.arrays("sd."))
    model = source.model(CompactBertModel)
    peer = SuperOriginal(model.config)
    peer.load_state_dict(model.state_dict())
    project, _ = dense_fit(model.config.hidden_size, case["in.teacher_rep"].shape[-1], 0.02, source.training_only)
    for entry in case.value("archs"):
        subnet = model.config.changed(
            num_hidden_layers=entry["arch"]["sample_layer_num"],
            hidden_size=entry["arch"]["sample_hidden_size"],
            qkv_size=entry["arch"]["sample_qkv_sizes"],
            intermediate_size=entry["arch"]["sample_intermediate_sizes"],
        )
        scores, states = peer(case["in.input_ids"], case["in.attention_mask"], subnet)
        found = last_layer_losses(scores[-1], states[-1], project, case["in.teacher_att"], case["in.teacher_rep"])
        recorded = [entry["as_released_att_loss"], entry["as_released_rep_loss"]]
        assert [loss.item() for loss in found] == pytest.approx(recorded, rel=2e-4)


def test_a_step_of_the_peer_has_our_loss_and_gradients_and_reaches_the_teacher():
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 40,
        "max_position_embeddings": 16,
        "hidden_dropout_prob": 0,
        "attention_probs_dropout_prob": 0,
    }
    config = CompactBertConfig(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=32, **sizes
    )
    wide = config.changed(hidden_size=32, qkv_size=32, num_hidden_layers=2)
    subnet = config.changed(num_hidden_layers=2, hidden_size=16, qkv_size=12, intermediate_size=20)
    model, teacher = CompactBertModel(config).double(), CompactBertModel(wide).double()
    project = dense_fit(24, 32, 0.3, {})[0].double()
    peer, peer_teacher = SuperOriginal(config).double(), Original(wide, fused=True).double()
    peer.load_state_dict(model.state_dict())
    peer_teacher.load_state_dict(teacher.state_dict())
    ids = torch.randint(1, 40, (3, 9))
    mask = (torch.arange(9) < torch.tensor([[9], [4], [6]])).long()
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}

    (piece,) = last_layer(model, teacher, project, lambda step: [subnet], faithful=True)(batch, 1)
    piece["loss"].backward()
    own = project.weight.grad.clone()
    project.zero_grad()
    loss = step_loss(peer, peer_teacher, project, subnet, batch)
    loss.backward()
    torch.testing.assert_close(piece["loss"], loss.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(own, project.weight.grad, rtol=1e-6, atol=1e-9)
    theirs = dict(peer.named_parameters())
    for name, parameter in model.named_parameters():
        ours, other = (torch.zeros(1) if p.grad is None else p.grad for p in (parameter, theirs[name]))
        torch.testing.assert_close(ours, other, rtol=1e-6, atol=1e-9, msg=name)
    assert all(p.grad is None for p in teacher.parameters())
    assert peer_teacher.encoder["layer"][0]["intermediate"]["dense"].weight.grad.abs().max() > 0
