"""How good formulas are: a candidate's slice of the supernet after a short training, or as it is."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from compresskit.data import corpora
from compresskit.data.batching import Batches
from compresskit.data.corpus import prepared
from compresskit.models import CompactBertModel, checkpoints, elastic
from compresskit.stages.inputs import corpus_file, tokenizer_for
from compresskit.stages.session import DEVICE, Precision, autocast_dtype, on_device, steps
from compresskit.stages.tasks import Split, TaskData, TaskModel, task_data, task_named
from compresskit.training import distill
from compresskit.training.loop import Losses, fit
from compresskit.training.optim import adamw, linear_schedule
from compresskit.training.state import TrainingState


class TrialParams(Protocol):
    """The parameters of a search that say how a candidate is trained and scored."""

    task: str
    data_dir: str
    max_seq_len: int
    doc_stride: int
    max_query_length: int
    max_rows: int
    corpus: str
    corpus_share: float
    corpus_seq_len: int
    distill_epochs: float
    distill_learning_rate: float
    max_distill_steps: int
    train_share: float
    num_train_epochs: float
    learning_rate: float
    max_steps: int
    eval_every: int
    batch_size: int
    warmup_ratio: float
    hidden_ratio: float
    precision: Precision
    select_on: Literal["selection", "dev"]
    seed: int


@dataclass(frozen=True)
class Job:
    """A candidate to be scored; folder: where its training saves itself."""

    formulas: tuple[str, ...]
    folder: Path


@dataclass
class Trained:
    """Scores a candidate by its best score on rows held back from train, after two short trainings from the supernet.

    First it learns the layers of `encoder` from text, then layers and answers of `teacher`, a model of the task. Every
    trial sees the same rows in the same order and begins with the same head, so that only the formulas differ.
    """

    params: TrialParams
    supernet: Path
    encoder: Path
    teacher: Path
    given: dict[str, Any] = field(default_factory=dict)  # what is read once: data and teachers

    def __call__(self, job: Job) -> dict[str, Any]:
        """score, steps trained, the reason of a score 0 or "", and the seconds that it took."""
        params, began = self.params, time.monotonic()
        torch.manual_seed(params.seed)
        try:
            model, project = self._student(job)
            modules: list[nn.Module] = [model] if project is None else [model, project]
            text, data = self.text(), self.data()
            encoder, teacher = self.encoder_model(), self.task_teacher()
            mapping = distill.uniform_mapping(model.config.num_hidden_layers, encoder.config.num_hidden_layers)
            first = steps(params.distill_epochs, len(text), params.max_distill_steps) if params.distill_epochs else 0
            if first:
                losses = distill.intermediate(model, encoder, mapping, project)
                self._fit(model, modules, text, losses, params.distill_learning_rate, first, job.folder / "text")
            batches = data.batches(drop_last=True)
            second = steps(params.num_train_epochs, len(batches), params.max_steps)
            mapping = distill.uniform_mapping(model.config.num_hidden_layers, teacher.config.num_hidden_layers)
            learned = distill.together(
                model, teacher, mapping, project, data.task.answers, hidden_ratio=params.hidden_ratio
            )
            best = self._fit(model, modules, batches, learned, params.learning_rate, second, job.folder / "task", data)
            found = {"score": best or 0.0, "steps": first + second, "reason": ""}
        except FloatingPointError as error:
            found = {"score": 0.0, "steps": 0, "reason": str(error)}
        return {**found, "seconds": time.monotonic() - began}

    def _student(self, job: Job) -> tuple[TaskModel, nn.Module | None]:
        """The candidate's slice of the supernet with a new head, and the map to the teacher's width."""
        whole, _ = task_named(self.params.task).open_model(str(self.supernet))
        model = on_device(elastic.extract(whole, whole.config.changed(feed_forward=list(job.formulas))))
        project = distill.projection(
            model.config.hidden_size,
            self.encoder_model().config.hidden_size,
            model.config.num_hidden_layers + 1,
            released=checkpoints.read(self.supernet).training_only,
        )
        return model, None if project is None else project.to(DEVICE)

    def _fit(
        self,
        model: TaskModel,
        modules: list[nn.Module],
        batches: Any,
        losses: Losses,
        learning_rate: float,
        num_steps: int,
        folder: Path,
        data: TaskData | None = None,
    ) -> float | None:
        """Train; returns the best score on `data`'s rows that choose, where given."""
        optimizer = adamw(modules, learning_rate)
        best = fit(
            model,
            batches,
            losses,
            optimizer,
            linear_schedule(optimizer, num_steps, self.params.warmup_ratio),
            num_steps,
            state=TrainingState(folder),
            parts={"projection": modules[1]} if len(modules) > 1 else {},
            evaluate=(lambda: data.score(model, self.params.select_on).value) if data else None,
            eval_every=self.params.eval_every,
            planned_steps=num_steps,
            autocast=autocast_dtype(self.params.precision),
        )
        return best.score

    def text(self) -> Batches:
        """Batches of the first `corpus_share` of the text."""
        if "text" not in self.given:
            params, path, tokenizer = self.params, corpus_file(self.params.corpus), self.tokenizer()
            rows = (
                prepared.load(path).epochs[0]
                if path.is_dir()
                else corpora.encode(path, tokenizer, params.corpus_seq_len)
            )
            rows = rows.select(range(max(params.batch_size, int(params.corpus_share * len(rows)))))
            self.given["text"] = Batches(rows, params.batch_size, params.seed, tokenizer.pad_token_id, drop_last=True)
        return self.given["text"]

    def data(self) -> TaskData:
        """The task's rows, of those to learn from the first `train_share`."""
        if "data" not in self.given:
            found = scoring_data(self.params, self.tokenizer())
            count = max(self.params.batch_size, int(self.params.train_share * len(found.train)))
            part = Split(None, found.train.select(range(min(count, len(found.train)))), self.tokenizer())
            self.given["data"] = replace(found, splits={**found.splits, "train": part})
        return self.given["data"]

    def tokenizer(self) -> Any:
        """The supernet's."""
        return tokenizer_for(self.supernet, checkpoints.read(self.supernet).architecture().vocab_size)

    def encoder_model(self) -> PreTrainedModel:
        """What is learned from text."""
        if "encoder" not in self.given:
            found = checkpoints.read(self.encoder)
            self.given["encoder"] = on_device(found.model(lambda config: CompactBertModel(config, False)))
        return self.given["encoder"]

    def task_teacher(self) -> TaskModel:
        """What is learned from the task's rows."""
        if "teacher" not in self.given:
            self.given["teacher"], _ = task_named(self.params.task).open_model(str(self.teacher), trained=True)
        return self.given["teacher"]


@dataclass
class InPlace:
    """Scores a candidate inside a supernet that has learned the task with all sizes, without any training."""

    params: TrialParams
    supernet: Path
    given: tuple[TaskModel, TaskData] | None = None

    def __call__(self, job: Job) -> dict[str, Any]:
        """As `Trained` does."""
        began = time.monotonic()
        if self.given is None:
            model, tokenizer = task_named(self.params.task).open_model(str(self.supernet), trained=True)
            self.given = model, scoring_data(self.params, tokenizer)
        model, data = self.given
        part = elastic.extract(model, model.config.changed(feed_forward=list(job.formulas)))
        score = data.score(part, self.params.select_on).value
        return {"score": score, "steps": 0, "reason": "", "seconds": time.monotonic() - began}


def scoring_data(params: TrialParams, tokenizer: Any) -> TaskData:
    """The task's rows to learn from and to choose by, encoded."""
    splits = ("train", params.select_on)
    return task_data(task_named(params.task), params, tokenizer, batch_size=params.batch_size, splits=splits)
