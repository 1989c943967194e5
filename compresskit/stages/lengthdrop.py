"""A task model that learns to answer at any length: LengthDrop, from a teacher or from labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pandas as pd
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from compresskit.models import sparse
from compresskit.stages import distilling
from compresskit.stages.finetune import finish_task_model
from compresskit.stages.inputs import board
from compresskit.stages.params import Params
from compresskit.stages.session import Session, steps
from compresskit.stages.tasks import TaskData, TaskModel, task_data, task_named
from compresskit.training import lengthdrop
from compresskit.training.loop import Batch, fit
from compresskit.training.optim import EarlyAdamW, adamw, decay_groups, linear_schedule


class LengthdropParams(Params):
    """Parameters of the stage `lengthdrop`."""

    task: str = "sst2"
    model: str = "models:/demo-teacher@latest"  # what learns: a run, a registered model, a folder or a hub id
    teacher: str = ""  # a task model whose answers the whole model learns; empty: labels
    teacher_labels: list[str] = []  # names of the teacher's outputs in its order, where its config has none
    num_sandwich: int = Field(2, ge=1)  # sub-models at random in each step, beside the whole one and the smallest
    length_ratio: float = Field(0.2, gt=0, lt=1)  # most of its tokens that a layer drops; the smallest drops as many
    length_probability: float = Field(0.0, ge=0, lt=1)  # drop each token at random with it; 0: lengths are uniform
    layer_probability: float = Field(0.2, ge=0, lt=1)  # leave out each layer with it; 0: see layer_bound
    layer_bound: int = Field(0, ge=0)  # most layers that sub-models lack at the top, where layer_probability is 0
    data_dir: str = "bundled"  # a folder or hub id; "bundled"; empty: $COMPRESSKIT_DATA
    augmented: str = ""  # what the stage augment made of train: a run's, or a folder; empty: train alone
    max_seq_len: int = Field(128, ge=8)
    doc_stride: int = Field(128, ge=1)  # SQuAD: tokens from the start of one window to the next
    max_query_length: int = Field(64, ge=1)  # SQuAD: longer questions are cut, in tokens
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(2e-5, gt=0)
    warmup_ratio: float = Field(0.0, ge=0, lt=1)
    num_train_epochs: float = Field(5.0, gt=0)
    temperature: float = Field(1.0, gt=0)
    evals_per_epoch: int = Field(2, ge=1)
    patience: int = Field(0, ge=0)  # stop after this many evaluations without a better score; 0: never
    select_on: Literal["selection", "dev"] = "selection"  # rows that choose the checkpoint; dev reproduces the papers
    faithful: bool = False  # as the original's code: its AdamW, padding to max_seq_len that counts, maybe no layers
    max_steps: int = Field(0, ge=0)  # stop earlier, for smoke tests; 0: no limit
    max_rows: int = Field(0, ge=0)  # keep this many rows of each split, for smoke tests; 0: all
    threads: int = Field(0, ge=0)  # of torch; 0: all cores
    register_as: str = ""
    seed: int = 42


@dataclass
class Lengthdrop:
    """The opened stage."""

    params: LengthdropParams
    session: Session
    data: TaskData
    teacher: TaskModel | None  # None: labels are learned from
    model: TaskModel

    def train(self) -> pd.DataFrame:
        """Learn at all lengths; the best checkpoint of the whole model is kept. Goes on where a stopped run of the same
        parameters ended. Returns step, key, value.
        """
        params, batches = self.params, self.data.batches(**distilling.batch_order(self.params))
        num_steps = steps(params.num_train_epochs, len(batches), params.max_steps)
        fit(
            self.model,
            batches,
            lengthdrop.lengthdrop(
                self.model,
                self.answers(),
                self.sandwich(),
                partial(lengthdrop.seeded, params.seed),
                padded=params.faithful,
            ),
            *self.optimizer(num_steps),
            num_steps,
            label="lengthdrop",
            state=self.session.state(),
            evaluate=lambda: self.data.score(self.model, params.select_on).value,
            eval_every=max(1, len(batches) // params.evals_per_epoch),
            patience=params.patience,
            planned_steps=steps(params.num_train_epochs, len(batches), 0),
            observe=self.session.observe,
        )
        return self.session.run.history()

    def answers(self) -> Callable[[Any, Batch], Tensor]:
        """What the whole model learns."""
        if self.teacher is None:
            return lengthdrop.supervised
        answers: Callable[..., Tensor] = self.data.task.answers
        if self.params.faithful and not self.data.task.answers_per_row:
            answers = partial(answers, padded=True)
        return lengthdrop.taught(self.teacher, answers, self.params.temperature)

    def sandwich(self) -> lengthdrop.Sandwich:
        """How the sub-models of a step are drawn."""
        params = self.params
        return lengthdrop.Sandwich(
            num_random=params.num_sandwich,
            length_ratio=params.length_ratio,
            length_probability=params.length_probability or None,
            layer_probability=params.layer_probability or None,
            layer_bound=params.layer_bound,
            maybe_no_layers=params.faithful,
        )

    def optimizer(self, num_steps: int) -> tuple[Optimizer, LRScheduler]:
        """AdamW with warm-up and linear decay; faithful: as transformers had it, and weights do not decay."""
        params = self.params
        made: Optimizer = (
            EarlyAdamW(decay_groups([self.model], 0.0), lr=params.learning_rate)
            if params.faithful
            else adamw([self.model], params.learning_rate)
        )
        return made, linear_schedule(made, num_steps, params.warmup_ratio)

    def smallest(self) -> list[int]:
        """Tokens that each layer keeps of max_seq_len in the smallest model that is trained."""
        params = self.params
        return lengthdrop.fixed_lengths(params.max_seq_len, self.model.config.num_hidden_layers, params.length_ratio)

    def finish(self) -> pd.DataFrame:
        """Score on the rows that chose the checkpoint, model and row of results. Dev rows are the stage evaluate's."""
        return finish_task_model(self.session, self.model, self.data, self.params.select_on, self.params.register_as)


def open(params: LengthdropParams) -> Lengthdrop:
    """Load model, teacher and data, start the run.

    Raises ValueError where parameters contradict each other, or a model is not what they ask for.
    """
    task = task_named(params.task)
    if params.layer_probability and params.layer_bound:
        raise ValueError(
            "layers are left out by layer_probability or by layer_bound, not by both; set one of them to 0"
        )
    session = Session(
        "lengthdrop",
        params,
        experiment=board(params.task, params.data_dir),
        name=f"lengthdrop-{params.task}-{params.seed}",
        seed=params.seed,
        threads=params.threads,
    )
    model, tokenizer = task.open_model(params.model)
    model = sparse.to_dense(model)
    model.config.length_config = None  # what it has, it has from a search; here every length is learned
    teacher = None
    if params.teacher:
        teacher, theirs = task.open_model(params.teacher, trained=True, labels=params.teacher_labels)
        distilling.check_vocabularies(tokenizer, theirs)
    data = task_data(task, params, tokenizer, batch_size=params.batch_size, augmented=params.augmented)
    session.run.input(params.task, data.source, data.train)
    return Lengthdrop(params, session, data, teacher, model)
