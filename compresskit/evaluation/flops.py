"""Floating-point operations of one example, from the config alone: a multiply-add is two.

Matrix products only, as PyTorch's FlopCounterMode counts them with eager attention (its counter does not see the
products inside fused attention on the CPU); biases, normalisations, activations and softmax are left out.

S seq_len, H hidden_size, Q qkv_size, F intermediate_size, V vocabulary, C classes; per layer
    2·S·(3·H·Q + Q·H + 2·H·F)   query, key, value, output, feed-forward
  + 2·2·S²·Q                    attention scores, and probabilities times values, all heads together
"""

from typing import Any, Literal, get_args

Head = Literal[
    "encoder",
    "pooler",
    "sequence_classification",
    "question_answering",
    "masked_lm",
    "next_sentence",
    "pretraining",
]


def flops(config: Any, seq_len: int, head: Head = "sequence_classification") -> int:
    """Operations for one sequence of `seq_len` tokens through the encoder and `head`.

    config: CompactBertConfig, also with other sizes in each layer, or transformers' BertConfig. head: "encoder" stops
    at the last layer, "pooler" after the pooled first token; "masked_lm" and "pretraining" decode every position.
    """
    if head not in get_args(Head):
        raise ValueError(f"unknown head {head!r}; known heads: {', '.join(get_args(Head))}")
    if seq_len < 1:
        raise ValueError(f"seq_len is a number of tokens, at least 1, not {seq_len}")
    for name, plain in (("feed_forward", None), ("embedding", "bert")):
        if getattr(config, name, plain) != plain:
            raise ValueError(f"no formula counts the operations of {name} {getattr(config, name)!r}, only of {plain!r}")
    hidden = config.hidden_size
    total = sum(
        2 * seq_len * (4 * hidden * qkv + 2 * hidden * wide) + 4 * seq_len**2 * qkv
        for qkv, wide in zip(_per_layer(config, "qkv_size"), _per_layer(config, "intermediate_size"), strict=True)
    )
    if head in ("pooler", "sequence_classification", "next_sentence", "pretraining"):
        total += 2 * hidden * hidden
    if head == "sequence_classification":
        total += 2 * hidden * config.num_labels
    if head == "question_answering":
        total += 2 * seq_len * hidden * 2
    if head in ("next_sentence", "pretraining"):
        total += 2 * hidden * 2
    if head in ("masked_lm", "pretraining"):
        total += 2 * seq_len * (hidden * hidden + hidden * config.vocab_size)
    return total


def _per_layer(config: Any, name: str) -> list[int]:
    if hasattr(config, "per_layer"):
        return config.per_layer(name)
    return [getattr(config, name, config.hidden_size)] * config.num_hidden_layers  # BertConfig has no qkv_size
