"""Floating-point operations of one example, from the config alone: a multiply-add is two.

Matrix products only, as PyTorch's FlopCounterMode counts them with eager attention (its counter does not see the
products inside fused attention on the CPU); biases, normalisations, activations and softmax are left out.

S seq_len, H hidden_size, Q qkv_size, F intermediate_size, V vocabulary, C classes; per layer, which holds S tokens and
keeps K of them (all, where nothing is dropped),
    2·S·(3·H·Q + Q·H)   query, key, value, output
  + 2·2·S²·Q            attention scores, and probabilities times values, all heads together
  + 2·K·2·H·F           feed-forward
where a layer with a formula counts as F the inner widths of all its feed-forwards together. A trigram embedding over
word vectors of size E adds 2·S·3·E·H, and the masked-LM head then decodes from E.

`macs` counts what torchprofile does, which the length-adaptive papers report: a multiply-add is one, normalisations and
the product with the embeddings' mask are multiply-adds, too.
"""

import math
from collections.abc import Sequence
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


def flops(
    config: Any,
    seq_len: int,
    head: Head = "sequence_classification",
    length_config: Sequence[int] | Sequence[float] | None = None,
) -> int:
    """Operations for one sequence of `seq_len` tokens through the encoder and `head`.

    config: CompactBertConfig, also with other sizes in each layer, or transformers' BertConfig. head: "encoder" stops
    at the last layer, "pooler" after the pooled first token; "masked_lm" and "pretraining" decode every position.
    length_config: tokens that each layer keeps, as the model takes them; None: the config's own, if it has any.
    """
    if head not in get_args(Head):
        raise ValueError(f"unknown head {head!r}; known heads: {', '.join(get_args(Head))}")
    hidden = config.hidden_size
    words = getattr(config, "embedding_size", None)  # of a trigram embedding; None: BERT's, which multiplies nothing
    total = sum(
        2 * held * 4 * hidden * qkv + 4 * held**2 * qkv + 2 * kept * 2 * hidden * wide
        for held, kept, qkv, wide in _layers(config, seq_len, length_config)
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


def macs(
    config: Any,
    seq_len: int,
    head: Literal["question_answering", "sequence_classification"],
    length_config: Sequence[int] | Sequence[float] | None = None,
) -> int:
    """Multiply-adds for one sequence as torchprofile counts them, with l_0 = T tokens and l_i kept by layer i:

        T·H + T + Σ_i (4·l_{i-1}·H·Q + 2·l_{i-1}²·Q + l_{i-1}·H + 2·l_i·H·F + l_i·H) + head

    head: 2·T·H for questions, H² + H·C for classes. Each feed-forward of a formula has a norm, l_i·H; the rest as in
    `flops`.
    """
    hidden = config.hidden_size
    total = seq_len * hidden + seq_len + seq_len * 3 * (getattr(config, "embedding_size", None) or 0) * hidden
    for (held, kept, qkv, wide), (stack, _) in zip(
        _layers(config, seq_len, length_config), _feed_forwards(config), strict=True
    ):
        total += 4 * held * hidden * qkv + 2 * held**2 * qkv + held * hidden
        total += 2 * kept * hidden * wide + stack * kept * hidden
    if head == "question_answering":
        return total + 2 * seq_len * hidden
    return total + hidden**2 + hidden * config.num_labels


def _layers(
    config: Any, seq_len: int, length_config: Sequence[int] | Sequence[float] | None
) -> list[tuple[int, int, int, int]]:
    """Of each layer: tokens in its attention, tokens in its feed-forwards, qkv_size, width of the feed-forwards."""
    if seq_len < 1:
        raise ValueError(f"seq_len is a number of tokens, at least 1, not {seq_len}")
    lengths = getattr(config, "length_config", None) if length_config is None else length_config
    kept = [min(seq_len, n if isinstance(n, int) else math.ceil(n * seq_len - 1e-9)) for n in lengths or ()]
    kept = kept or [seq_len] * config.num_hidden_layers
    widths = _per_layer(config, "qkv_size"), [stack * inner for stack, inner in _feed_forwards(config)]
    return list(zip([seq_len, *kept[:-1]], kept, *widths, strict=True))


def _feed_forwards(config: Any) -> list[tuple[int, int]]:
    """Of each layer, how many feed-forwards it has and how wide each is inside: it maps once to there and once back."""
    if hasattr(config, "feed_forward_sizes"):
        return config.feed_forward_sizes()
    return [(1, width) for width in _per_layer(config, "intermediate_size")]


def _per_layer(config: Any, name: str) -> list[int]:
    if hasattr(config, "per_layer"):
        return config.per_layer(name)
    return [getattr(config, name, config.hidden_size)] * config.num_hidden_layers  # BertConfig has no qkv_size
