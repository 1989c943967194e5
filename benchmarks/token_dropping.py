"""Time of a model that drops tokens against the same model at full length:

    python -m benchmarks.token_dropping [--batch 1 --batch 8]

BERT-base's shape with a head for questions, 384 tokens, none of them padding, without gradients. `half`: lengths that
fall by the same ratio in each layer, down to half the multiply-adds. `one each`: every layer drops one token, which
costs what dropping costs and saves nearly nothing. `full`: full lengths through the length-adaptive path.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated

import torch
import typer
from torch import Tensor

from benchmarks.harness import MIN_ROUNDS, Goal, measure, publish, ratios
from compresskit.evaluation.flops import macs
from compresskit.evaluation.latency import random_batch
from compresskit.kernels.float32 import choose_float32_matmul
from compresskit.models import CompactBertConfig, CompactBertForQuestionAnswering

SEQ_LEN = 384
SPEEDUP = {"half": Goal(floor=1.7, aim=1.9), "one each": Goal(floor=1 / 1.2, aim=1 / 1.1),
           "full": Goal(floor=1 / 1.05, aim=1.0)}  # fmt: skip


def lengths_at(ratio: float, layers: int) -> list[int]:
    """Lengths that fall by `ratio` in each layer."""
    made, length = [], SEQ_LEN
    for _ in range(layers):
        length = max(2, math.ceil(length * (1 - ratio)))
        made.append(length)
    return made


def at_half_the_macs(config: CompactBertConfig) -> list[int]:
    """Of such lengths the longest with at most half the multiply-adds of full length."""
    whole = macs(config, SEQ_LEN, "question_answering")
    made = (lengths_at(step / 1000, config.num_hidden_layers) for step in range(1000))
    return next(found for found in made if 2 * macs(config, SEQ_LEN, "question_answering", found) <= whole)


def at(model: CompactBertForQuestionAnswering, lengths: list[int]) -> Callable[..., Tensor]:
    """The model at these lengths; it returns how many tokens each layer kept, which the harness compares."""

    @torch.no_grad()
    def run(*batch: Tensor) -> Tensor:
        kept = model(*batch, length_config=lengths).kept_positions
        return torch.tensor([float(SEQ_LEN if kept is None else kept[-1].shape[1])])

    return run


def main(batch: Annotated[list[int], typer.Option(help="Sequences at a time.")] = [1, 8], rounds: int = MIN_ROUNDS):  # noqa: B006
    """Measure and publish."""
    choice = choose_float32_matmul()
    torch.manual_seed(0)
    config = CompactBertConfig()
    model = CompactBertForQuestionAnswering(config).eval()
    depth = config.num_hidden_layers
    configs = {
        "plain": [],
        "half": at_half_the_macs(config),
        "one each": [SEQ_LEN - layer - 1 for layer in range(depth)],
        "full": [SEQ_LEN] * depth,
    }
    whole = macs(config, SEQ_LEN, "question_answering")
    shares = {
        name: macs(config, SEQ_LEN, "question_answering", found or None) / whole for name, found in configs.items()
    }
    names = ("input_ids", "attention_mask", "token_type_ids")
    given = {f"B={size}": [random_batch(config.vocab_size, size, SEQ_LEN)[name] for name in names] for size in batch}
    timings = measure(
        {name: at(model, found) for name, found in configs.items()},
        given,
        baseline="plain",
        max_error=1.0,  # contestants keep other numbers of tokens on purpose; tests compare what they answer
        rounds=rounds,
    )
    goals = {f"{name} {label}": goal for name, goal in SPEEDUP.items() for label in given}
    notes = {"matmul": asdict(choice), "length_configs": configs, "macs_share": shares}
    publish("token_dropping", timings, ratios(timings, "plain"), goals, notes=notes)


if __name__ == "__main__":
    typer.run(main)
