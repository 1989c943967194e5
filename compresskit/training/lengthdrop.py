"""LengthDrop: one model learns to answer at any length (Length-Adaptive Transformer, sections 3.2 and 3.3).

Each step runs the whole model and several sub-models, which drop tokens (LengthDrop) and layers (LayerDrop); the whole
one learns the task, the others to answer as it does (the sandwich rule). Each forward pass has its own backward pass.

Letters: B batch, S sequence, C classes, n sub-models drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.training.distill import inputs
from compresskit.training.loop import Batch, Pieces

SHORTEST = 2  # tokens: no layer keeps fewer


class Draws(Protocol):
    """What sub-models are drawn with: numpy's `RandomState`, of which the original uses the global one."""

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


def binomial_lengths(
    seq_len: int, num_layers: int, probability: float, draws: Draws, layers: list[int] | None = None
) -> list[int]:
    """Lengths at random, each token dropped by itself: l ← max(l − Bin(l, p), 2)."""
    return _lengths(seq_len, num_layers, lambda l: l - int(draws.binomial(l, probability)), layers)


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


@dataclass(frozen=True)
class Sandwich:
    """How the sub-models of a step are drawn.

    num_random: how many there are beside the whole one and the smallest. length_ratio: ρ of their lengths.
    length_probability: draw them as `binomial_lengths` does; None: as `drawn_lengths`. layer_probability: as in
    `drawn_layers`, for every one of them, the whole included; None: the whole has all layers, the smallest lacks
    `layer_bound` at the top and the others at most so many. maybe_no_layers: where LayerDrop leaves none, leave it so,
    as the original; else one is drawn.
    """

    num_random: int = 2
    length_ratio: float = 0.2
    length_probability: float | None = None
    layer_probability: float | None = None
    layer_bound: int = 0
    maybe_no_layers: bool = False

    def draw(self, seq_len: int, num_layers: int, draws: Draws) -> list[SubModel]:
        """The whole model, the smallest, and those at random; of each its layers are drawn before its lengths."""
        made = [SubModel(self._layers(num_layers, draws, lambda: lower_layers(num_layers, 0)), None)]
        layers = self._layers(num_layers, draws, lambda: lower_layers(num_layers, self.layer_bound))
        made.append(SubModel(layers, fixed_lengths(seq_len, num_layers, self.length_ratio, layers)))
        for _ in range(self.num_random):
            layers = self._layers(num_layers, draws, lambda: drawn_lower_layers(num_layers, self.layer_bound, draws))
            if self.length_probability is None:
                lengths = drawn_lengths(seq_len, num_layers, self.length_ratio, draws, layers)
            else:
                lengths = binomial_lengths(seq_len, num_layers, self.length_probability, draws, layers)
            made.append(SubModel(layers, lengths))
        return made

    def _layers(self, num_layers: int, draws: Draws, by_bound: Callable[[], list[int]]) -> list[int]:
        if self.layer_probability is None:
            return by_bound()
        layers = drawn_layers(num_layers, self.layer_probability, draws)
        return layers or ([] if self.maybe_no_layers else [int(draws.randint(0, num_layers))])


def seeded(seed: int, step: int) -> Draws:
    """What the sub-models of a step are drawn with: a function of seed and step, so that a resumed run repeats them."""
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, step])))


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
    """`divergence` of two outputs: of the class logits, or the mean of those of start and end; of grades the squared
    difference.

    padded: padding takes part in the softmax over positions, as in the original.
    """
    if "start_logits" not in full:
        grades = full.logits.shape[-1] == 1
        return F.mse_loss(sub.logits, full.logits.detach()) if grades else divergence(sub.logits, full.logits)
    mask = None if padded else batch["attention_mask"]
    start, end = (divergence(sub[name], full[name], mask) for name in ("start_logits", "end_logits"))
    return (start + end) / 2


def supervised(output: Any, batch: Batch) -> Tensor:
    """The whole model's loss on the labels."""
    return output.loss


def taught(
    teacher: PreTrainedModel, answers: Callable[[Any, Any, Batch, float], Tensor], temperature: float = 1.0
) -> Callable[[Any, Batch], Tensor]:
    """The whole model's loss on a teacher's answers: `distill.label_answers`, `distill_spans.span_answers`, …"""
    teacher.eval()

    def loss(output: Any, batch: Batch) -> Tensor:
        with torch.no_grad():
            target = teacher(**inputs(batch))
        return answers(output, target, batch, temperature)

    return loss


def lengthdrop(
    model: PreTrainedModel,
    answers: Callable[[Any, Batch], Tensor],
    sandwich: Sandwich,
    draws: Callable[[int], Draws],
    padded: bool = False,
) -> Pieces:
    """Losses of one forward pass after the other, each of them a share of 1/(n + 2) of the step's.

    answers: the whole model's loss, `supervised` or `taught`. draws: of a step, what its sub-models are drawn with.
    Lengths start at that of the batch. padded: padding takes part in the softmax over positions and its attention in
    what is dropped, as in the original.
    """
    options = {"padded_queries": True} if padded else {}

    def losses(batch: Batch, step: int) -> Iterator[dict[str, Tensor]]:
        parts = sandwich.draw(batch["input_ids"].shape[1], model.config.num_hidden_layers, draws(step))
        full = model(**batch, length_config=(), layer_config=parts[0].layers, **options)
        loss = answers(full, batch)
        yield {"loss": loss / len(parts), "full_loss": loss.detach()}
        for part in parts[1:]:
            sub = model(**inputs(batch), length_config=part.lengths, layer_config=part.layers, **options)
            distance = same_answers(sub, full, batch, padded)
            yield {"loss": distance / len(parts), "divergence": distance.detach() / (len(parts) - 1)}

    return losses
