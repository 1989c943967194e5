"""The published architectures have the parameter counts that were measured on them."""

from __future__ import annotations

import pytest
import torch

from compresskit.models import CompactBertModel, presets
from compresskit.search.costs import parameters

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


WITHOUT_POOLER = {  # EfficientBERT's, counted on the original's shapes; with the projection to 768 the paper's way
    "efficientbert-tiny": (9_097_896, 9_375_144),
    "efficientbert": (15_322_236, 15_737_724),
    "efficientbert-plus": (15_322_236, 15_737_724),
    "efficientbert-plusplus": (13_964_616, 14_241_864),
    "efficientbert-tinybert6": (69_526_016, 70_116_608),
    "efficientbert-stage2": (14_984_961, 15_400_449),  # 15.4002 M by the paper's rounded table
    "efficientbert-supernet": (25_459_836, 25_875_324),
}


@pytest.mark.parametrize("name", presets.FIELDS)
def test_a_preset_of_efficientbert_has_the_counted_number_of_parameters(name):
    config = presets.config(name)
    with torch.device("meta"):
        model = CompactBertModel(config, add_pooling_layer=False)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert (count, count + 768 * config.hidden_size + 768) == WITHOUT_POOLER[name]
    assert parameters(config) == count


@pytest.mark.parametrize("name", [name for name in presets.PRESETS if name not in presets.FIELDS])
def test_a_preset_has_the_published_number_of_parameters(name):
    l, h, f, n, q = presets.PRESETS[name]
    with torch.device("meta"):
        model = CompactBertModel(presets.config(name))
    count = sum(parameter.numel() for parameter in model.parameters())
    formula = 31036 * h + 2 * h + l * (3 * (h * q + q) + q * h + h + 2 * h + h * f + f + f * h + h + 2 * h) + h * h + h
    assert count == formula
    assert parameters(presets.config(name)) == count - h * h - h
    assert count == BACKBONES.get(name, formula)
    heads = [layer.attention.self.query.out_features // n for layer in model.encoder.layer]
    assert heads == [q // n] * l


def test_an_unknown_preset_is_refused_with_near_names_and_fields_can_be_changed():
    with pytest.raises(ValueError, match="no preset is called 'autotinybert-kd-s5'; did you mean autotinybert-kd-s"):
        presets.config("autotinybert-kd-s5")
    with pytest.raises(ValueError, match="no preset is called 'zzz'; known: bert-base, superbert"):
        presets.config("zzz")
    assert presets.config("autotinybert-s4", vocab_size=50).vocab_size == 50
