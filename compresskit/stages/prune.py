"""Pruning a model by magnitude while it learns a task: from a dense teacher, or from labels alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pandas as pd
from pydantic import Field

from compresskit.models import CompactBertForSequenceClassification, sparse
from compresskit.pruning.masks import KINDS, Kind, MagnitudePruner, Threshold, prunable
from compresskit.pruning.patterns import TWO_OF_FOUR, Pattern
from compresskit.pruning.schedule import pruning_window
from compresskit.stages import distilling
from compresskit.stages.finetune import finish_task_model
from compresskit.stages.inputs import board
from compresskit.stages.params import Params
from compresskit.stages.session import Session, steps
from compresskit.stages.tasks import TaskData, TaskModel, task_data, task_named
from compresskit.training import prune
from compresskit.training.finetune import supervised
from compresskit.training.loop import Losses, fit


class PruneParams(Params):
    """Parameters of the stage `prune`."""

    task: str = "sst2"
    model: str = "models:/demo-teacher@latest"  # what is pruned: a run, a registered model, a folder or a hub id
    teacher: str = ""  # a task model of the same shape; empty: the model as it is before pruning
    learn_from: Literal["teacher", "labels"] = "teacher"  # labels: no teacher is asked
    sparsity: float = Field(0.95, gt=0, lt=1)  # share of zeros at the end among the matrices that are pruned
    matrices: list[Kind] = []  # query, key, value, attention_output, intermediate, output; empty: all of these
    threshold: Threshold = "matrix"  # matrix: each reaches the sparsity; global: all of them together
    pattern: Pattern = "unstructured"  # 4x1, 8x1, 16x1, 1x2, 1x4: weights (outputs x inputs) that go together; or "2:4"
    begin_share: float = Field(0.0, ge=0, lt=1)  # part of the steps before the sparsity rises
    pruning_share: float = Field(0.7, ge=0, le=1)  # part in which it rises; 0: at once; faithful: up to the last step
    frequency: int = Field(0, ge=0)  # steps between two updates of the masks; 0: about 100 updates
    restore_sparsity: bool = False  # go on from the zeros that the model has
    fix_sparsity: bool = False  # keep exactly the zeros that the model has; sparsity and its schedule do not count
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
    checkpoint: Literal["best", "last"] = "best"  # best: of those at the final sparsity
    select_on: Literal["selection", "dev"] = "selection"  # rows that choose the checkpoint; dev reproduces the papers
    faithful: bool = False  # as SparseBERT's code: BertAdam, constant rate, padding counts, its updates of the masks
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
    teacher: TaskModel | None  # None: labels are learned from
    model: TaskModel

    def train(self) -> pd.DataFrame:
        """Prune while learning; goes on where a stopped run of the same parameters ended.

        Returns step, key, value.
        """
        params, batches = self.params, self.data.batches(**distilling.batch_order(self.params))
        num_steps = steps(params.num_train_epochs, len(batches), params.max_steps)
        pruner = self.pruner(num_steps)

        def score_when_sparse() -> float | None:  # only checkpoints at the final sparsity compete
            return self.data.score(self.model, params.select_on).value if pruner.final else None

        def observe(step: int, numbers: Mapping[str, float]) -> None:
            self.session.observe(step, {**numbers, "train/sparsity": pruner.sparsity()})

        fit(
            self.model,
            batches,
            self.losses(),
            *distilling.optimizer(params, [self.model], params.learning_rate, num_steps, "none"),
            num_steps,
            label="prune",
            state=self.session.state(),
            parts={"pruner": pruner},
            after_step=pruner.step,
            evaluate=score_when_sparse,
            eval_every=max(1, len(batches) // params.evals_per_epoch) if params.checkpoint == "best" else 0,
            planned_steps=steps(params.num_train_epochs, len(batches), 0),
            max_grad_norm=distilling.max_grad_norm(params),
            observe=observe,
        )
        return self.session.run.history()

    def losses(self) -> Losses:
        """What is minimised: all three distillation losses at once, or the model's own loss on the labels."""
        if self.teacher is None:
            return supervised(self.model)
        params = self.params
        return prune.all_layers(self.model, self.teacher, params.temperature, self.data.task.answers, params.faithful)

    def pruner(self, num_steps: int) -> MagnitudePruner:
        """Which weights go, how many, and when, in a run of so many steps."""
        params = self.params
        share = 1.0 - params.begin_share if params.faithful else params.pruning_share
        names = prunable(dict(self.model.named_parameters()), params.matrices or KINDS)
        pruner = MagnitudePruner(
            self.model,
            dict.fromkeys(names, params.sparsity),
            *pruning_window(num_steps, params.begin_share, share),
            params.frequency or None,
            threshold=params.threshold,
            pattern=params.pattern,
            restore_sparsity=params.restore_sparsity or params.fix_sparsity,
            fix_sparsity=params.fix_sparsity,
            faithful=params.faithful,
        )
        if params.fix_sparsity and not pruner.sparsity():
            raise ValueError(f"fix_sparsity keeps the zeros of {params.model}, which has none; prune it first")
        return pruner

    def finish(self) -> pd.DataFrame:
        """Score on the rows that chose the checkpoint, model and row of results. Dev rows are the stage evaluate's."""
        return finish_task_model(self.session, self.model, self.data, self.params.select_on, self.params.register_as)


def open(params: PruneParams) -> Prune:
    """Load model, teacher and data, start the run.

    Raises ValueError where parameters contradict each other, or the model is not what they ask for.
    """
    task = task_named(params.task)
    if not params.faithful and params.begin_share + params.pruning_share > 1 + 1e-9:
        raise ValueError(
            f"begin_share {params.begin_share} and pruning_share {params.pruning_share} are more than the whole run; "
            "lower one of them, so that their sum is at most 1"
        )
    if params.pattern == "2:4" and params.sparsity != TWO_OF_FOUR and not params.fix_sparsity:
        raise ValueError(f"pattern 2:4 leaves 2 of every 4 weights, not a sparsity of {params.sparsity}; set it to 0.5")
    session = Session(
        "prune",
        params,
        experiment=board(params.task, params.data_dir),
        name=f"prune-{params.task}-{params.seed}",
        seed=params.seed,
        threads=params.threads,
    )
    taught = params.learn_from == "teacher"
    model, tokenizer = task.open_model(params.model, trained=taught and not params.teacher)
    model = sparse.to_dense(model)
    teacher = None
    if taught:
        teacher, theirs = task.open_model(params.teacher or params.model, trained=True)
        distilling.check_vocabularies(tokenizer, theirs)
    if params.faithful and isinstance(model, CompactBertForSequenceClassification):
        model.dropout.p = 0.0  # the original has this dropout and never applies it
    data = task_data(task, params, tokenizer, batch_size=params.batch_size, augmented=params.augmented)
    session.run.input(params.task, data.source, data.train)
    return Prune(params, session, data, teacher, model)
