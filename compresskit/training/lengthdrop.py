"""LengthDrop: one model learns to answer at any length (Length-Adaptive Transformer, sections 3.2 and 3.3).

Each step runs the whole model and several sub-models, which drop tokens (LengthDrop) and layers (LayerDrop); the whole
one learns the task, the others to answer as it does (the sandwich rule). Each forward pass has its own backward pass.

Letters: B batch, S sequence, C classes, n sub-models drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.training import distributed
from compresskit.training.distill import inputs
from compresskit.training.loop import Batch, Pieces

SHORTEST = 2  # tokens: no layer keeps fewer


class Draws(Protocol):
    """What sub-models are drawn with: numpy's `RandomState`, or its module `random`, of which the original makes use."""

    def randint(self, low: int, high: int) -> int:
        """A whole number from low to high − 1."""

    def uniform(self) -> float:
        """A number from 0 to 1, 1 excluded."""

    def binomial(self, n: int, p: float) -> int:
        """Successes of n trials."""


class SubModel(NamedTuple):
    """A part of the model: the layers that run and, None for all, the tokens that each layer keeps."""

    layers: list[int]
    lengths: list[int] | None


def fixed_lengths(seq_len: int, num_layers: int, ratio: float, layers: list[int] | None = None) -> list[int]:
    """Lengths that fall by the same ratio ρ in each layer: l ← max(⌈l(1−ρ)⌉, 2), from l = seq_len.

    layers: those that run; the others repeat the length before them. None: all.
    """
    return _lengths(seq_len, num_layers, lambda length: _shortened(length, ratio), layers)


def drawn_lengths(
    seq_len: int, num_layers: int, ratio: float, draws: Draws, layers: list[int] | None = None
) -> list[int]:
    """Lengths at random, each uniform in ⌈l(1−ρ)⌉ … l of the length l before it, and at least 2."""
    return _lengths(seq_len, num_layers, lambda l: int(draws.randint(_shortened(l, ratio), l + 1)), layers)


def binomial_lengths(seq_len: int, num_layers: int, probability: float, draws: Draws) -> list[int]:
    """Lengths at random, each token dropped by itself: l ← max(l − Bin(l, p), 2)."""
    return _lengths(seq_len, num_layers, lambda l: l - int(draws.binomial(l, probability)), None)


def drawn_layers(num_layers: int, probability: float, draws: Draws) -> list[int]:
    """LayerDrop (Fan et al. 2019): each layer is left out with this probability; there may be none left."""
    return [layer for layer in range(num_layers) if not draws.uniform() < probability]


def lower_layers(num_layers: int, dropped: int) -> list[int]:
    """All layers but so many at the top; the first one stays."""
    return list(range(num_layers - min(dropped, num_layers - 1)))


def drawn_lower_layers(num_layers: int, bound: int, draws: Draws) -> list[int]:
    """All layers but a number at the top that is uniform in 0 … bound; the first one stays."""
    return lower_layers(num_layers, int(draws.randint(0, min(bound, num_layers - 1) + 1)))


def _shortened(length: int, ratio: float) -> int:
    return math.ceil(length * (1 - ratio))  # in float64, as published configurations were made


def _lengths(seq_len: int, num_layers: int, next_length: Callable[[int], int], layers: list[int] | None) -> list[int]:
    made, length = [], seq_len
    for layer in range(num_layers):
        if layers is None or layer in layers:
            length = max(next_length(length), SHORTEST)
        made.append(length)
    return made


