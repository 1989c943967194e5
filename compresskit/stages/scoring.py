"""Scores of a search's candidates: of a subnet in place, or of fine-tuned slices; none is found twice."""

from __future__ import annotations

import hashlib
import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from compresskit.data import corpora, masking
from compresskit.data.batching import Batches
from compresskit.models import CompactBertConfig, CompactBertForMaskedLM
from compresskit.search import arch_text
from compresskit.stages.candidates import Job
from compresskit.stages.inputs import corpus_file
from compresskit.stages.journal import Journal
from compresskit.stages.pretrain import masked_lm_loss
from compresskit.stages.workers import Workers
from compresskit.training.progress import Progress

MASKED_LM = "masked_lm"
MEANS: dict[str, Callable[[Sequence[float]], float]] = {
    "arithmetic": statistics.fmean,
    "geometric": statistics.geometric_mean,
    "harmonic": statistics.harmonic_mean,
}


class Scoring(Protocol):
    """What a search asks."""

    def scores(self, configs: Sequence[CompactBertConfig], share: float, label: str) -> list[float]:
        """One score for each, higher is better, after `share` of the training that a candidate gets."""

    def by_task(self, config: CompactBertConfig, share: float) -> dict[str, float]:
        """What the score of a candidate is made of."""

    def forget(self) -> None:
        """Drop what was kept for candidates to go on with."""


def fitness(scores: Sequence[float], mean: str) -> float:
    """The mean of that name; a geometric or harmonic one is 0 where a score is not above 0."""
    return MEANS[mean](scores) if mean == "arithmetic" or min(scores) > 0 else 0.0


def name_of(config: CompactBertConfig) -> str:
    """An architecture's name in journals: its text in one order of entries."""
    return arch_text.text(config, "mutant")


@dataclass
class InPlace:
    """Scores a subnet inside the supernet, without training it: `score(config)`."""

    score: Callable[[CompactBertConfig], float]
    journal: Journal

    def scores(self, configs: Sequence[CompactBertConfig], share: float, label: str) -> list[float]:
        """See Scoring."""
        found = []
        with Progress(label, len(configs)) as progress:
            for config in configs:
                found.append(self.journal.once(_in_place(config), partial(self.score, config)))
                progress.at(len(found), score=found[-1])
        return found

    def by_task(self, config: CompactBertConfig, share: float) -> dict[str, float]:
        """See Scoring."""
        return {MASKED_LM: self.journal[_in_place(config)]}

    def forget(self) -> None:
        """Nothing was kept."""


class TextParams(Protocol):
    """The parameters of a search that say which text scores subnets in place."""

    corpus: str
    corpus_rows: int
    max_seq_len: int
    seed: int


def masked_lm_score(
    params: TextParams, supernet: CompactBertForMaskedLM, tokenizer: Any
) -> Callable[[CompactBertConfig], float]:
    """Minus the masked-word loss of a subnet in place, on rows and masks that are the same for every one."""
    rows = corpora.encode(corpus_file(params.corpus), tokenizer, params.max_seq_len).shuffle(seed=params.seed)
    rows = rows.select(range(min(params.corpus_rows, len(rows))))
    batches = Batches(rows, 32, params.seed, tokenizer.pad_token_id, shuffle=False)

    def mask(batch: dict[str, torch.Tensor], step: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(params.seed * 1_000_003 + step)
        return masking.mask_tokens(batch["input_ids"], batch["attention_mask"], tokenizer, generator)

    return lambda config: -masked_lm_loss(supernet, batches, mask, config)


def _in_place(config: CompactBertConfig) -> str:
    return f"{MASKED_LM}, {name_of(config)}"


@dataclass
class FineTuned:
    """Scores the slice of each architecture, fine-tuned on every task with every seed: the mean of the tasks' means."""

    tasks: Sequence[str]
    seeds: Sequence[int]
    mean: str
    workers: Workers
    journal: Journal
    folder: Path  # where unfinished jobs save themselves

    def scores(self, configs: Sequence[CompactBertConfig], share: float, label: str) -> list[float]:
        """See Scoring. Which job is finished first changes nothing."""
        wanted = {
            self._key(config, task, seed, share): Job(config, task, seed, share, self._folder(config, task, seed))
            for config in configs
            for task in self.tasks
            for seed in self.seeds
        }
        missing = {key: job for key, job in wanted.items() if key not in self.journal}
        done = len(wanted) - len(missing)
        with Progress(label, len(wanted), done) as progress:
            for key, result in self.workers.results(missing):
                self.journal[key] = result
                if result["error"]:
                    print(f"{key}: {result['error']}; it scores 0", flush=True)
                if share == 1:
                    shutil.rmtree(missing[key].folder, ignore_errors=True)
                done += 1
                progress.at(done, score=result["score"])
        return [fitness(list(self.by_task(config, share).values()), self.mean) for config in configs]

    def by_task(self, config: CompactBertConfig, share: float) -> dict[str, float]:
        """See Scoring."""
        return {
            task: statistics.fmean(self.journal[self._key(config, task, seed, share)]["score"] for seed in self.seeds)
            for task in self.tasks
        }

    def forget(self) -> None:
        """See Scoring."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _key(self, config: CompactBertConfig, task: str, seed: int, share: float) -> str:
        return f"{task}, seed {seed}, {share:g} of the steps, {name_of(config)}"

    def _folder(self, config: CompactBertConfig, task: str, seed: int) -> Path:
        return self.folder / hashlib.sha256(name_of(config).encode()).hexdigest()[:16] / f"{task}-{seed}"
