"""Sparse models: the numbers of the pruned model they were made from, in every use, and a file of the size promised."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from compresskit import models
from compresskit.models import CompactBertConfig, CompactBertForSequenceClassification, checkpoints, elastic, sparse
from compresskit.pruning.masks import magnitude_mask, prunable

PLAIN = {
    "vocab_size": 60, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96,
    "max_position_embeddings": 40, "num_labels": 3,
}  # fmt: skip
UNEVEN = {"num_attention_heads": [4, 2], "qkv_size": [32, 48], "intermediate_size": [64, 16], "pooler_relu": True}
FORMULAS = {
    "feed_forward": [
        "tanh(linear3_2(gelu(linear3_2(max(x,tanh(x)),wb1)),wb2))",
        "mul(linear1_1(elu(linear1_1(x,wb1)),wb2),x)",
    ],
    "embedding": "trigram",
    "embedding_size": 8,
}
IDS = torch.tensor([[2, 7, 11, 3, 0, 0, 0], [2, 9, 9, 14, 5, 8, 3], [2, 1, 1, 1, 1, 3, 0]])
BATCH = {"input_ids": IDS, "attention_mask": (IDS != 0).long(), "token_type_ids": IDS % 2}


def pruned(sparsity: float = 0.9, model_class: type = CompactBertForSequenceClassification, **changes):
    torch.manual_seed(0)
    model = model_class(CompactBertConfig(**{**PLAIN, **changes})).eval()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.normal_(0, 0.3)
        for name in prunable(parameters):
            parameters[name].mul_(magnitude_mask(parameters[name], sparsity))
    return model


def outputs(model, **asked):
    with torch.no_grad():
        return model(**BATCH, **asked)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    "changes",
    [{}, UNEVEN, {"hidden_act": "relu"}, FORMULAS, {**FORMULAS, "feed_forward_width": "max"}],
    ids=["plain", "uneven", "relu", "formulas", "formulas that pad"],
)
def test_a_sparse_model_has_the_numbers_of_the_pruned_one(changes, rows):
    dense = pruned(**changes)
    fast = sparse.to_sparse(dense, min_sparsity=0.5)
    batch = {name: tensor[:rows] for name, tensor in BATCH.items()}
    with torch.no_grad():
        expected, found = (model(**batch, output_hidden_states=True) for model in (dense, fast))
        torch.testing.assert_close(fast(batch["input_ids"]).logits, dense(batch["input_ids"]).logits, rtol=0, atol=2e-5)
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=2e-5)
    assert len(found.hidden_states) == 3
    for ours, theirs in zip(found.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "name", [name for name in models.__all__ if name not in ("CompactBertConfig", "CompactBertForMultitask")]
)
def test_every_head_stands_on_a_sparse_encoder(name):
    dense = pruned(model_class=getattr(models, name))
    expected, found = outputs(dense), outputs(sparse.to_sparse(dense, min_sparsity=0.5))
    assert list(found) == list(expected)
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=5e-5)


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_short_rows_take_the_fast_path_and_training_does_not(monkeypatch, precision):
    fast = sparse.to_sparse(pruned(hidden_dropout_prob=0.5), min_sparsity=0.5)
    runs, run = [], sparse.run
    monkeypatch.setattr(sparse, "run", lambda *given: runs.append(1) or run(*given))
    torch.set_float32_matmul_precision(precision)
    try:
        outputs(fast)
        assert len(runs) == 1
        fast.train()
        assert not torch.equal(outputs(fast).logits, outputs(fast).logits), "dropout was left out"
        assert len(runs) == 1
    finally:
        torch.set_float32_matmul_precision("highest")


def test_what_the_fast_path_does_not_compute_comes_from_the_slow_one():
    dense = pruned()
    fast = sparse.to_sparse(dense, min_sparsity=0.5)
    asked = {"output_attentions": True, "output_attention_scores": True, "output_query_key_states": True}
    expected, found = outputs(dense, **asked), outputs(fast, **asked)
    for key in ("attentions", "attention_scores", "query_states", "key_states"):
        for ours, theirs in zip(found[key], expected[key], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)


def test_there_and_back_is_bit_for_bit_the_pruned_model():
    dense = pruned(**UNEVEN)
    fast = sparse.to_sparse(dense, min_sparsity=0.5)
    assert dense.config.sparse is None, "the model given was changed"
    again = sparse.to_dense(fast)
    assert again.config.sparse is None
    assert again.config.key() == dense.config.key()
    for (name, ours), (_, theirs) in zip(again.state_dict().items(), dense.state_dict().items(), strict=True):
        assert torch.equal(ours, theirs), name
    assert sparse.to_sparse(fast) is fast
    assert sparse.to_dense(dense) is dense
    weights = {name.removeprefix("bert."): tensor for name, tensor in fast.state_dict().items()}
    for name, tensor in sparse.dense_weights(weights, fast.config.sparse).items():
        assert torch.equal(tensor, dense.state_dict()[name if name.startswith("classifier") else f"bert.{name}"]), name


@pytest.mark.parametrize("how", ["Auto classes", "checkpoints"])
def test_it_is_saved_by_its_values_and_loads_like_any_model(how, tmp_path):
    fast = sparse.to_sparse(pruned(0.8, **UNEVEN), min_sparsity=0.5)
    if how == "checkpoints":
        checkpoints.save(fast, tmp_path / "model")
        again = checkpoints.load(CompactBertForSequenceClassification, tmp_path / "model")
    else:
        fast.save_pretrained(tmp_path / "model")
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert again.config.sparse == fast.config.sparse
    assert isinstance(again.bert.encoder.layer[0].intermediate.dense, sparse.SparseLinear)
    assert torch.equal(outputs(again).logits, outputs(fast).logits)


def test_from_80_percent_on_the_pruned_matrices_take_at_most_half_their_dense_bytes():
    shape = {"hidden_size": 128, "intermediate_size": 512}
    dense = pruned(0.8, **shape)
    layers = sparse.to_sparse(dense, min_sparsity=0.5).bert.encoder
    for name in prunable(dict(dense.named_parameters())):
        layer = layers.get_submodule(name.removeprefix("bert.encoder.").removesuffix(".weight"))
        stored = sum(t.numel() * t.element_size() for t in (layer.values, layer.indices, layer.row_pointers))
        assert sparse.stored_bytes(layer.weight) == stored
        rows, columns = layer.shape
        assert stored <= rows * columns * 4 / 2, (name, stored)


def test_weights_pruned_in_blocks_are_stored_in_blocks():
    weight = torch.ones(32, 10)
    assert sparse.widest_block(weight) == 16
    weight[8:16, 3] = 0
    assert sparse.widest_block(weight) == 8
    weight[0, 0] = 0  # one zero among the stored values is within 1 %
    assert sparse.widest_block(weight) == 8
    weight[::2] = 0
    assert sparse.widest_block(weight) == 1
    assert sparse.widest_block(torch.ones(6, 3)) == 1
    model = pruned(0.0)
    with torch.no_grad():
        for name in prunable(dict(model.named_parameters())):
            kept = torch.rand(len(model.get_parameter(name)) // 4, model.get_parameter(name).shape[1]) < 0.1
            model.get_parameter(name).mul_(kept.repeat_interleave(4, 0))
    fast = sparse.to_sparse(model, min_sparsity=0.5)
    assert {sizes[3] for sizes in fast.config.sparse.values()} == {4}
    torch.testing.assert_close(outputs(fast).logits, outputs(model).logits, rtol=1e-5, atol=5e-5)


def test_layers_below_the_limit_stay_dense_and_are_named(caplog):
    model = pruned(0.9)
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight.fill_(1.0)
    with caplog.at_level(logging.WARNING):
        fast = sparse.to_sparse(model, min_sparsity=0.5)
    assert "1 of 12 layers stay dense: {'layer.1.output.dense': '0.0% zeros'}" in caplog.text
    assert len(fast.config.sparse) == 11
    torch.testing.assert_close(outputs(fast).logits, outputs(model).logits, rtol=1e-5, atol=5e-5)
    with pytest.raises(ValueError, match="prune further"):
        sparse.to_sparse(pruned(0.3), min_sparsity=0.5)


def test_without_a_limit_the_measured_speed_decides(monkeypatch):
    """Two shapes, one of which is said to be slower sparse; each kind of matrix is timed once."""
    timed = []

    def speedup(weight, stored):
        timed.append(tuple(weight.shape))
        return 2.0 if weight.shape[0] == weight.shape[1] else 0.5

    monkeypatch.setattr(sparse, "speedup", speedup)
    fast = sparse.to_sparse(pruned(0.9))
    assert sorted(timed) == [(48, 48), (48, 96), (96, 48)]
    assert {name.split(".", 2)[2] for name in fast.config.sparse} == set(sparse.ATTENTION)


def test_the_measured_speed_is_a_ratio_of_two_right_products():
    weight = pruned(0.95, hidden_size=256, intermediate_size=1024).bert.encoder.layer[0].intermediate.dense.weight
    assert sparse.speedup(weight.detach(), sparse.SparseWeight.from_dense(weight)) > 0


def test_training_moves_the_stored_values_and_no_zero():
    fast = sparse.to_sparse(pruned(0.9), min_sparsity=0.5).train()
    before = sparse.to_dense(fast)
    optimizer = torch.optim.SGD(fast.parameters(), lr=0.1)
    fast(**BATCH).logits.square().sum().backward()
    optimizer.step()
    after = sparse.to_dense(fast)
    for name in prunable(dict(before.named_parameters())):
        old, new = (model.get_parameter(name) for model in (before, after))
        assert torch.equal(old == 0, new == 0), name
        assert not torch.equal(old, new), name


def test_its_gradients_are_those_of_the_pruned_model_where_it_has_weights():
    dense = pruned(0.9)
    fast = sparse.to_sparse(dense, min_sparsity=0.5)
    for model in (dense, fast):
        model(**BATCH).logits.square().sum().backward()
    layer = fast.bert.encoder.layer[0].intermediate.dense
    full = dense.bert.encoder.layer[0].intermediate.dense
    where = full.weight != 0
    grown = sparse.SparseWeight(layer.values.grad, layer.indices, layer.row_pointers, layer.shape).to_dense()
    torch.testing.assert_close(grown[where], full.weight.grad[where], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fast.bert.embeddings.word_embeddings.weight.grad,
                               dense.bert.embeddings.word_embeddings.weight.grad, rtol=1e-4, atol=1e-4)  # fmt: skip


def test_a_sparse_model_has_no_subnets():
    fast = sparse.to_sparse(pruned(0.9), min_sparsity=0.5)
    subnet = fast.config.changed(num_hidden_layers=1)
    with pytest.raises(ValueError, match="no subnets; make it dense first"):
        fast(**BATCH, subnet=subnet)
    with pytest.raises(ValueError, match="no subnets; make it dense first"):
        elastic.extract(fast, subnet)
