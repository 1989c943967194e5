"""Distillation of a task model into a smaller one: layers, then answers, or both together."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pandas as pd
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from compresskit import tracking
from compresskit.data.batching import Batches
from compresskit.models import CompactBertForSequenceClassification, checkpoints, elastic
from compresskit.stages import distilling
from compresskit.stages.finetune import finish_task_model
from compresskit.stages.inputs import board
from compresskit.stages.params import Params
from compresskit.stages.session import Precision, Session, autocast_dtype, model_folder, on_device, steps
from compresskit.stages.tasks import TaskData, TaskModel, task_data, task_named
from compresskit.training import distill, distill_probabilities
from compresskit.training.distill_probabilities import Distance
from compresskit.training.loop import Losses, fit
from compresskit.training.teacher import TeacherLogits, model_digest

logger = logging.getLogger(__name__)


DEV_BATCH = 4  # training batches, in EfficientBERT's evaluation


class DistillParams(Params):
    """Parameters of the stage `distill`."""

    task: str = "sst2"
    teacher: str = "models:/demo-teacher@latest"  # a task model: a run, a registered model, a folder or a hub id
    teacher_labels: list[str] = []  # names of the teacher's outputs in its order, where its config has none
    student: str = ""  # the student's start; empty: layers of the teacher
    student_layers: list[int] = []  # teacher layers, from 1, that the student begins as; empty: every second
    architecture: str = ""  # published, a model's or a search's, which the student is cut to; empty: its own
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
    joint_learning_rate: float = Field(5e-5, gt=0)
    joint_epochs: float = Field(0.0, ge=0)  # layers and answers together, as EfficientBERT; 0: not
    hidden_ratio: float = Field(1.0, ge=0)  # of the layers' losses in the joint step
    prediction_ratio: float = Field(1.0, ge=0)  # of the answers' loss in it
    precision: Precision = "float32"
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
    layers: distilling.Layers | None  # None: the prediction step alone
    released: dict[str, Tensor]  # projections that came with the student

    def shapes(self) -> pd.DataFrame:
        """Teacher and student side by side, and which teacher layer each student layer learns from."""
        return distilling.shapes(self.teacher, self.student, self.layers.mapping if self.layers else [])

    def train(self) -> pd.DataFrame:
        """All steps asked for; goes on where a stopped run of the same parameters ended. Returns step, key, value."""
        self.check_teacher()
        done = self.train_intermediate(self.layers) if self.layers and self.params.intermediate_epochs else 0
        if self.params.prediction_epochs:
            done += self.train_prediction(done)
        if self.layers and self.params.joint_epochs:
            self.train_together(self.layers, done)
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
            autocast=autocast_dtype(params.precision),
        )
        return num_steps

    def train_prediction(self, offset: int) -> int:
        """The teacher's answers; the best checkpoint on the selection rows is kept. Returns the number of steps."""
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
            autocast=autocast_dtype(params.precision),
            observe=lambda step, numbers: self.session.observe(offset + step, numbers),
        )
        if remembered is not None:
            remembered.keep()
        return num_steps

    def train_together(self, layers: distilling.Layers, offset: int) -> None:
        """Attention scores, hidden states and answers at once; the best checkpoint on the selection rows is kept."""
        params, batches, task = self.params, self.batches(), self.data.task
        num_steps = steps(params.joint_epochs, len(batches), params.max_steps)

        def losses(teacher: PreTrainedModel) -> Losses:
            return distill.together(
                self.student,
                teacher,
                layers.mapping,
                layers.project,
                task.original_answers if params.faithful else task.answers,
                hidden_ratio=params.hidden_ratio,
                prediction_ratio=params.prediction_ratio,
                temperature=params.temperature,
                padded=params.faithful,
            )

        sample = batches.from_step(0, min(2, num_steps))
        teacher = distilling.teacher_as_asked(params, self.session, self.teacher, self.student, losses, sample)
        fit(
            self.student,
            batches,
            losses(teacher),
            *distilling.optimizer(params, layers.modules, params.joint_learning_rate, num_steps, "", "efficientbert"),
            num_steps,
            label="distill: layers and answers",
            state=self.session.state("joint"),
            parts=layers.parts,
            evaluate=self.chosen_by,
            eval_every=max(1, len(batches) // params.evals_per_epoch),
            patience=params.patience,
            planned_steps=steps(params.joint_epochs, len(batches), 0),
            max_grad_norm=distilling.max_grad_norm(params, "efficientbert"),
            autocast=autocast_dtype(params.precision),
            observe=lambda step, numbers: self.session.observe(offset + step, numbers),
        )

    def chosen_by(self) -> float:
        """What chooses the checkpoint of the joint step: the score; faithful: the mean of those of batches."""
        record = self.data.predict(self.student, self.params.select_on)
        if self.params.faithful:
            return self.data.task.original_score(record, DEV_BATCH * self.params.batch_size)
        return self.data.task.score(record).value

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
    if not (params.intermediate_epochs or params.prediction_epochs or params.joint_epochs):
        raise ValueError("all steps are off; set intermediate_epochs, prediction_epochs or joint_epochs above 0")
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
    if params.architecture:
        student = on_device(
            distilling.cut(student, distilling.architecture(params.architecture), False, params.seed)[0]
        )
    if params.faithful and isinstance(student, CompactBertForSequenceClassification):
        student.dropout.p = 0.0  # TinyBERT's code has this dropout and never applies it
    learned = params.intermediate_epochs or params.joint_epochs
    layers = distilling.Layers.of(params, teacher, student, released, compared=compared(params)) if learned else None
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
