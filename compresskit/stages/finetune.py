"""Fine-tuning on a task's labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pandas as pd
from pydantic import Field
from torch import Tensor

from compresskit.stages.inputs import board
from compresskit.stages.params import Params
from compresskit.stages.session import Session, steps
from compresskit.stages.tasks import TaskData, TaskModel, task_data, task_named
from compresskit.training.finetune import supervised
from compresskit.training.loop import fit
from compresskit.training.optim import adamw, linear_schedule


class FinetuneParams(Params):
    """Parameters of the stage `finetune`."""

    task: str = "sst2"
    model: str = "models:/demo-encoder@latest"  # a run, a registered model, a folder or a hub id
    data_dir: str = "bundled"  # a folder or hub id; "bundled"; empty: $COMPRESSKIT_DATA
    augmented: str = ""  # what the stage augment made of train: a run's, or a folder; empty: train alone
    max_seq_len: int = Field(128, ge=8)
    doc_stride: int = Field(128, ge=1)  # SQuAD: tokens from the start of one window to the next
    max_query_length: int = Field(64, ge=1)  # SQuAD: longer questions are cut, in tokens
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(5e-5, gt=0)
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    num_train_epochs: float = Field(3.0, gt=0)
    evals_per_epoch: int = Field(2, ge=1)
    patience: int = Field(0, ge=0)  # stop after this many evaluations without a better score; 0: never
    select_on: Literal["selection", "dev"] = "selection"  # rows that choose the checkpoint; dev reproduces the papers
    max_steps: int = Field(0, ge=0)  # stop earlier, for smoke tests; 0: no limit
    max_rows: int = Field(0, ge=0)  # keep this many rows of each split, for smoke tests; 0: all
    threads: int = Field(0, ge=0)  # of torch; 0: all cores
    register_as: str = ""
    seed: int = 42


@dataclass
class Finetune:
    """The opened stage."""

    params: FinetuneParams
    session: Session
    data: TaskData
    model: TaskModel

    def train(self) -> pd.DataFrame:
        """Fine-tune; goes on where a stopped run of the same parameters ended. Returns step, key, value."""
        params, batches = self.params, self.data.batches()
        num_steps = steps(params.num_train_epochs, len(batches), params.max_steps)
        optimizer = adamw([self.model], params.learning_rate)
        fit(
            self.model,
            batches,
            supervised(self.model),
            optimizer,
            linear_schedule(optimizer, num_steps, params.warmup_ratio),
            num_steps,
            label="finetune",
            state=self.session.state(),
            evaluate=lambda: self.data.score(self.model, params.select_on).value,
            eval_every=max(1, len(batches) // params.evals_per_epoch),
            patience=params.patience,
            planned_steps=steps(params.num_train_epochs, len(batches), 0),
            observe=self.session.observe,
        )
        return self.session.run.history()

    def finish(self) -> pd.DataFrame:
        """Score on the rows that chose the checkpoint, model and row of results. Dev rows are the stage evaluate's."""
        return finish_task_model(self.session, self.model, self.data, self.params.select_on, self.params.register_as)


def finish_task_model(
    session: Session,
    model: TaskModel,
    data: TaskData,
    select_on: str,
    register_as: str,
    training_only: Mapping[str, Tensor] | None = None,
) -> pd.DataFrame:
    """The end of every stage that trains a task model. training_only: see `checkpoints.save`."""
    model.config.length_front = None  # of the weights from before
    score = data.score(model, select_on)
    result = {
        "task": data.task.name,
        "selection_score": score.value,
        "selection_low": score.low,
        "selection_high": score.high,
        "selection_rows": score.rows,
        "select_on": select_on,
        "parameters": model.num_parameters(),
    }
    uri = session.keep(model, data.tokenizer, result, register_as or None, training_only)
    return session.finish({"model": uri, **result})


def open(params: FinetuneParams) -> Finetune:
    """Load model and data, start the run."""
    task = task_named(params.task)
    session = Session(
        "finetune",
        params,
        experiment=board(params.task, params.data_dir),
        name=f"finetune-{params.task}-{params.seed}",
        seed=params.seed,
        threads=params.threads,
    )
    model, tokenizer = task.open_model(params.model)
    data = task_data(task, params, tokenizer, batch_size=params.batch_size, augmented=params.augmented)
    session.run.input(params.task, data.source, data.train)
    return Finetune(params, session, data, model)
