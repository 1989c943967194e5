"""Attention of one pair of layers with its distillation loss, forward and backward, by maps and as it is trained:

    python -m benchmarks.score_mse

TinyBERT-4's heads (12 x 26) learn from BERT-base's (12 x 64). By maps: softmax attention of both, and the mean square
of the difference of the scores, masked keys left out. As trained (training/distill.py): up to KEPT_MAPS tokens maps
too, with a loss of fewer passes over them; above, fused attention (kernels/attention.py) and the loss by Gram matrices.
Dropout is 0, products are as a training run on this machine has them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Goal, Timing, measure, publish, ratios
from compresskit.kernels import attention
from compresskit.kernels.float32 import choose_float32_matmul
from compresskit.kernels.score_mse import score_mse
from compresskit.training.distill import KEPT_MAPS
from compresskit.training.losses import attention_map_mse

SHAPES = {64: 32, 128: 16, 384: 8, 512: 4}  # sequence length: batch
GOALS = {
    "attention loss S=64": Goal(floor=0.95, aim=1.1),
    "attention loss S=128": Goal(floor=0.95, aim=1.1),
    "attention loss S=384": Goal(floor=3.3, aim=4.0),
    "attention loss S=512": Goal(floor=3.8, aim=4.5),
}


def inputs(seq_len: int) -> list[Tensor]:
    """Queries, keys and values of student and teacher, and the attention mask."""
    generator = torch.Generator().manual_seed(seq_len)
    batch = SHAPES[seq_len]
    states = [
        torch.randn(batch, seq_len, 12, width, generator=generator).transpose(1, 2).requires_grad_(width == 26)
        for width in (26, 26, 26, 64, 64, 64)
    ]
    lengths = torch.linspace(seq_len, seq_len // 2, batch).long()
    return [*states, (torch.arange(seq_len) < lengths[:, None]).long()]


def by_definition(student: Tensor, teacher: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean square of the difference of two maps, scores of masked keys set to 0 before."""
    ours, theirs = (scores.masked_fill(scores <= -100, 0.0) for scores in (student, teacher))
    return F.mse_loss(ours, theirs)


def on_kept_maps(student: Tensor, teacher: Tensor, attention_mask: Tensor) -> Tensor:
    """The loss that `distill` takes at short lengths."""
    return attention_map_mse([student], [teacher], [0, 1], attention_mask, padded_queries=True)


def maps(
    q_s: Tensor,
    k_s: Tensor,
    v_s: Tensor,
    q_t: Tensor,
    k_t: Tensor,
    v_t: Tensor,
    attention_mask: Tensor,
    with_loss: Callable[[Tensor, Tensor, Tensor], Tensor] = by_definition,
) -> list[Tensor]:
    """Scores of both models, kept.  Returns loss, contexts and gradients of the student's queries and keys."""
    mask = (1 - attention_mask[:, None, None, :].to(q_s.dtype)) * -10000.0
    scores, contexts = [], []
    for query, key, value in ((q_s, k_s, v_s), (q_t, k_t, v_t)):
        score = query @ key.mT * query.shape[-1] ** -0.5 + mask
        contexts.append(score.softmax(-1) @ value)
        scores.append(score)
    return _finished(with_loss(scores[0], scores[1], attention_mask), contexts, q_s, k_s)


def as_trained(
    q_s: Tensor, k_s: Tensor, v_s: Tensor, q_t: Tensor, k_t: Tensor, v_t: Tensor, attention_mask: Tensor
) -> list[Tensor]:
    """The same as a step of the distillation computes it."""
    if q_s.shape[2] <= KEPT_MAPS:  # training then keeps the maps too
        return maps(q_s, k_s, v_s, q_t, k_t, v_t, attention_mask, with_loss=on_kept_maps)
    mask = (1 - attention_mask[:, None, None, :].to(q_s.dtype)) * torch.finfo(q_s.dtype).min
    contexts = [attention.fused(*states, mask) for states in ((q_s, k_s, v_s), (q_t, k_t, v_t))]
    loss = score_mse(q_s, k_s, q_t, k_t, attention_mask, padded_queries=True)
    return _finished(loss, contexts, q_s, k_s)


def _finished(loss: Tensor, contexts: list[Tensor], q_s: Tensor, k_s: Tensor) -> list[Tensor]:
    gradients = torch.autograd.grad(loss + contexts[0].mean(), (q_s, k_s))
    return [loss, contexts[0], contexts[1], *gradients]


def race() -> tuple[list[Timing], dict[str, float]]:
    """Timings, and the measures by name."""
    timings = measure(
        {"maps": maps, "as trained": as_trained},
        {f"S={seq_len}": inputs(seq_len) for seq_len in SHAPES},
        baseline="maps",
        max_error=1e-5,
    )
    return timings, {
        name.replace("as trained", "attention loss"): ratio for name, ratio in ratios(timings, "maps").items()
    }


if __name__ == "__main__":
    choice = choose_float32_matmul()
    timings, measures = race()
    publish("score_mse", timings, measures, GOALS, notes={"matmul": asdict(choice)})
