"""Two-step distillation of a task model into a smaller one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pandas as pd
from pydantic import Field
from torch import Tensor

from compresskit import tracking
from compresskit.data.batching import Batches
from compresskit.models import CompactBertForSequenceClassification, checkpoints, elastic
from compresskit.stages import distilling
from compresskit.stages.finetune import finish_task_model
from compresskit.stages.inputs import board
from compresskit.stages.params import Params
from compresskit.stages.session import Session, model_folder, steps
from compresskit.stages.tasks import TaskData, TaskModel, task_data, task_named
from compresskit.training import distill, distill_probabilities
from compresskit.training.distill_probabilities import Distance
from compresskit.training.loop import Losses, fit
from compresskit.training.teacher import TeacherLogits, model_digest

logger = logging.getLogger(__name__)


class DistillParams(Params):
    """Parameters of the stage `distill`."""

    task: str = "sst2"
    teacher: str = "models:/demo-teacher@latest"  # a task model: a run, a registered model, a folder or a hub id
    teacher_labels: list[str] = []  # names of the teacher's outputs in its order, where its config has none
    student: str = ""  # the student's start; empty: layers of the teacher
    student_layers: list[int] = []  # teacher layers, from 1, that the student begins as; empty: every second
    layer_mapping: list[int] = []  # teacher layer for each student layer, from 1; empty: uniform
    projection: Literal["shared", "per_layer"] = "shared"  # from student to teacher width, where these differ
    attention: Literal["scores", "probabilities"] = "scores"  # compared in the first step; TinyBERT, Dynamic-TinyBERT
    attention_distance: Distance = "mse"  # of probabilities: mse, or cosine over the keys of a query
    attention_ratio: float = Field(1.0, ge=0)  # what they count for
    state_distance: Distance = "mse"  # of hidden states, beside probabilities: mse, or cosine over the features
    state_ratio: float = Field(1.0, ge=0)  # what they count for
    partial_states: bool = False  # of them, compare the embedding's output and the last alone
    teacher_dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # in the first step; auto: bfloat16 if it is fast
    data_dir: str = "bundled"  # a folder or hub id; "bundled"; empty: $COMPRESSKIT_DATA
    augmented: str = ""  # what the stage augment made of train: a run's, or a folder; empty: train alone
    max_seq_len: int = Field(128, ge=8)
    doc_stride: int = Field(128, ge=1)  # SQuAD: tokens from the start of one window to the next
    max_query_length: int = Field(64, ge=1)  # SQuAD: longer questions are cut, in tokens
    batch_size: int = Field(32, ge=1)
    intermediate_learning_rate: float = Field(5e-5, gt=0)
    intermediate_epochs: float = Field(3.0, ge=0)  # 0: the prediction step alone
    prediction_learning_rate: float = Field(3e-5, gt=0)
    prediction_epochs: float = Field(3.0, ge=0)  # 0: the intermediate step alone
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    temperature: float = Field(1.0, gt=0)
    evals_per_epoch: int = Field(2, ge=1)
    patience: int = Field(0, ge=0)  # stop after this many evaluations without a better score; 0: never
    select_on: Literal["selection", "dev"] = "selection"  # rows that choose the checkpoint; dev reproduces the papers
    faithful: bool = False  # as TinyBERT's code: BertAdam, its schedules, padding to max_seq_len that counts, …
    max_steps: int = Field(0, ge=0)  # stop earlier, for smoke tests; 0: no limit
    max_rows: int = Field(0, ge=0)  # keep this many rows of each split, for smoke tests; 0: all
    threads: int = Field(0, ge=0)  # of torch; 0: all cores
    register_as: str = ""
    seed: int = 42


@dataclass
class Distill:
    """The opened stage."""

    params: DistillParams
    session: Session
    data: TaskData
    teacher: TaskModel
    student: TaskModel
    layers: distilling.Layers | None  # None: the first step is left out
    released: dict[str, Tensor]  # projections that came with the student

    def shapes(self) -> pd.DataFrame:
        """Teacher and student side by side, and which teacher layer each student layer learns from."""
        return distilling.shapes(self.teacher, self.student, self.layers.mapping if self.layers else [])

    def train(self) -> pd.DataFrame:
        """Both steps; goes on where a stopped run of the same parameters ended. Returns step, key, value."""
        self.check_teacher()
        first = self.train_intermediate(self.layers) if self.layers else 0
        if self.params.prediction_epochs:
            self.train_prediction(first)
        return self.session.run.history()

    def check_teacher(self) -> None:
        """Score the teacher on the rows that choose the checkpoint; warn where there is nothing to learn from it."""
        score = self.data.score(self.teacher, self.params.select_on)
        self.session.observe(0, {"select/teacher_score": score.value})
        if score.near_chance:
            logger.warning(
                "the teacher scores %.3f on %d rows of %s, near the %.3f of a guess that ignores the text: check that "
                "it was fine-tuned on this task and that its labels are in the right order (teacher_labels)",
                score.value, score.rows, self.params.task, score.majority,
            )  # fmt: skip

    def train_intermediate(self, layers: distilling.Layers) -> int:
        """Attention scores and hidden states; returns the number of steps."""
        params, batches = self.params, self.batches()
        num_steps = steps(params.intermediate_epochs, len(batches), params.max_steps)
        layers.learn(
            self.session,
            batches,
            learning_rate=params.intermediate_learning_rate,
            num_steps=num_steps,
            planned_steps=steps(params.intermediate_epochs, len(batches), 0),
            schedule="none",
            schedule_steps=num_steps,
            label="distill: intermediate layers",
            state=self.session.state("intermediate"),
            observe=lambda step, numbers: self.session.observe(
                step, {name.replace("train/", "train/intermediate_"): value for name, value in numbers.items()}
            ),
        )
        return num_steps

    def train_prediction(self, offset: int) -> None:
        """The teacher's answers; the best checkpoint on the selection rows is kept."""
        params, task = self.params, self.data.task
        remembered = self.remembered()
        batches = self.batches(with_index=remembered is not None)
        num_steps = steps(params.prediction_epochs, len(batches), params.max_steps)
        known: dict[str, Any] = {} if remembered is None else {"teacher_logits": remembered}
        options: dict[str, Any] = known if task.answers_per_row else {"padded": params.faithful}
        fit(
            self.student,
            batches,
            task.prediction(self.student, self.teacher, params.temperature, **options),
            *distilling.optimizer(params, [self.student], params.prediction_learning_rate, num_steps, "warmup_linear"),
            num_steps,
            label="distill: prediction",
            state=self.session.state("prediction"),
            parts=known,
            evaluate=lambda: self.data.score(self.student, params.select_on).value,
            eval_every=max(1, len(batches) // params.evals_per_epoch),
            patience=params.patience,
            planned_steps=steps(params.prediction_epochs, len(batches), 0),
            max_grad_norm=distilling.max_grad_norm(params),
            observe=lambda step, numbers: self.session.observe(offset + step, numbers),
        )
        if remembered is not None:
            remembered.keep()

    def batches(self, with_index: bool = False) -> Batches:
        """Training batches, in the order that `distilling.batch_order` gives."""
        return self.data.batches(with_index=with_index, **distilling.batch_order(self.params))

    def remembered(self) -> TeacherLogits | None:
        """The teacher's answers by row; None where a row has no fixed number of them, or the loss does not ask."""
        if not self.data.task.answers_per_row or self.teacher.config.num_labels == 1:
            return None
        key = f"{model_digest(self.teacher)}-{tracking.digest(self.data.train)}"
        path = tracking.project_root() / ".cache" / "teacher_logits" / f"{key}.safetensors"
        return TeacherLogits(self.teacher, len(self.data.train), path, key)

    def finish(self) -> pd.DataFrame:
        """Score on the rows that chose the checkpoint, model and row of results. Dev rows are the stage evaluate's."""
        return finish_task_model(
            self.session,
            self.student,
            self.data,
            self.params.select_on,
            self.params.register_as,
            training_only=(self.layers.released_form() if self.layers else {}) or self.released,
        )


def open(params: DistillParams) -> Distill:
    """Load teacher, student and data, start the run."""
    task = task_named(params.task)
    if not params.intermediate_epochs and not params.prediction_epochs:
        raise ValueError("both steps are off; set intermediate_epochs or prediction_epochs above 0")
    if params.student and params.student_layers:
        raise ValueError("the student's start is named twice; give student, or student_layers of the teacher")
    session = Session(
        "distill",
        params,
        experiment=board(params.task, params.data_dir),
        name=f"distill-{params.task}-{params.seed}",
        seed=params.seed,
        threads=params.threads,
    )
    teacher, tokenizer = task.open_model(params.teacher, trained=True, labels=params.teacher_labels)
    released: dict[str, Tensor] = {}
    if params.student:
        student, own = task.open_model(params.student)
        distilling.check_vocabularies(own, tokenizer)
        released = checkpoints.read(model_folder(params.student)).training_only
    else:
        every_second = range(2, teacher.config.num_hidden_layers + 1, 2)
        student = elastic.keep_layers(teacher, params.student_layers or every_second)
    if params.faithful and isinstance(student, CompactBertForSequenceClassification):
        student.dropout.p = 0.0  # TinyBERT's code has this dropout and never applies it
    layers = None
    if params.intermediate_epochs:
        layers = distilling.Layers.of(params, teacher, student, released, compared(params))
    data = task_data(task, params, tokenizer, batch_size=params.batch_size, augmented=params.augmented)
    session.run.input(params.task, data.source, data.train)
    return Distill(params, session, data, teacher, student, layers, released)


def compared(params: DistillParams) -> Callable[..., Losses]:
    """What the first step compares. Raises ValueError for distances and ratios that attention scores do not have."""
    measures = distill_probabilities.Measures(
        states=params.state_distance,
        attention=params.attention_distance,
        state_ratio=params.state_ratio,
        attention_ratio=params.attention_ratio,
        partial_states=params.partial_states,
    )
    if params.attention == "probabilities":
        if not params.state_ratio and not params.attention_ratio:
            raise ValueError("state_ratio and attention_ratio are both 0; set one of them above 0")
        return partial(distill_probabilities.intermediate, measures=measures)
    if measures != distill_probabilities.Measures():
        raise ValueError(
            "distances, ratios and partial_states need attention: probabilities; set it, or leave them out"
        )
    return distill.intermediate
