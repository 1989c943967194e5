"""The config: what it completes, what it refuses, and when two shapes are the same."""

from __future__ import annotations

import json
import time
from random import Random

import pytest
from transformers import AutoConfig

from compresskit.models import CompactBertConfig
from compresskit.search.spaces import SuperBertMlmSpace

PLAIN = "linear1_1(gelu(linear1_1(x,wb1)),wb2)"
TANH = "tanh(linear2_1(gelu(linear2_1(x,wb1)),wb2))"
UNSIZED = "linear(gelu(linear(x,wb1)),wb2)"
NARROW = "linear1_1(add(linear1_1(x,wb1),x),wb2)"


def config(**fields) -> CompactBertConfig:
    small = {
        "vocab_size": 50,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 32,
    }
    return CompactBertConfig(**{**small, **fields})


def test_one_number_stands_for_every_layer_and_a_list_for_each():
    mixed = config(num_attention_heads=[4, 2], qkv_size=[20, 10])
    assert mixed.per_layer("num_attention_heads") == [4, 2]
    assert mixed.per_layer("qkv_size") == [20, 10]
    assert mixed.per_layer("intermediate_size") == [32, 32]
    assert config().per_layer("qkv_size") == [24, 24]  # hidden_size where nothing is said


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"qkv_size": 22}, r"layer 0: qkv_size 22 is no multiple of num_attention_heads 4"),
        ({"num_attention_heads": [4, 5]}, r"layer 1: qkv_size 24 is no multiple of num_attention_heads 5"),
        ({"intermediate_size": [32]}, r"intermediate_size has 1 values for 2 layers"),
        ({"intermediate_size": [32, 0]}, r"intermediate_size is \[32, 0\]; expected whole numbers of at least 1"),
        ({"hidden_size": 0}, r"hidden_size is 0; expected a whole number of at least 1"),
        ({"hidden_size": "24"}, r"hidden_size is '24'; expected a whole number"),
        ({"num_hidden_layers": 2.0}, r"num_hidden_layers is 2.0; expected a whole number"),
        ({"hidden_act": "gelu9"}, r"hidden_act is 'gelu9'; expected an activation"),
        ({"hidden_dropout_prob": 1.5}, r"hidden_dropout_prob is 1.5; expected a number from 0 to 1"),
        ({"classifier_dropout": "0.1"}, r"classifier_dropout is '0.1'; expected a number from 0 to 1"),
        ({"pad_token_id": 50}, r"pad_token_id 50 is outside a vocabulary of 50"),
        ({"feed_forward": ["x"]}, r"feed_forward has 1 formulas for 2 layers"),
        ({"feed_forward_width": "mean"}, r"feed_forward_width is 'mean'; expected 'min' or 'max' or 'max-faithful'"),
        ({"feed_forward": [PLAIN, "tanh(x"]}, r"layer 1: formula 'tanh\(x', column 7: the formula ends where , or \)"),
        ({"feed_forward": [PLAIN, "tanh(x)"]}, r"layer 1: formula tanh\(x\): it uses wb1 0 times; expected once"),
        ({"feed_forward": [TANH, UNSIZED]}, r"layer 1: .*: its linears have no size; write linear1_1 to linear4_4"),
        ({"feed_forward": [NARROW, PLAIN]}, r"layer 0: .*: wb2 takes a width of 32, and is given 24"),
        (
            {"feed_forward": [NARROW.replace("1_1", "1_2"), PLAIN], "feed_forward_width": "max"},
            r"of 16, and is given 24",
        ),
        (
            {"feed_forward": [PLAIN.replace("1_1", "1_4"), PLAIN], "intermediate_size": 3},
            r"1/4 of an intermediate_size of 3 is nothing",
        ),
        ({"embedding": "word"}, r"embedding is 'word'; expected 'bert' or 'trigram'"),
        ({"embedding": "trigram"}, r"embedding_size is None; a trigram embedding needs"),
        ({"embedding_size": 8}, r"embedding 'bert' has no embedding_size 8"),
    ],
    ids=str,
)
def test_a_shape_that_cannot_be_built_is_refused_by_field_and_layer(fields, message):
    with pytest.raises(ValueError, match=message) as refused:
        config(**fields)
    assert "\n" not in str(refused.value)


