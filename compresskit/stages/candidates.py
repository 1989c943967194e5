"""How good an architecture is: its slice of the supernet's weights, fine-tuned on tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from compresskit.models import CompactBertConfig, elastic
from compresskit.stages.params import Params
from compresskit.stages.session import on_device, steps
from compresskit.stages.tasks import TASKS, TaskData, task_data, task_named
from compresskit.training.finetune import supervised
from compresskit.training.loop import fit
from compresskit.training.optim import adamw, linear_schedule
from compresskit.training.state import TrainingState


class Recipe(Params):
    """How a slice is fine-tuned on a task, and on which rows."""

    task: str
    data_dir: str = "bundled"
    max_seq_len: int = Field(128, ge=8)
    doc_stride: int = Field(128, ge=1)
    max_query_length: int = Field(64, ge=1)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(2e-5, gt=0)
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    num_train_epochs: float = Field(10.0, gt=0)
    eval_every: int = Field(10, ge=1)  # optimizer steps; the best score counts
    select_on: Literal["selection", "dev"] = "selection"
    max_steps: int = Field(0, ge=0)
    max_rows: int = Field(0, ge=0)
    seed: int = 42


def _row(num_train_epochs: float, max_seq_len: int, learning_rate: float, eval_every: int, **other: Any) -> dict:
    return {
        "num_train_epochs": num_train_epochs, "max_seq_len": max_seq_len, "learning_rate": learning_rate,
        "eval_every": eval_every, **other,
    }  # fmt: skip


# AutoTinyBERT's superbert_run_en_classifier; it has nothing for the last three, which take their relatives' numbers
PUBLISHED: dict[str, dict[str, Any]] = {
    "cola": _row(10, 64, 1e-5, 50),
    "mnli": _row(4, 128, 3e-5, 500),
    "mrpc": _row(10, 128, 2e-5, 10),
    "sst2": _row(4, 64, 2e-5, 100),
    "stsb": _row(10, 128, 3e-5, 10),
    "qqp": _row(5, 128, 2e-5, 500),
    "qnli": _row(10, 128, 2e-5, 500),
    "rte": _row(10, 128, 2e-5, 10),
    "squad1": _row(4, 384, 3e-5, 500, batch_size=16),
    "squad2": _row(4, 384, 3e-5, 500, batch_size=16),
    "mnli_mm": _row(4, 128, 3e-5, 500),
    "wnli": _row(10, 128, 2e-5, 10),
}
assert PUBLISHED.keys() == TASKS.keys()


def recipe(task: str, changes: Mapping[str, Any], **settings: Any) -> Recipe:
    """The published recipe of a task with `changes` and, for all tasks alike, `settings`.

    Raises ValueError for an unknown task and ParamsError for what is no part of a recipe.
    """
    task_named(task)
    return Recipe.checked({"task": task, **PUBLISHED[task], **settings, **changes}, lambda name: f"recipes.{task}: ")


@dataclass(frozen=True)
class Job:
    """An architecture to be fine-tuned on a task, up to a share of the recipe's steps."""

    config: CompactBertConfig
    task: str
    seed: int  # of the order of rows, dropout and the new head
    share: float
    folder: Path  # where it saves itself; another job with a larger share goes on from there


@dataclass
class Evaluator:
    """Fine-tunes slices of one supernet. The rows of a task are read once."""

    supernet: Path
    recipes: dict[str, Recipe]
    data: dict[str, TaskData] = field(default_factory=dict)

    def __call__(self, job: Job) -> dict[str, Any]:
        """The best score up to the share's end, its step, and the error where the training diverged: then score 0.

        A function of the job alone: it begins with the job's seed, whoever works on it.
        """
        recipe, task = self.recipes[job.task], task_named(job.task)
        torch.manual_seed(job.seed)
        whole, tokenizer = task.open_model(str(self.supernet))  # read anew each time: less memory, and the same head
        sizes = {name: getattr(job.config, name) for name in elastic.ELASTIC}
        model = on_device(elastic.extract(whole, whole.config.changed(**sizes)))
        del whole
        if job.task not in self.data:
            splits = ("train", recipe.select_on)
            self.data[job.task] = task_data(task, recipe, tokenizer, batch_size=recipe.batch_size, splits=splits)
        data = self.data[job.task]
        batches = replace(data, seed=job.seed).batches(drop_last=True)
        num_steps = steps(recipe.num_train_epochs, len(batches), recipe.max_steps)
        optimizer = adamw([model], recipe.learning_rate)
        try:
            best = fit(
                model,
                batches,
                supervised(model),
                optimizer,
                linear_schedule(optimizer, num_steps, recipe.warmup_ratio),
                math.ceil(job.share * num_steps),
                label=job.task,
                state=TrainingState(job.folder),
                evaluate=lambda: data.score(model, recipe.select_on).value,
                eval_every=recipe.eval_every,
                planned_steps=num_steps,
            )
        except FloatingPointError as error:
            return {"score": 0.0, "step": 0, "error": str(error)}
        known = best.score is not None and math.isfinite(best.score)  # a correlation of equal answers is none
        return {"score": best.score if known else 0.0, "step": best.step, "error": ""}
