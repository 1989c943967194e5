"""Pruning a task model by magnitude while it learns from its dense self."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pandas as pd
from pydantic import Field

from compresskit.models import sparse
from compresskit.pruning.masks import MagnitudePruner
from compresskit.stages.finetune import finish_task_model
from compresskit.stages.inputs import board
from compresskit.stages.params import Params
from compresskit.stages.session import Session, steps
from compresskit.stages.tasks import TaskData, TaskModel, task_data, task_named
from compresskit.training import prune
from compresskit.training.loop import fit
from compresskit.training.optim import adamw, linear_schedule


class PruneParams(Params):
    """Parameters of the stage `prune`."""

    task: str = "sst2"
    model: str = (
        "models:/demo-teacher@latest"  # the task model to prune: a run, a registered model, a folder or a hub id
    )
    teacher: str = ""  # of the same shape; empty: the model as it is before pruning
    sparsity: float = Field(0.95, gt=0, lt=1)  # share of zeros in each of the encoder's matrices at the end
    pruning_share: float = Field(0.7, gt=0, le=1)  # part of the steps in which the sparsity rises; then it is held
    data_dir: str = "bundled"  # a folder or hub id; "bundled"; empty: $COMPRESSKIT_DATA
    augmented: str = ""  # what the stage augment made of train: a run's, or a folder; empty: train alone
    max_seq_len: int = Field(128, ge=8)
    doc_stride: int = Field(128, ge=1)  # SQuAD: tokens from the start of one window to the next
    max_query_length: int = Field(64, ge=1)  # SQuAD: longer questions are cut, in tokens
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(3e-5, gt=0)
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    num_train_epochs: float = Field(3.0, gt=0)
    temperature: float = Field(1.0, gt=0)
    evals_per_epoch: int = Field(2, ge=1)
    select_on: Literal["selection", "dev"] = "selection"  # rows that choose the checkpoint; dev reproduces the papers
    max_steps: int = Field(0, ge=0)  # stop earlier, for smoke tests; 0: no limit
    max_rows: int = Field(0, ge=0)  # keep this many rows of each split, for smoke tests; 0: all
    threads: int = Field(0, ge=0)  # of torch; 0: all cores
    register_as: str = ""
    seed: int = 42


@dataclass
class Prune:
    """The opened stage."""

    params: PruneParams
    session: Session
    data: TaskData
    teacher: TaskModel
    model: TaskModel

    def train(self) -> pd.DataFrame:
        """Prune while distilling; goes on where a stopped run of the same parameters ended.

        Returns step, key, value.
        """
        params, batches = self.params, self.data.batches()
        num_steps = steps(params.num_train_epochs, len(batches), params.max_steps)
        end = max(1, int(num_steps * params.pruning_share))
        pruner = MagnitudePruner(self.model, params.sparsity, begin=0, end=end)
        optimizer = adamw([self.model], params.learning_rate)

        def score_when_sparse() -> float | None:  # only checkpoints at the final sparsity compete
            if pruner.updated_at < end:
                return None
            return self.data.score(self.model, params.select_on).value

        def observe(step: int, numbers: Mapping[str, float]) -> None:
            self.session.observe(step, {**numbers, "train/sparsity": pruner.sparsity()})

        fit(
            self.model,
            batches,
            prune.all_layers(self.model, self.teacher, params.temperature, self.data.task.answers),
            optimizer,
            linear_schedule(optimizer, num_steps, params.warmup_ratio),
            num_steps,
            label="prune",
            state=self.session.state(),
            parts={"pruner": pruner},
            after_step=pruner.step,
            evaluate=score_when_sparse,
            eval_every=max(1, len(batches) // params.evals_per_epoch),
            planned_steps=steps(params.num_train_epochs, len(batches), 0),
            observe=observe,
        )
        return self.session.run.history()

    def finish(self) -> pd.DataFrame:
        """Score on the rows that chose the checkpoint, model and row of results. Dev rows are the stage evaluate's."""
        return finish_task_model(self.session, self.model, self.data, self.params.select_on, self.params.register_as)


def open(params: PruneParams) -> Prune:
    """Load model, teacher and data, start the run."""
    task = task_named(params.task)
    session = Session(
        "prune",
        params,
        experiment=board(params.task, params.data_dir),
        name=f"prune-{params.task}-{params.seed}",
        seed=params.seed,
        threads=params.threads,
    )
    model, tokenizer = task.open_model(params.model, trained=True)
    model = sparse.to_dense(model)
    teacher, _ = task.open_model(params.teacher or params.model, trained=True)
    data = task_data(task, params, tokenizer, batch_size=params.batch_size, augmented=params.augmented)
    session.run.input(params.task, data.source, data.train)
    return Prune(params, session, data, teacher, model)
