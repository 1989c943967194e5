"""Architectures that a seed draws, against those that AutoTinyBERT's program drew."""

from __future__ import annotations

from random import Random

import pytest

from compresskit.models import CompactBertConfig
from compresskit.search.spaces import SPACES
from tests.oracle_cases import oracle


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("autotinybert", "arch_sampling"), ids=str)
def test_a_seed_draws_the_architecture_of_the_original(case):
    supernet = CompactBertConfig(num_hidden_layers=8)
    for i, row in enumerate(case.value("rows")):
        for flavour, space in SPACES.items():
            drawn = space().sample(supernet, Random(row["seed"]))
            layers = {
                "sample_intermediate_sizes": "intermediate_size",
                "sample_num_attention_heads": "num_attention_heads",
                "sample_qkv_sizes": "qkv_size",
            }
            text = {"sample_layer_num": drawn.num_hidden_layers, "sample_hidden_size": drawn.hidden_size}
            text |= {theirs: drawn.per_layer(ours) for theirs, ours in layers.items()}
            case.check_value("rows", i, flavour, got=text)
