"""Parameters, operations and bytes by formula are those of real models."""

from __future__ import annotations

from random import Random

import pytest
import torch

from compresskit.evaluation.flops import flops
from compresskit.models import CompactBertConfig, CompactBertModel, presets
from compresskit.search.costs import Flops, ModelBytes, Parameters
from compresskit.search.spaces import SPACES, columns_of

SUPERNET = CompactBertConfig(
    vocab_size=50, hidden_size=96, num_hidden_layers=4, num_attention_heads=4, qkv_size=128, intermediate_size=192,
    max_position_embeddings=20, type_vocab_size=3,
)  # fmt: skip
UNEVEN = SUPERNET.changed(
    num_hidden_layers=3, qkv_size=[32, 64, 16], num_attention_heads=[1, 2, 4], intermediate_size=[8, 100, 33]
)


def drawn() -> list[CompactBertConfig]:
    rng = Random(0)
    return [UNEVEN, *(space.within(SUPERNET).sample(SUPERNET, rng) for space in SPACES.values() for _ in range(10))]


def test_parameters_and_bytes_are_those_of_built_models():
    configs = drawn()
    with torch.device("meta"):
        built = [sum(p.numel() for p in CompactBertModel(config).parameters()) for config in configs]
    columns = columns_of(configs)
    assert Parameters(SUPERNET).predict(columns).tolist() == pytest.approx(built, abs=0.01)
    assert ModelBytes(SUPERNET).predict(columns).tolist() == pytest.approx([4 * n for n in built], abs=0.1)
    assert ModelBytes(SUPERNET, 1).predict(columns).tolist() == pytest.approx(built, abs=0.01)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("autotinybert-s1", 29_573_882),
        ("autotinybert-s2", 16_874_724),
        ("autotinybert-s3", 16_707_024),
        ("autotinybert-s4", 12_195_168),
        ("autotinybert-kd-s1", 29_585_252),
        ("autotinybert-kd-s2", 14_222_712),
        ("autotinybert-kd-s3", 11_763_620),
        ("autotinybert-kd-s4", 9_791_360),
    ],
)
def test_parameters_of_the_published_architectures(name, parameters):
    assert Parameters(CompactBertConfig()).predict(columns_of([presets.config(name)])).tolist() == [parameters]


@pytest.mark.parametrize("seq_len", [1, 128])
def test_operations_are_those_that_evaluation_counts(seq_len):
    configs = drawn()
    counted = [flops(config, seq_len, "encoder") for config in configs]
    assert Flops(seq_len).predict(columns_of(configs)).tolist() == pytest.approx(counted, rel=1e-12)
