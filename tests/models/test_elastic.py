"""A subnet in place and the same subnet taken out: one network."""

from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compresskit import models
from compresskit.models import CompactBertConfig, CompactBertForPreTraining, CompactBertModel
from compresskit.models.elastic import extract, keep_layers
from compresskit.search.spaces import SPACES

SUPERNET = CompactBertConfig(
    vocab_size=97,
    hidden_size=64,
    num_hidden_layers=4,
    num_attention_heads=6,
    qkv_size=96,
    intermediate_size=160,
    max_position_embeddings=40,
    num_labels=3,
)
SUBNETS = {
    "whole": {},
    "fewer layers": {"num_hidden_layers": 1},
    "narrow": {"hidden_size": 33, "intermediate_size": 71},
    "one column": {"hidden_size": 1},
    "mlm flavour": {
        "num_hidden_layers": 3,
        "hidden_size": 40,
        "num_attention_heads": 4,
        "qkv_size": 64,
        "intermediate_size": 100,
    },
    "kd flavour": {"num_hidden_layers": 3, "hidden_size": 40, "qkv_size": 66, "intermediate_size": 100},
    "one row per head": {"hidden_size": 3, "num_attention_heads": 2, "qkv_size": 2, "intermediate_size": 1},
    "five single rows": {"hidden_size": 10, "num_attention_heads": 5, "qkv_size": 5, "intermediate_size": 3},
    "both": {"hidden_size": 50, "num_attention_heads": 3, "qkv_size": 27},
    "per layer": {
        "hidden_size": 48,
        "num_attention_heads": [6, 1, 3, 2],
        "qkv_size": [96, 16, 30, 2],
        "intermediate_size": [160, 1, 99, 64],
    },
}
# of several tasks one is run at a time: for_task
CLASSES = [name for name in models.__all__ if name not in ("CompactBertConfig", "CompactBertForMultitask")]


