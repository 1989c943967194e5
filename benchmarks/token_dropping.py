"""Time of a model that drops tokens against the same model at full length:

    python -m benchmarks.token_dropping

BERT-base's shape with a head for questions, 384 tokens, none of them padding, without gradients. "half": lengths that
fall by the same ratio in each layer, down to half the multiply-adds. "one each": every layer drops one token, which
costs what dropping costs and saves nearly nothing. "full": full lengths through the length-adaptive path.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor

from benchmarks.harness import Goal, as_float64, measure, publish, ratios
from compresskit.evaluation.flops import macs
from compresskit.evaluation.latency import random_batch
from compresskit.kernels.float32 import choose_float32_matmul
from compresskit.models import CompactBertConfig, CompactBertForQuestionAnswering

SEQ_LEN, BATCHES = 384, (1, 8)
GOALS = {
    "half": Goal(floor=1.7, aim=1.9),
    "one each": Goal(floor=1 / 1.2, aim=1 / 1.1),  # at most 1.2 times the plain model's time
    "full": Goal(floor=1 / 1.05, aim=1.0),
}


def at_half_the_macs(config: CompactBertConfig) -> list[int]:
    """The longest lengths, falling by the same ratio in each layer, with half the multiply-adds of full length."""
    whole = macs(config, SEQ_LEN, "question_answering")
    for step in range(1000):
        lengths, length = [], SEQ_LEN
        for _ in range(config.num_hidden_layers):
            length = max(2, math.ceil(length * (1 - step / 1000)))
            lengths.append(length)
        if 2 * macs(config, SEQ_LEN, "question_answering", lengths) <= whole:
            return lengths
    raise ValueError("no lengths reach half the multiply-adds")


def at(model: CompactBertForQuestionAnswering, lengths: list[int]) -> Callable[..., Tensor]:
    """The model at these lengths: where answers begin."""
    return torch.no_grad()(lambda *batch: model(*batch, length_config=lengths).start_logits)


if __name__ == "__main__":
    choice = choose_float32_matmul()
    torch.manual_seed(0)
    config = CompactBertConfig()
    model = CompactBertForQuestionAnswering(config).eval()
    configs = {
        "plain": [],
        "half": at_half_the_macs(config),
        "one each": [SEQ_LEN - layer - 1 for layer in range(config.num_hidden_layers)],
        "full": [SEQ_LEN] * config.num_hidden_layers,
    }
    names = ("input_ids", "attention_mask", "token_type_ids")
    batches = {size: random_batch(config.vocab_size, size, SEQ_LEN) for size in BATCHES}
    given = {f"B={size}": [batch[name] for name in names] for size, batch in batches.items()}
    timings = measure(
        {name: at(model, lengths) for name, lengths in configs.items()},
        given,
        baseline="plain",
        reference=at(as_float64(model), []),
        # what drops tokens answers otherwise, which tests/models/test_lengths.py compares with its definition
        max_error={"plain": 1e-4, "full": 1e-4, "half": 2.0, "one each": 2.0},
    )
    whole = macs(config, SEQ_LEN, "question_answering")
    share = {name: macs(config, SEQ_LEN, "question_answering", lengths) / whole for name, lengths in configs.items()}
    publish(
        "token_dropping",
        timings,
        ratios(timings, "plain"),
        {f"{name} {label}": goal for name, goal in GOALS.items() for label in given},
        notes={"matmul": asdict(choice), "length_configs": configs, "macs_share": share},
    )
