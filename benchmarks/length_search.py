"""Evaluations per second of the evolutionary search for lengths, whose scores are known:

    python -m benchmarks.length_search

What the search itself costs beside scoring: 30 rounds of 30 mutations and 30 crossovers for 6 and for 12 layers of 384
tokens, multiply-adds by formula, scores from a table. The check says that both runs found the same stores.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor

from benchmarks.harness import measure, publish
from compresskit.evaluation.flops import macs
from compresskit.models import CompactBertConfig
from compresskit.search.lengths import Evolution, Lengths

SEQ_LEN, ROUNDS = 384, 30
DEPTHS = {"6 layers, 384 tokens": 6, "12 layers, 384 tokens": 12}


def scores(many: Sequence[Lengths]) -> list[float]:
    """Rising with the tokens that are left, the more so in upper layers."""
    return [100 * (1 - 1 / (1 + sum((i + 1) * n for i, n in enumerate(lengths)) / 384)) for lengths in many]


def searched(layers: int) -> Evolution:
    """A whole search."""
    config = CompactBertConfig(num_hidden_layers=layers)
    evolution = Evolution(
        SEQ_LEN, layers, lambda lengths: macs(config, SEQ_LEN, "question_answering", lengths), scores
    )  # fmt: skip
    evolution.start(20)
    for _ in evolution.run(ROUNDS, Random):
        pass
    return evolution


def areas(layers: int) -> Tensor:
    """Costs and scores of everything that was tried, (N, 2)."""
    return torch.tensor([[entry.cost / 1e9, entry.score] for entry in searched(layers).store.values()])


def main() -> None:
    """Time both depths, publish evaluations per second."""
    timings = measure({"evolution": areas}, {n: [layers] for n, layers in DEPTHS.items()}, baseline="evolution",
                      reference=areas)  # fmt: skip
    rates = {
        f"evaluations per second, {name}": len(searched(layers).store) / (timing.median_ms / 1000)
        for (name, layers), timing in zip(DEPTHS.items(), timings, strict=True)
    }
    publish("length_search", timings, rates)


if __name__ == "__main__":
    main()