def network(model_class: type = CompactBertForPreTraining, config: CompactBertConfig = SUPERNET):
    """Random weights of standard deviation 0.2, biases and LayerNorms included."""
    model = model_class(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def batch(rows: int = 3, length: int = 19) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(97, (rows, length), generator=generator)
    lengths = torch.arange(rows)[:, None] * 5  # the first row has no real token
    return {
        "input_ids": ids,
        "attention_mask": (torch.arange(length) < lengths).long(),
        "token_type_ids": torch.randint(2, ids.shape, generator=generator),
    }


def tensors(output) -> list[Tensor]:
    return [t for value in output.values() for t in (value if isinstance(value, tuple) else (value,))]


@pytest.fixture(params=["highest", "medium"])
def precision(request):
    """The two ways of computing float32 products: torch's default, and oneDNN."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize("explicit", [False, True], ids=["sdpa", "explicit"])
@pytest.mark.parametrize("name", SUBNETS)
@torch.no_grad()
def test_in_place_and_taken_out_are_equal_bit_for_bit(name, explicit):
    supernet, subnet = network(), SUPERNET.changed(**SUBNETS[name])
    small = extract(supernet, subnet)
    asked = {"output_hidden_states": True, "output_attentions": explicit, "output_attention_scores": explicit}
    for inputs in (batch(), batch(1, 1), batch(1, 19), batch(9, 40)):
        in_place, taken_out = supernet(**inputs, subnet=subnet, **asked), small(**inputs, **asked)
        for a, b in zip(tensors(in_place), tensors(taken_out), strict=True):
            assert torch.equal(a, b)


@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize("flavour", SPACES)
@torch.no_grad()
def test_drawn_subnets_of_a_larger_supernet_are_equal_bit_for_bit(flavour):
    config = CompactBertConfig(vocab_size=50, hidden_size=192, num_hidden_layers=3, intermediate_size=768)
    supernet, space, rng = network(CompactBertModel, config), SPACES[flavour].within(config), Random(0)
    inputs = {**batch(), "input_ids": batch()["input_ids"] % 50}
    for _ in range(12):
        subnet = space.sample(config, rng)
        a, b = supernet(**inputs, subnet=subnet), extract(supernet, subnet)(**inputs)
        assert torch.equal(a.last_hidden_state, b.last_hidden_state), subnet.key()
        assert torch.equal(a.pooler_output, b.pooler_output), subnet.key()


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_subnet_is_equal_bit_for_bit(data):
    layers = data.draw(st.integers(1, 4))
    draw = lambda high: data.draw(st.lists(st.integers(1, high), min_size=layers, max_size=layers))  # noqa: E731
    heads = draw(6)
    subnet = SUPERNET.changed(
        num_hidden_layers=layers,
        hidden_size=data.draw(st.integers(1, 64)),
        num_attention_heads=heads,
        qkv_size=[n * rows for n, rows in zip(heads, draw(16), strict=True)],
        intermediate_size=draw(160),
    )
    supernet = network(CompactBertModel)
    with torch.no_grad():
        assert torch.equal(
            supernet(**batch(), subnet=subnet).last_hidden_state, extract(supernet, subnet)(**batch()).last_hidden_state
        )


@pytest.mark.parametrize("name", CLASSES)
@torch.no_grad()
def test_every_head_is_cut_out_with_its_subnet(name):
    supernet, subnet = network(getattr(models, name)), SUPERNET.changed(**SUBNETS["kd flavour"])
    in_place, taken_out = supernet(**batch(), subnet=subnet), extract(supernet, subnet)(**batch())
    for a, b in zip(tensors(in_place), tensors(taken_out), strict=True):
        assert torch.equal(a, b)


def test_the_slices_are_those_of_autotinybert():
    supernet = network(CompactBertModel)
    for subnet, rows in (
        (SUPERNET.changed(**SUBNETS["mlm flavour"]), list(range(64))),  # the first 4 heads of 16
        (SUPERNET.changed(**SUBNETS["kd flavour"]), [16 * head + i for head in range(6) for i in range(11)]),
    ):
        small, layer = extract(supernet, subnet), supernet.encoder.layer[2]
        cut = small.encoder.layer[2]
        assert torch.equal(cut.attention.self.query.weight, layer.attention.self.query.weight[rows, :40])
        assert torch.equal(cut.attention.self.value.bias, layer.attention.self.value.bias[rows])
        assert torch.equal(cut.attention.output.dense.weight, layer.attention.output.dense.weight[:40, rows])
        assert torch.equal(cut.intermediate.dense.weight, layer.intermediate.dense.weight[:100, :40])
        assert torch.equal(cut.output.dense.weight, layer.output.dense.weight[:40, :100])
        assert torch.equal(cut.output.LayerNorm.bias, layer.output.LayerNorm.bias[:40])
        assert torch.equal(small.pooler.dense.weight, supernet.pooler.dense.weight[:40, :40])
        table = supernet.embeddings.word_embeddings.weight
        assert torch.equal(small.embeddings.word_embeddings.weight, table[:, :40])


def test_gradients_of_a_subnet_in_place_are_those_of_the_extracted_one_and_touch_nothing_else():
    supernet = network().double()
    subnet = SUPERNET.changed(**SUBNETS["per layer"]).changed(num_hidden_layers=3)
    small = extract(supernet, subnet)
    labels = batch()["input_ids"]
    supernet(**batch(), labels=labels, subnet=subnet).loss.backward()
    small(**batch(), labels=labels).loss.backward()

    marked = network().double()  # every weight its own number, so that the cut tells which ones the subnet has
    with torch.no_grad():
        for parameter in marked.parameters():
            parameter.copy_(torch.arange(parameter.numel()).view(parameter.shape))
    own = {name: cut.flatten().long() for name, cut in extract(marked, subnet).named_parameters()}
    expected = {name: parameter.grad for name, parameter in small.named_parameters()}
    for name, parameter in supernet.named_parameters():
        if expected.get(name) is None:  # a layer that did not run, or the pooler, on which this loss does not depend
            assert parameter.grad is None, name
            continue
        gradient = parameter.grad.flatten()
        torch.testing.assert_close(gradient[own[name]], expected[name].flatten(), rtol=0, atol=1e-12, msg=name)
        gradient[own[name]] = 0
        assert not gradient.any(), name


def test_chosen_layers_become_the_subnets_layers_in_the_order_given():
    supernet = network(CompactBertModel)
    small = extract(supernet, SUPERNET.changed(num_hidden_layers=2, hidden_size=30), layers=[3, 1])
    for layer, source in ((0, 3), (1, 1)):
        weight = supernet.encoder.layer[source].intermediate.dense.weight
        assert torch.equal(small.encoder.layer[layer].intermediate.dense.weight, weight[:, :30])


def test_chosen_layers_of_an_uneven_supernet_keep_their_own_widths():
    uneven = CompactBertConfig(
        vocab_size=97, hidden_size=24, num_hidden_layers=3, num_attention_heads=[4, 2, 3], qkv_size=[24, 12, 30],
        intermediate_size=[8, 16, 24],
    )  # fmt: skip
    supernet = network(CompactBertModel, uneven)
    last = uneven.changed(num_hidden_layers=1, num_attention_heads=3, qkv_size=24, intermediate_size=24)
    small = extract(supernet, last, layers=[2])
    rows = [head * 10 + i for head in range(3) for i in range(8)]
    assert torch.equal(
        small.encoder.layer[0].attention.self.key.weight, supernet.encoder.layer[2].attention.self.key.weight[rows]
    )
    with pytest.raises(ValueError, match="layer 0: the subnet's num_attention_heads 3 exceeds the supernet's 2"):
        extract(supernet, last, layers=[1])
    kept = keep_layers(supernet, [3, 2])
    assert kept.config.num_attention_heads == [3, 2]
    assert kept.config.qkv_size == [30, 12]
    assert kept.config.intermediate_size == [24, 16]
    for ours, theirs in zip(kept.encoder.layer, (supernet.encoder.layer[2], supernet.encoder.layer[1]), strict=True):
        assert all(torch.equal(*pair) for pair in zip(ours.parameters(), theirs.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"layers \[0, 1\] of a model of 3 layers; each is from 1 to 3"):
        keep_layers(supernet, [0, 1])


@pytest.mark.parametrize("layers", [[0], [0, 4], [-1, 0], [0, 1, 2]], ids=str)
def test_layers_that_are_not_there_or_too_many_are_refused(layers):
    with pytest.raises(ValueError, match="for a subnet of 2 layers; give as many, each from 0 to 3"):
        extract(network(CompactBertModel), SUPERNET.changed(num_hidden_layers=2), layers=layers)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 5}, "the subnet's num_hidden_layers 5 exceeds the supernet's 4"),
        ({"hidden_size": 65}, "the subnet's hidden_size 65 exceeds the supernet's 64"),
        (
            {"intermediate_size": [160, 160, 161, 160]},
            "layer 2: the subnet's intermediate_size 161 exceeds the supernet's 160",
        ),
        (
            {"num_attention_heads": [6, 7, 6, 6], "qkv_size": [96, 70, 96, 96]},
            "layer 1: the subnet's num_attention_heads 7 exceeds the supernet's 6",
        ),
        (
            {"num_attention_heads": 4, "qkv_size": 96},
            "layer 0: the subnet's rows per head 24 exceeds the supernet's 16",
        ),
        ({"vocab_size": 96}, "the subnet's vocab_size 96 is not the supernet's 97"),
        ({"hidden_act": "relu"}, "the subnet's hidden_act 'relu' is not the supernet's 'gelu'"),
        ({"layer_norm_eps": 1e-5}, "the subnet's layer_norm_eps 1e-05 is not the supernet's 1e-12"),
        ({"pooler_relu": True}, "the subnet's pooler_relu True is not the supernet's False"),
    ],
    ids=str,
)
def test_a_subnet_that_does_not_fit_is_refused_by_layer_and_field_in_place_and_taken_out(changes, message):
    supernet, subnet = network(CompactBertModel), SUPERNET.changed(**changes)
    for attempt in (lambda: supernet(**batch(), subnet=subnet), lambda: extract(supernet, subnet)):
        with pytest.raises(ValueError, match=message):
            attempt()


def test_other_labels_are_refused():
    with pytest.raises(ValueError, match="the subnet has 2 labels, the model 3"):
        extract(network(models.CompactBertForSequenceClassification), SUPERNET.changed(num_labels=2))


def test_the_extracted_model_is_a_copy_with_dtype_mode_and_attention_of_its_source():
    config = SUPERNET.changed(attn_implementation="eager")
    supernet = CompactBertModel(config).double().train()
    plain = CompactBertConfig(**{**SUPERNET.to_dict(), "hidden_size": 32, "qkv_size": 96})  # says nothing of attention
    small = extract(supernet, plain)
    assert (small.dtype, small.training, small.config._attn_implementation) == (torch.float64, True, "eager")
    with torch.no_grad():
        small.encoder.layer[0].output.dense.weight.zero_()
    assert supernet.encoder.layer[0].output.dense.weight.any()
    assert not extract(supernet.eval(), plain).training
    small.config.hidden_dropout_prob = 0.9
    assert plain.hidden_dropout_prob == 0.1


def test_running_a_subnet_leaves_nothing_behind():
    supernet = network(CompactBertModel)
    with torch.no_grad():
        before = supernet(**batch()).last_hidden_state
        supernet(**batch(), subnet=SUPERNET.changed(**SUBNETS["both"]))
        assert torch.equal(supernet(**batch()).last_hidden_state, before)