def test_whole_numbers_are_good_probabilities():
    assert config(hidden_dropout_prob=0, attention_probs_dropout_prob=1).hidden_dropout_prob == 0


def test_the_key_is_equal_for_equal_networks_however_written():
    plain = config()
    spelled = config(num_attention_heads=[4, 4], qkv_size=24, intermediate_size=[32, 32], hidden_dropout_prob=0.3)
    assert plain.key() == spelled.key()
    assert len({plain.key(), spelled.key()}) == 1
    for changes in (
        {"hidden_size": 28}, {"num_hidden_layers": 1}, {"num_attention_heads": 2}, {"qkv_size": 20},
        {"intermediate_size": [32, 31]}, {"vocab_size": 51}, {"hidden_act": "relu"}, {"pooler_relu": True},
        {"layer_norm_eps": 1e-5}, {"max_position_embeddings": 100}, {"type_vocab_size": 3},
        {"feed_forward": [PLAIN, PLAIN]}, {"embedding": "trigram", "embedding_size": 24},
    ):  # fmt: skip
        assert config(**changes).key() != plain.key(), changes


def test_a_change_keeps_everything_else():
    labels = {0: "bad", 1: "so so", 2: "good"}
    first = config(
        num_attention_heads=[4, 2], qkv_size=[20, 10], id2label=labels, label2id={v: k for k, v in labels.items()},
        hidden_dropout_prob=0.3, pooler_relu=True, attn_implementation="eager",
    )  # fmt: skip
    small = first.changed(num_hidden_layers=1, intermediate_size=20)
    assert small.per_layer("num_attention_heads") == [4]
    assert small.per_layer("qkv_size") == [20]
    assert (small.hidden_size, small.intermediate_size, small.hidden_dropout_prob) == (24, 20, 0.3)
    assert (small.id2label, small.pooler_relu, small._attn_implementation) == (labels, True, "eager")
    assert first.num_hidden_layers == 2
    assert first.changed().key() == first.key()


def test_a_narrower_network_keeps_the_width_of_its_heads():
    assert config().changed(hidden_size=12).per_layer("qkv_size") == [24, 24]
    assert config(qkv_size=20).changed(hidden_size=12).per_layer("qkv_size") == [20, 20]


def test_other_labels_replace_all_of_the_old_ones():
    three = config(id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2})
    assert three.changed(num_labels=2).id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert three.changed(id2label={0: "x", 1: "y"}).num_labels == 2


def test_formulas_follow_the_number_of_layers():
    assert config(feed_forward=[PLAIN, TANH]).changed(num_hidden_layers=1).feed_forward == [PLAIN]


def test_networks_with_formulas_are_equal_where_inner_widths_are():
    halves = config(feed_forward=[PLAIN.replace("1_1", "1_2"), TANH])
    assert halves.feed_forward_sizes() == [(1, 16), (2, 32)]
    spaced = config(feed_forward=[PLAIN.replace(",", " , "), TANH], intermediate_size=[16, 32])
    assert spaced.feed_forward == [PLAIN, TANH]
    assert spaced.key() == halves.key()
    assert halves.key() != config(feed_forward=[PLAIN, TANH]).key()
    assert halves.key() != halves.changed(feed_forward=[PLAIN.replace("1_1", "2_2"), TANH]).key()
    assert halves.key() != halves.changed(feed_forward_width="max").key()


def test_what_the_file_holds_is_what_was_saved(tmp_path):
    first = config(
        num_attention_heads=[4, 2], qkv_size=[20, 10], pooler_relu=True, classifier_dropout=0.2, num_labels=3
    )
    first.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is CompactBertConfig
    assert again.key() == first.key()
    assert (again.num_labels, again.classifier_dropout) == (3, 0.2)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "compact_bert"


def test_drawing_an_architecture_takes_less_than_two_milliseconds():
    supernet, space, rng = CompactBertConfig(), SuperBertMlmSpace(), Random(0)
    times = []
    for _ in range(30):
        begin = time.thread_time()
        space.sample(supernet, rng)
        times.append(time.thread_time() - begin)
    assert sorted(times)[0] < 2e-3  # the quickest of thirty: other work on the machine does not count