def sub_models(
    seq_len: int,
    num_layers: int,
    draws: Draws,
    *,
    num_sandwich: int,
    length_ratio: float,
    layer_probability: float | None,
    layer_bound: int,
) -> list[SubModel]:
    """What runs in one step: the whole model, the smallest and `num_sandwich` at random, drawn in the original's order.

    layer_probability: see `drawn_layers`, for every one of them, the whole included. None: the whole model has all
    layers, the smallest lacks `layer_bound` at the top and the others at most so many.
    """

    def layers(smallest: bool, whole: bool) -> list[int]:
        if layer_probability is not None:
            return drawn_layers(num_layers, layer_probability, draws)
        if whole:
            return lower_layers(num_layers, 0)
        return lower_layers(num_layers, layer_bound) if smallest else drawn_lower_layers(num_layers, layer_bound, draws)

    made = [SubModel(layers(smallest=False, whole=True), None)]
    for number in range(num_sandwich + 1):
        running = layers(smallest=number == 0, whole=False)
        if number == 0:
            kept = fixed_lengths(seq_len, num_layers, length_ratio, running)
        else:
            kept = drawn_lengths(seq_len, num_layers, length_ratio, draws, running)
        made.append(SubModel(running, kept))
    return made


def divergence(sub_logits: Tensor, full_logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """How far a sub-model's answers are from the whole model's:

        KL = 1/B Σ_b Σ_j q_bj·(log q_bj − log p_bj),   q = softmax(sub), p = softmax(full)

    The gradient flows through q, the sub-model, only. sub_logits, full_logits: (B, C) or (B, S); mask: (B, S), 1 where
    a position takes part in both softmaxes; None: all do.  Returns a scalar.
    """
    if mask is not None:
        sub_logits, full_logits = (
            logits.masked_fill(mask == 0, torch.finfo(logits.dtype).min) for logits in (sub_logits, full_logits)
        )
    log_p = F.log_softmax(full_logits.detach(), dim=-1)
    return F.kl_div(log_p, F.log_softmax(sub_logits, dim=-1), log_target=True, reduction="batchmean")


def same_answers(sub: Any, full: Any, batch: Batch, padded: bool) -> Tensor:
    """`divergence` of two outputs: of the class logits, or the mean of those of start and end.

    padded: padding takes part in the softmax over positions, as in the original.
    """
    if "start_logits" not in full:
        return divergence(sub.logits, full.logits)
    mask = None if padded else batch["attention_mask"]
    start, end = (divergence(sub[name], full[name], mask) for name in ("start_logits", "end_logits"))
    return (start + end) / 2


def lengthdrop(
    model: PreTrainedModel,
    answers: Callable[[Any, Batch], Tensor],
    *,
    max_seq_len: int,
    num_sandwich: int = 2,
    length_ratio: float = 0.2,
    layer_probability: float | None = None,
    layer_bound: int = 0,
    draws: Callable[[int], Draws],
    faithful: bool = False,
) -> Pieces:
    """Losses of one forward pass after the other, of which each is 1/(n + 2) of the step.

    answers: the whole model's loss, of its output and the batch, such as `supervised` or `taught`. draws: of a step,
    what its sub-models are drawn with. Lengths start at the batch's own, `faithful` at max_seq_len; with `faithful`
    padding takes part in every softmax over positions and in what tokens are dropped by, and layers may all be left out;
    else one is then kept at random, for a model without layers learns nothing.
    """
    layers = model.config.num_hidden_layers

    def losses(batch: Batch, step: int) -> Iterator[dict[str, Tensor]]:
        drawn = sub_models(
            max_seq_len if faithful else batch["input_ids"].shape[1],
            layers,
            draws(step),
            num_sandwich=num_sandwich,
            length_ratio=length_ratio,
            layer_probability=layer_probability,
            layer_bound=layer_bound,
        )
        share = 1 / len(drawn)

        def output(part: SubModel) -> Any:
            options = {"padded_queries": True} if faithful else {}
            return model(
                **inputs(batch), length_config=part.lengths or (), layer_config=part.layers, **options
            )

        full = output(drawn[0])
        loss = answers(full, batch)
        yield {"loss": loss * share, "full_loss": loss.detach()}
        for number, part in enumerate(drawn[1:]):
            distance = same_answers(output(part), full, batch, faithful)
            kind = "smallest_divergence" if number == 0 else "divergence"
            yield {"loss": distance * share, kind: distance.detach() * (1 if number == 0 else 1 / num_sandwich)}

    return losses
