"""Floating-point operations of one example, from the config alone: a multiply-add is two.

Matrix products only, as PyTorch's FlopCounterMode counts them with eager attention (its counter does not see the
products inside fused attention on the CPU); biases, normalisations, activations and softmax are left out.

S seq_len, H hidden_size, Q qkv_size, F intermediate_size, V vocabulary, C classes; per layer
    2·S·(3·H·Q + Q·H + 2·H·F)   query, key, value, output, feed-forward
  + 2·2·S²·Q                    attention scores, and probabilities times values, all heads together
where a layer with a formula counts as F the inner widths of all its feed-forwards together. A trigram embedding over
word vectors of size E adds 2·S·3·E·H, and the masked-LM head then decodes from E.
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
    hidden = config.hidden_size
    words = getattr(config, "embedding_size", None)  # of a trigram embedding; None: BERT's, which multiplies nothing
    total = sum(
        2 * seq_len * (4 * hidden * qkv + 2 * hidden * wide) + 4 * seq_len**2 * qkv
        for qkv, wide in zip(_per_layer(config, "qkv_size"), _feed_forward_widths(config), strict=True)
    )
    if words is not None:
        total += 2 * seq_len * 3 * words * hidden
    if head in ("pooler", "sequence_classification", "next_sentence", "pretraining"):
        total += 2 * hidden * hidden
    if head == "sequence_classification":
        total += 2 * hidden * config.num_labels
    if head == "question_answering":
        total += 2 * seq_len * hidden * 2
    if head in ("next_sentence", "pretraining"):
        total += 2 * hidden * 2
    if head in ("masked_lm", "pretraining"):
        total += 2 * seq_len * (words or hidden) * (hidden + config.vocab_size)
    return total


def _feed_forward_widths(config: Any) -> list[int]:
    """Of all feed-forwards of a layer together: a formula maps once to its inner width and once back."""
    if hasattr(config, "feed_forward_sizes"):
        return [stack * inner for stack, inner in config.feed_forward_sizes()]
    return _per_layer(config, "intermediate_size")


def _per_layer(config: Any, name: str) -> list[int]:
    if hasattr(config, "per_layer"):
        return config.per_layer(name)
    return [getattr(config, name, config.hidden_size)] * config.num_hidden_layers  # BertConfig has no qkv_size
