"""AutoTinyBERT's fast rule, on the published architectures and at its borders."""

from __future__ import annotations

import pytest

from compresskit.models import CompactBertConfig
from compresskit.search.select import obeys_fast_rule
from compresskit.search.spaces import columns_of


@pytest.mark.parametrize(
    ("hidden", "wide", "qkv", "obeys"),
    [
        (564, 1054, 512, True),  # AutoTinyBERT's S1 and KD models obey, S2 and S3 do not
        (396, 624, 384, False),
        (432, 384, 256, False),
        (320, 608, 256, True),
        (324, 600, 324, True),
        (280, 512, 276, True),
        (256, 480, 192, True),
        (100, 160, 70, True),  # the borders belong to it
        (100, 190, 100, True),
        (100, 159, 70, False),
        (100, 191, 70, False),
        (100, 160, 69, False),
        (100, 160, 101, False),
    ],
)
def test_the_fast_rule_is_autotinyberts(hidden, wide, qkv, obeys):
    config = CompactBertConfig(hidden_size=hidden, intermediate_size=wide, qkv_size=qkv, num_attention_heads=1)
    assert obeys_fast_rule(columns_of([config])).tolist() == [obeys]
