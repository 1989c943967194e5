"""Published architectures by name, as layers, hidden_size, intermediate_size, heads and qkv_size.

Source of AutoTinyBERT's and its baselines': the released latency_predictor.py and README.
"""

from __future__ import annotations

import difflib
from typing import Any

from compresskit.models.config import CompactBertConfig

PRESETS: dict[str, tuple[int, int, int, int, int]] = {
    "bert-base": (12, 768, 3072, 12, 768),
    "superbert": (8, 768, 3072, 12, 768),  # the search goes to 8 layers
    "autotinybert-s1": (5, 564, 1054, 8, 512),
    "autotinybert-s2": (4, 396, 624, 6, 384),
    "autotinybert-s3": (4, 432, 384, 4, 256),
    "autotinybert-s4": (3, 320, 608, 4, 256),
    "autotinybert-kd-s1": (5, 564, 1024, 12, 528),
    "autotinybert-kd-s2": (5, 324, 600, 12, 324),
    "autotinybert-kd-s3": (5, 280, 512, 12, 276),
    "autotinybert-kd-s4": (4, 256, 480, 12, 192),
    "bert-4-512": (4, 512, 2048, 8, 512),  # the baselines that S1 to S4 are compared with
    "bert-4-320": (4, 320, 1280, 5, 320),
    "bert-4-256": (4, 256, 1024, 4, 256),
    "bert-4-192": (4, 192, 768, 3, 192),
    "bert-kd-4-512": (4, 512, 2048, 12, 516),  # and KD-S1 to KD-S4
    "bert-kd-4-312": (4, 312, 1200, 12, 312),
    "bert-kd-4-264": (4, 264, 1056, 12, 264),
    "bert-kd-4-192": (4, 192, 768, 12, 192),
    "tinybert-4": (4, 312, 1200, 12, 312),
    "tinybert-6": (6, 768, 3072, 12, 768),
}
SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "qkv_size")


def config(name: str, **changes: Any) -> CompactBertConfig:
    """A preset as a config with BERT's vocabulary of 30522; `changes` replace fields. Raises as `sizes` does."""
    return CompactBertConfig(**{**sizes(name), **changes})


def sizes(name: str) -> dict[str, int]:
    """The sizes of a preset by their fields.  Raises ValueError for an unknown name, with those that are near."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name.lower(), PRESETS, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(PRESETS)}"
        raise ValueError(f"no preset is called {name!r}; {hint}")
    return dict(zip(SIZES, PRESETS[name], strict=True))


def notation(config: CompactBertConfig) -> str:
    """The sizes as they are written above: 5-564-1054-8-512."""
    return "-".join(str(config.brief(name)) for name in SIZES)
