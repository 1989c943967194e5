"""The published architectures have the parameter counts that were measured on them."""

from __future__ import annotations

import pytest
import torch

from compresskit.models import CompactBertModel, presets

BACKBONES = {  # AutoTinyBERT's as measured on the original code; BERT's and TinyBERT's as published files have them
    "autotinybert-s1": 29_573_882,
    "autotinybert-s2": 16_874_724,
    "autotinybert-s3": 16_707_024,
    "autotinybert-s4": 12_195_168,
    "autotinybert-kd-s1": 29_585_252,
    "autotinybert-kd-s2": 14_222_712,
    "autotinybert-kd-s3": 11_763_620,
    "autotinybert-kd-s4": 9_791_360,
    "bert-base": 109_482_240,
    "tinybert-4": 14_350_248,
    "tinybert-6": 66_955_008,
}


@pytest.mark.parametrize("name", presets.PRESETS)
def test_a_preset_has_the_published_number_of_parameters(name):
    l, h, f, n, q = presets.PRESETS[name]
    with torch.device("meta"):
        model = CompactBertModel(presets.config(name))
    count = sum(parameter.numel() for parameter in model.parameters())
    formula = 31036 * h + 2 * h + l * (3 * (h * q + q) + q * h + h + 2 * h + h * f + f + f * h + h + 2 * h) + h * h + h
    assert count == formula
    assert count == BACKBONES.get(name, formula)
    heads = [layer.attention.self.query.out_features // n for layer in model.encoder.layer]
    assert heads == [q // n] * l


def test_an_unknown_preset_is_refused_with_near_names_and_fields_can_be_changed():
    with pytest.raises(ValueError, match="no preset is called 'autotinybert-kd-s5'; did you mean autotinybert-kd-s"):
        presets.config("autotinybert-kd-s5")
    with pytest.raises(ValueError, match="no preset is called 'zzz'; known: bert-base, superbert"):
        presets.config("zzz")
    assert presets.config("autotinybert-s4", vocab_size=50).vocab_size == 50
