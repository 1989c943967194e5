"""AutoTinyBERT's text for an architecture and our config say the same; other text is refused in one sentence."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compresskit.models import CompactBertConfig, presets
from compresskit.search import arch_text

TEMPLATE = presets.config("superbert", vocab_size=99, hidden_act="relu")
S4 = {
    "mlm": "{'sample_layer_num': 3, 'sample_num_attention_heads': [4, 4, 4], 'sample_qkv_sizes': [256, 256, 256], "
    "'sample_hidden_size': 320, 'sample_intermediate_sizes': [608, 608, 608]}",
    "kd": "{'sample_layer_num': 3, 'sample_num_attention_heads': [4, 4, 4], 'sample_hidden_size': 320, "
    "'sample_intermediate_sizes': [608, 608, 608], 'sample_qkv_sizes': [256, 256, 256]}",
    "mutant": "{'sample_layer_num': 3, 'sample_hidden_size': 320, 'sample_intermediate_sizes': [608, 608, 608], "
    "'sample_num_attention_heads': [4, 4, 4], 'sample_qkv_sizes': [256, 256, 256]}",
}


@pytest.mark.parametrize("order", S4)
def test_each_producers_line_is_read_and_written_byte_for_byte(order):
    config = arch_text.parse(f" {S4[order]}\n", TEMPLATE)
    expected = presets.config("autotinybert-s4", vocab_size=99, hidden_act="relu")
    assert config.key() == expected.key()
    assert config.to_dict() == expected.to_dict()
    assert arch_text.text(config, order) == S4[order]
    assert arch_text.parse(json.dumps(arch_text.dictionary(config, order)), TEMPLATE).key() == expected.key()


@settings(max_examples=50, deadline=None)
@given(
    layers=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 64), st.integers(1, 3072)), min_size=1, max_size=9),
    hidden=st.integers(1, 768),
    order=st.sampled_from(sorted(S4)),
)
def test_networks_with_other_sizes_in_each_layer_survive_the_text(layers, hidden, order):
    heads, rows, wide = map(list, zip(*layers, strict=True))
    config = TEMPLATE.changed(
        num_hidden_layers=len(layers),
        hidden_size=hidden,
        num_attention_heads=heads,
        qkv_size=[n * d for n, d in zip(heads, rows, strict=True)],
        intermediate_size=wide,
    )
    assert arch_text.parse(arch_text.text(config, order), TEMPLATE).key() == config.key()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("'sample_hidden_size': 320, ", "", "'sample_hidden_size' is missing; an architecture has sample_layer_num"),
        ("'sample_hidden_size'", "'hidden_size'", "'sample_hidden_size' is missing"),
        ("{'sample_layer_num'", "{'depth': 3, 'sample_layer_num'", "unknown entry 'depth'"),
        ("[4, 4, 4]", "[4, 5, 4]", "layer 1: 256 for q, k and v is no multiple of 5 heads"),
        ("[608, 608, 608]", "[608, 608]", "'sample_intermediate_sizes' has 2 values for 3 layers"),
        ("_num': 3", "_num': 4", "'sample_intermediate_sizes' has 3 values for 4 layers"),
        ("_num': 3", "_num': '3'", "'sample_layer_num' is 3; expected a whole number above 0"),
        ("_num': 3", "_num': True", "'sample_layer_num' is True; expected a whole number above 0"),
        ("320", "320.0", "'sample_hidden_size' is 320.0; expected a whole number above 0"),
        ("320", "0", "'sample_hidden_size' is 0; expected a whole number above 0"),
        ("320", "[320]", r"'sample_hidden_size' is \[320\]; expected a whole number above 0"),
        (
            "[256, 256, 256]",
            "256",
            "'sample_qkv_sizes' is 256; expected a list with one whole number of at least 1 per",
        ),
        ("[256, 256, 256]", "[256, None, 256]", r"'sample_qkv_sizes' is \[256, None, 256\]; expected a list"),
        ("[256, 256, 256]", "[256, -256, 256]", r"'sample_qkv_sizes' is \[256, -256, 256\]; expected a list"),
        ("{", "[", "is no architecture; expected a dictionary such as"),
        ("320", "print(1)", "is no architecture; expected a dictionary such as"),
        ("320", "[" * 5000, "is no architecture; expected a dictionary such as"),
        ("'sample_hidden_size'", "['sample_hidden_size']", "is no architecture"),
    ],
)
def test_what_is_no_architecture_is_refused_in_one_short_sentence(old, new, message):
    assert old in S4["mutant"]
    with pytest.raises(ValueError, match=message) as refusal:
        arch_text.parse(S4["mutant"].replace(old, new), TEMPLATE)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize("text", ["", "5-564-1054-8-512", "[]", "{}", "None"])
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match=r"is no architecture; expected a dictionary|'sample_layer_num' is missing"):
        arch_text.parse(text, TEMPLATE)


def test_an_unknown_order_is_refused():
    with pytest.raises(ValueError, match="order 'evolved' is none of mlm, kd, mutant"):
        arch_text.text(CompactBertConfig(), "evolved")
