"""Candidates for the words of a text: many masked words at a time, against one after the other:

    python -m benchmarks.augmentation

BERT-base with random weights. One at a time as TinyBERT's first code does it: a forward pass per word over
[CLS] masked [SEP] original [SEP], recorded for a backward pass that never comes, gelu and LayerNorm in elementary
operations, scores of the whole vocabulary at every position, all of the wanted one sorted; through torch's default
matrix product ("MKL") or through oneDNN. It is timed on every eighth word; all ratios are per word. Lengths are those
of the texts of SST-2 in which its training words stand.

In float32 the k-th candidate's score must be within 1e-5 of the right k-th score, so lists are equal but for the order
of words that score alike. In bfloat16 95 % of the candidates must be right.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Goal, Timing, measure, publish
from benchmarks.tinybert_original import LayerNorm, Original, gelu
from compresskit.kernels.float32 import choose_float32_matmul
from compresskit.models import CompactBertConfig, CompactBertForMaskedLM
from compresskit.models.fill_mask import MaskFiller, Row

CANDIDATES = 15
CLS, SEP, MASK = 101, 102, 103
LENGTHS, WORDS_PER_LENGTH = 3, 24
TIMED = 8  # one at a time, every eighth word
MKL, ONEDNN = "one at a time, MKL", "one at a time, oneDNN"
GOALS = {
    "augmentation, fp32": Goal(floor=2.5, aim=3.0),
    "augmentation, bf16": Goal(floor=5.0, aim=6.0),
}
Ask = Callable[[Sequence[Row]], Tensor]  # candidates of each row, (N, M)


class OneAtATime:
    """The masked LM of the original code, with our weights."""

    def __init__(self, model: CompactBertForMaskedLM):
        self.encoder = Original(model.config)
        self.encoder.load_state_dict(model.bert.state_dict(), strict=False)  # its pooler, which nothing reads
        head = model.cls.predictions
        self.dense, self.decoder = head.transform.dense, head.decoder
        self.norm = LayerNorm(model.config.hidden_size, model.config.layer_norm_eps)
        self.norm.load_state_dict(head.transform.LayerNorm.state_dict())

    def scores(self, row: Row) -> Tensor:
        """The scores at the masked position, (V,)."""
        ids, second, position = torch.tensor([row[0]]), row[1], row[2]
        types = (torch.arange(ids.shape[1]) >= second).long()[None]
        hidden = self.encoder(ids, torch.ones_like(ids), types)[1][-1]
        return self.decoder(self.norm(gelu(self.dense(hidden))))[0, position]

    def __call__(self, rows: Sequence[Row]) -> Tensor:
        """The candidates of each row, (N, M)."""
        return torch.stack([torch.argsort(self.scores(row), descending=True)[:CANDIDATES] for row in rows])


def lengths() -> list[int]:
    """Pieces of a text, at evenly spaced quantiles of SST-2's words: long texts have more of them."""
    histogram = json.loads((Path(__file__).parent / "sst2_lengths.json").read_text())
    pieces = np.array([int(tokens) - 2 for tokens in histogram])  # without [CLS] and [SEP]
    words = np.cumsum(pieces * np.array(list(histogram.values())))
    quantiles = (np.arange(LENGTHS) + 0.5) / LENGTHS * words[-1]
    return pieces[np.searchsorted(words, quantiles)].tolist()


def masked_words() -> list[Row]:
    """Every second word of made texts, as many of each length."""
    generator = np.random.default_rng(0)
    rows: list[Row] = []
    for pieces in lengths():
        made: list[Row] = []
        while len(made) < WORDS_PER_LENGTH:
            original = generator.integers(1000, 30000, pieces).tolist()
            for at in range(0, pieces, 2):
                masked = [*original[:at], MASK, *original[at + 1 :]]
                made.append(([CLS, *masked, SEP, *original, SEP], pieces + 2, at + 1))
        rows += made[:WORDS_PER_LENGTH]
    return rows


def at(precision: str, ask: Ask) -> Ask:
    """The same with torch's float32 products at this precision."""

    def run(rows: Sequence[Row]) -> Tensor:
        torch.set_float32_matmul_precision(precision)
        return ask(rows)

    return run


def stride(contestant: str) -> int:
    """Which words a contestant is timed on: every so many."""
    return TIMED if contestant in (MKL, ONEDNN) else 1


def race() -> tuple[list[Timing], dict[str, float]]:
    """Timings, and the measures by name."""
    torch.manual_seed(0)
    model = CompactBertForMaskedLM(CompactBertConfig()).eval()
    rows = masked_words()
    original = OneAtATime(model)
    torch.set_float32_matmul_precision("highest")
    with torch.no_grad():
        right = torch.stack([original.scores(row) for row in rows])  # (N, V)
    best = right.topk(CANDIDATES)

    def gap(ids: Tensor, every: int) -> list[Tensor]:
        """The furthest that any candidate's score is from the right one of its rank."""
        return [(right[::every].gather(1, ids) - best.values[::every]).abs().max()]

    def wrong(ids: Tensor, every: int) -> list[Tensor]:
        """The share of candidates that are not among the right ones."""
        shared = (ids[:, :, None] == best.indices[::every, None, :]).any(-1)
        return [1 - shared.float().mean()]

    def ours(dtype: torch.dtype) -> Ask:
        filler = MaskFiller(model, torch.ones(model.config.vocab_size, dtype=torch.bool), CANDIDATES, dtype=dtype)
        return at("medium", lambda rows: filler(rows)[0])

    def timed(
        label: str, asked: dict[str, Ask], judge: Callable[[Tensor, int], list[Tensor]], bound: float
    ) -> list[Timing]:
        def contestant(name: str, ask: Ask) -> Callable[[], list[Tensor]]:
            return lambda: judge(ask(rows[:: stride(name)]), stride(name))

        return measure(
            {name: contestant(name, ask) for name, ask in asked.items()},
            {label: []},
            baseline=MKL,
            reference=lambda: [torch.zeros(())],
            max_error=bound,
        )

    one_at_a_time = at("highest", original)
    single = timed(
        "score gap", {MKL: one_at_a_time, ONEDNN: at("medium", original), "fp32": ours(torch.float32)}, gap, 1e-5
    )
    half = timed("wrong candidates", {MKL: one_at_a_time, "bf16": ours(torch.bfloat16)}, wrong, 0.05)
    measures = {}
    for name, found in (("fp32", single), ("bf16", half)):
        per_word = {t.contestant: t.median_ms / len(rows[:: stride(t.contestant)]) for t in (*single, *found)}
        measures[f"augmentation, {name}"] = per_word[MKL] / per_word[name]
        measures[f"augmentation, {name}, against oneDNN"] = per_word[ONEDNN] / per_word[name]
    return [*single, *half], measures


if __name__ == "__main__":
    choice = choose_float32_matmul()
    timings, measures = race()
    notes = {"matmul": asdict(choice), "words": LENGTHS * WORDS_PER_LENGTH, "pieces of a text": lengths()}
    publish("augmentation", timings, measures, GOALS, notes=notes)
