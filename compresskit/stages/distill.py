"""Two-step distillation of a task model into a smaller one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pandas as pd
from pydantic import Field

from compresskit.models import elastic
from compresskit.stages.finetune import finish_task_model
from compresskit.stages.inputs import board
from compresskit.stages.params import Params
from compresskit.stages.session import DEVICE, Session, steps
from compresskit.stages.tasks import TaskData, TaskModel, task_data, task_named
from compresskit.training import distill
from compresskit.training.loop import fit
from compresskit.training.optim import adamw, linear_schedule


class DistillParams(Params):
    """Parameters of the stage `distill`."""

    task: str = "sst2"
    teacher: str = "models:/demo-teacher@latest"  # a task model: a run, a registered model, a folder or a hub id
    student: str = ""  # the student's start; empty: layers of the teacher
    student_layers: list[int] = []  # teacher layers, from 1, that the student begins as; empty: every second
    layer_mapping: list[int] = []  # teacher layer for each student layer, from 1; empty: uniform
    data_dir: str = "bundled"  # a folder or hub id; "bundled"; empty: $COMPRESSKIT_DATA
    max_seq_len: int = Field(128, ge=8)
    doc_stride: int = Field(128, ge=1)  # SQuAD: tokens from the start of one window to the next
    max_query_length: int = Field(64, ge=1)  # SQuAD: longer questions are cut, in tokens
    batch_size: int = Field(32, ge=1)
    intermediate_learning_rate: float = Field(5e-5, gt=0)
    intermediate_epochs: float = Field(3.0, ge=0)  # 0: the prediction step alone
    prediction_learning_rate: float = Field(3e-5, gt=0)
    prediction_epochs: float = Field(3.0, gt=0)
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    temperature: float = Field(1.0, gt=0)
    evals_per_epoch: int = Field(2, ge=1)
    select_on: Literal["selection", "dev"] = "selection"  # rows that choose the checkpoint; dev reproduces the papers
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
    mapping: list[int]

    def shapes(self) -> pd.DataFrame:
        """Teacher and student side by side, and which teacher layer each student layer learns from."""
        names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "qkv_size", "intermediate_size")
        models = {"teacher": self.teacher, "student": self.student}
        table = pd.DataFrame(
            {who: {name: m.config.brief(name) for name in names} for who, m in models.items()}, dtype=object
        )
        table.loc["parameters"] = [m.num_parameters() for m in models.values()]
        table.loc["learns from"] = ["", str(self.mapping)]
        return table

    def train(self) -> pd.DataFrame:
        """Both steps; goes on where a stopped run of the same parameters ended. Returns step, key, value."""
        first = self.train_intermediate() if self.params.intermediate_epochs else 0
        self.train_prediction(first)
        return self.session.run.history()

    def train_intermediate(self) -> int:
        """Attention scores and hidden states, no answers yet: nothing to choose by, the last weights go on."""
        params, batches = self.params, self.data.batches()
        num_steps = steps(params.intermediate_epochs, len(batches), params.max_steps)
        project = distill.projection(self.student.config.hidden_size, self.teacher.config.hidden_size)
        modules = [self.student] if project is None else [self.student, project.to(DEVICE)]
        optimizer = adamw(modules, params.intermediate_learning_rate)
        fit(
            self.student,
            batches,
            distill.intermediate(self.student, self.teacher, self.mapping, project),
            optimizer,
            linear_schedule(optimizer, num_steps, params.warmup_ratio),
            num_steps,
            label="distill: intermediate layers",
            state=self.session.state("intermediate"),
            parts={} if project is None else {"projection": project},
            observe=lambda step, numbers: self.session.observe(
                step, {name.replace("train/", "train/intermediate_"): value for name, value in numbers.items()}
            ),
        )
        return num_steps

    def train_prediction(self, offset: int) -> None:
        """The teacher's answers; the best checkpoint on the selection rows is kept."""
        params, batches = self.params, self.data.batches()
        num_steps = steps(params.prediction_epochs, len(batches), params.max_steps)
        optimizer = adamw([self.student], params.prediction_learning_rate)
        fit(
            self.student,
            batches,
            self.data.task.prediction(self.student, self.teacher, params.temperature),
            optimizer,
            linear_schedule(optimizer, num_steps, params.warmup_ratio),
            num_steps,
            label="distill: prediction",
            state=self.session.state("prediction"),
            evaluate=lambda: self.data.score(self.student, params.select_on).value,
            eval_every=max(1, len(batches) // params.evals_per_epoch),
            observe=lambda step, numbers: self.session.observe(offset + step, numbers),
        )

    def finish(self) -> pd.DataFrame:
        """Score on the rows that chose the checkpoint, model and row of results. Dev rows are the stage evaluate's."""
        return finish_task_model(self.session, self.student, self.data, self.params.select_on, self.params.register_as)


def open(params: DistillParams) -> Distill:
    """Load teacher, student and data, start the run."""
    task = task_named(params.task)
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
    teacher, tokenizer = task.open_model(params.teacher, trained=True)
    if params.student:
        student, _ = task.open_model(params.student)
    else:
        chosen = params.student_layers or range(2, teacher.config.num_hidden_layers + 1, 2)
        layers = [layer - 1 for layer in chosen]
        student = elastic.extract(teacher, teacher.config.changed(num_hidden_layers=len(layers)), layers)
    depths = (student.config.num_hidden_layers, teacher.config.num_hidden_layers)
    mapping = [0, *params.layer_mapping] if params.layer_mapping else distill.uniform_mapping(*depths)
    data = task_data(task, params, tokenizer, batch_size=params.batch_size)
    session.run.input(params.task, data.source, data.train)
    return Distill(params, session, data, teacher, student, mapping)
