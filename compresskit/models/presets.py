"""Published architectures by name, as layers, hidden_size, intermediate_size, heads and qkv_size.

Source of AutoTinyBERT's and its baselines': the released latency_predictor.py and README; of EfficientBERT's: README.
"""

from __future__ import annotations

import difflib
from typing import Any

from compresskit.models import feed_forward
from compresskit.models.config import CompactBertConfig

EFFICIENTBERT = (  # the formulas that EfficientBERT's three stages found, one per layer
    "tanh(linear4_2(gelu(linear4_2(x,wb1)),wb2))",
    "elu(linear2_1(gelu(linear2_1(x,wb1)),wb2))",
    "sigmoid(linear1_2(relu(linear1_2(x,wb1)),wb2))",
    "linear2_2(gelu(linear2_2(max(x,tanh(x)),wb1)),wb2)",
    "linear1_2(relu(mul(linear1_2(x,wb1),x)),wb2)",
    "leaky_relu(linear2_3(gelu(linear2_3(x,wb1)),wb2))",
)
# What its networks differ in from BERT beside their sizes; the activation is that of a masked-LM head.
TRIGRAM = {
    "embedding": "trigram",
    "embedding_size": 128,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-5,
    "feed_forward": list(EFFICIENTBERT),
}

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
    "efficientbert-tiny": (6, 360, 360, 12, 360),
    "efficientbert": (6, 540, 540, 12, 540),
    "efficientbert-plus": (6, 540, 540, 12, 540),  # the same network, trained otherwise
    "efficientbert-plusplus": (12, 360, 360, 12, 360),
    "efficientbert-tinybert6": (6, 768, 3072, 12, 768),
    "efficientbert-supernet": (6, 540, 540, 12, 540),
}
FIELDS: dict[str, dict[str, Any]] = {
    "efficientbert-tiny": TRIGRAM,
    "efficientbert": TRIGRAM,
    "efficientbert-plus": TRIGRAM,
    "efficientbert-plusplus": {**TRIGRAM, "feed_forward": [text for text in EFFICIENTBERT for _ in range(2)]},
    "efficientbert-tinybert6": {
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-5,
        "feed_forward": list(EFFICIENTBERT),
        "feed_forward_width": "max",
    },
    "efficientbert-supernet": {**TRIGRAM, "feed_forward": [str(feed_forward.plain(4))] * 6},
}
SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "qkv_size")


def config(name: str, **changes: Any) -> CompactBertConfig:
    """A preset as a config with BERT's vocabulary of 30522; `changes` replace fields. With fewer layers the formulas
    are those of the leading ones. Raises as `sizes` does.
    """
    fields = sizes(name)
    if "feed_forward" in fields:
        fields["feed_forward"] = fields["feed_forward"][: changes.get("num_hidden_layers")]
    return CompactBertConfig(**{**fields, **changes})


def sizes(name: str) -> dict[str, Any]:
    """The sizes of a preset by their fields, and what else its network has.

    Raises ValueError for an unknown name, with those that are near.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name.lower(), PRESETS, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(PRESETS)}"
        raise ValueError(f"no preset is called {name!r}; {hint}")
    return {**dict(zip(SIZES, PRESETS[name], strict=True)), **FIELDS.get(name, {})}


def notation(config: CompactBertConfig) -> str:
    """The sizes as they are written above: 5-564-1054-8-512."""
    return "-".join(str(config.brief(name)) for name in SIZES)
