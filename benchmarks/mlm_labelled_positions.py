"""A masked-LM step with the decoder on the labelled 15 % of the positions only, against decoding every position:

    python -m benchmarks.mlm_labelled_positions

TinyBERT-4, 32 x 128 tokens, forward and backward, products as a training run on this machine has them; transformers'
eager model stands beside it to show that the full decoder here is no slower than usual.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from benchmarks.float32_matmul import EAGER, TINYBERT_4
from benchmarks.harness import Goal, Timing, as_float64, measure, publish, ratios
from compresskit.kernels.float32 import choose_float32_matmul
from compresskit.models import CompactBertConfig, CompactBertForMaskedLM
from compresskit.models.heads import labelled_loss

SHAPE = "TinyBERT-4, 32 x 128"
GOALS = {
    f"labelled positions {SHAPE}": Goal(floor=2.3, aim=2.6),
    f"transformers, every position {SHAPE}": Goal(at_most=1.1, aim=1.0),  # the peer is no more than 10 % slower
}

Step = Callable[[Tensor, Tensor], list[Tensor]]


def every_position(model: Any) -> Step:
    """Decode all positions; the loss ignores those without a label."""
    return _step(model, lambda input_ids, labels: model(input_ids, labels=labels).loss)


def labelled_positions(model: Any) -> Step:
    """Decode the labelled positions only."""

    def loss(input_ids: Tensor, labels: Tensor) -> Tensor:
        return labelled_loss(model.cls.predictions, model.bert(input_ids).last_hidden_state, labels)

    return _step(model, loss)


def _step(model: Any, loss_of: Callable[[Tensor, Tensor], Tensor]) -> Step:
    def step(input_ids: Tensor, labels: Tensor) -> list[Tensor]:
        """input_ids, labels: (B, S).  Returns the loss and one of the gradients."""
        model.zero_grad(set_to_none=True)
        loss = loss_of(input_ids, labels)
        loss.backward()
        return [loss, model.cls.predictions.transform.dense.weight.grad]

    return step


def models() -> tuple[CompactBertForMaskedLM, BertForMaskedLM]:
    """TinyBERT-4 with random weights, and transformers' eager model with the same."""
    torch.manual_seed(0)
    ours = CompactBertForMaskedLM(CompactBertConfig(**TINYBERT_4))
    theirs = BertForMaskedLM(BertConfig(**EAGER))
    theirs.load_state_dict(ours.state_dict())
    return ours.eval(), theirs.eval()


def race() -> tuple[list[Timing], dict[str, float]]:
    """Timings, and the measures by name."""
    ours, theirs = models()
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 30522, (32, 128), generator=generator)
    labels = torch.where(torch.rand(ids.shape, generator=generator) < 0.15, ids, -100)
    timings = measure(
        {
            "every position": every_position(ours),
            "labelled positions": labelled_positions(ours),
            "transformers, every position": every_position(theirs),
        },
        {SHAPE: [ids, labels]},
        baseline="every position",
        reference=every_position(as_float64(ours)),
        max_error=(1e-6, 1e-5),  # of the loss, of the gradient
    )
    return timings, ratios(timings, "every position")


if __name__ == "__main__":
    choice = choose_float32_matmul()
    timings, measures = race()
    publish("mlm_labelled_positions", timings, measures, GOALS, notes={"matmul": asdict(choice)})
