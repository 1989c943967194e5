"""Several GLUE tasks distilled into one encoder with a head for each, or into a supernet of feed-forward sizes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
from pydantic import Field, field_validator

from compresskit.data.batching import Mixed
from compresskit.data.glue import TASKS
from compresskit.evaluation.scores import Score
from compresskit.models import CompactBertForMultitask, checkpoints
from compresskit.stages import distilling
from compresskit.stages.classifiers import open_classifier
from compresskit.stages.inputs import BUNDLED, tokenizer_for
from compresskit.stages.params import Params
from compresskit.stages.session import Precision, Session, autocast_dtype, model_folder, on_device, steps
from compresskit.stages.tasks import Reading, TaskData, task_data, task_named
from compresskit.training import distill
from compresskit.training.loop import Losses, fit
from compresskit.training.multitask import by_task


class MultitaskParams(Params):
    """Parameters of the stage `multitask`."""

    teachers: dict[str, str] = {"sst2": "models:/demo-teacher@latest"}  # by task: each gets a head
    student: str = "models:/demo-encoder@latest"  # the start: an encoder, or a multi-task model
    architecture: str = (
        ""  # published, or a model's or a search's, which the student is cut to; empty: the student's own
    )
    random_sizes: bool = False  # at each step other feed-forward sizes learn, the architecture's or any of the 16
    layer_mapping: list[int] = []  # teacher layer for each student layer, from 1; empty: uniform
    projection: Literal["shared", "per_layer"] = "shared"  # from student to teacher width, where these differ
    teacher_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    precision: Precision = "float32"
    data_dir: str = "bundled"  # a folder or hub id; "bundled"; empty: $COMPRESSKIT_DATA
    max_seq_len: int = Field(128, ge=8)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(4e-4, gt=0)
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    num_train_epochs: float = Field(10.0, gt=0)
    hidden_ratio: float = Field(1.0, ge=0)  # of the layers' losses
    prediction_ratio: float = Field(1.0, ge=0)  # of the answers' loss
    temperature: float = Field(1.0, gt=0)
    faithful: bool = False
    max_steps: int = Field(0, ge=0)  # stop earlier, for smoke tests; 0: no limit
    max_rows: int = Field(0, ge=0)  # keep this many rows of each split, for smoke tests; 0: all
    threads: int = Field(0, ge=0)  # of torch; 0: all cores
    register_as: str = ""
    seed: int = 42

    @field_validator("teachers")
    @classmethod
    def _of_glue(cls, teachers: dict[str, str]) -> dict[str, str]:
        wrong = [task for task in teachers if task not in TASKS]
        if wrong or not teachers:
            raise ValueError(f"should name a teacher for GLUE tasks ({', '.join(TASKS)}), not for {wrong or 'none'}")
        return teachers


@dataclass
class Multitask:
    """The opened stage."""

    params: MultitaskParams
    session: Session
    tokenizer: Any
    student: CompactBertForMultitask
    layers: dict[str, distilling.Layers]  # by task: its teacher, and the part of the student that learns from it
    data: dict[str, TaskData]
    scores: dict[str, Score] = field(default_factory=dict)

    def describe(self) -> pd.DataFrame:
        """Rows, tokens per row and the like, for each task and split."""
        return pd.concat({task: data.describe() for task, data in self.data.items()}, names=["task"])

    def shapes(self) -> pd.DataFrame:
        """Teacher and student of the first task side by side."""
        first = next(iter(self.layers.values()))
        return distilling.shapes(first.teacher, first.student, first.mapping)

    def batches(self) -> Mixed:
        """All batches of all tasks in random order; faithful: each of them of rows in the order of the file."""
        order: dict[str, Any] = {}
        if self.params.faithful:
            order = {"shuffle": False, "length_buckets": False, "pad_to": self.params.max_seq_len}
        return Mixed([data.batches(**order) for data in self.data.values()], self.params.seed)

    def train(self) -> pd.DataFrame:
        """Distil all tasks; goes on where a stopped run of the same parameters ended. Returns step, key, value."""
        params, batches = self.params, self.batches()
        num_steps = steps(params.num_train_epochs, len(batches), params.max_steps)
        first = next(iter(self.layers.values()))
        modules = [self.student, *first.modules[1:]]  # one projection for all
        fit(
            self.student,
            batches,
            by_task([self.losses(task) for task in self.layers]),
            *distilling.optimizer(params, modules, params.learning_rate, num_steps, "", "efficientbert"),
            num_steps,
            label="multitask",
            state=self.session.state(),
            parts=first.parts,
            planned_steps=steps(params.num_train_epochs, len(batches), 0),
            max_grad_norm=distilling.max_grad_norm(params, "efficientbert"),
            autocast=autocast_dtype(params.precision),
            observe=self.session.observe,
        )
        self.scores = {task: data.score(self.layers[task].student, "selection") for task, data in self.data.items()}
        self.session.observe(num_steps, {f"select/{task}": score.value for task, score in self.scores.items()})
        return self.session.run.history()

    def losses(self, task: str) -> Losses:
        """What is minimised in a batch of one task."""
        params, layers = self.params, self.layers[task]

        def of(teacher: Any) -> Losses:
            return distill.together(
                layers.student,
                teacher,
                layers.mapping,
                layers.project,
                hidden_ratio=params.hidden_ratio,
                prediction_ratio=params.prediction_ratio,
                temperature=params.temperature,
                padded=params.faithful,
                network=layers.network,
            )

        sample = self.data[task].batches().from_step(0, 1)
        return of(distilling.teacher_as_asked(params, self.session, layers.teacher, layers.student, of, sample))

    def table(self) -> pd.DataFrame:
        """Score, interval and rows of each task, on rows that were not trained on."""
        rows = {
            task: {"score": s.value, "low": s.low, "high": s.high, "rows": s.rows} for task, s in self.scores.items()
        }
        return pd.DataFrame(rows).T

    def finish(self) -> pd.DataFrame:
        """Keep the model with all its heads; returns the row of results."""
        found = {task: score.value for task, score in self.scores.items()}
        result = {
            "mean_score": sum(found.values()) / len(found),
            **{f"{task}_score": value for task, value in found.items()},
            "parameters": self.student.num_parameters(),
        }
        card = {"stage": "multitask", "tasks": list(self.layers), "random_sizes": self.params.random_sizes, **result}
        projection = next(iter(self.layers.values())).released_form()
        model = self.session.keep(self.student, self.tokenizer, card, self.params.register_as or None, projection)
        return self.session.finish({"model": model, **result})


def open(params: MultitaskParams) -> Multitask:
    """Load the student and all teachers, which stay in memory, and the rows of all tasks; start the run.

    Raises ValueError where student and teachers do not go together.
    """
    folder = model_folder(params.student)
    found = checkpoints.read(folder)
    tokenizer = tokenizer_for(folder, found.architecture().vocab_size)
    wanted = distilling.architecture(params.architecture) if params.architecture else None
    board = f"multitask-{BUNDLED}" if params.data_dir == BUNDLED else "multitask"
    session = Session(
        "multitask", params, experiment=board, name=f"multitask-{params.seed}", seed=params.seed, threads=params.threads
    )
    sizes = {task: TASKS[task].num_labels for task in params.teachers}
    if found.config.get("tasks") != sizes:  # a head of another place or size is another task's
        found.weights = {name: t for name, t in found.weights.items() if not name.startswith(("classifiers.", "cls."))}
    whole = found.model(CompactBertForMultitask, tasks=sizes)
    student, network = distilling.cut(whole, wanted, params.random_sizes, params.seed)
    on_device(student)
    layers: dict[str, distilling.Layers] = {}
    data: dict[str, TaskData] = {}
    for task, source in params.teachers.items():
        teacher, theirs = open_classifier(source, TASKS[task], trained=True)
        distilling.check_vocabularies(tokenizer, theirs)
        pair = distilling.Layers.of(params, teacher, student.for_task(task), found.training_only, network)
        if layers:
            first = next(iter(layers.values()))
            own, others = (layer.teacher.config.hidden_size for layer in (pair, first))
            if own != others:
                raise ValueError(
                    f"the teacher of {task} is {own} wide, that of {next(iter(layers))} {others}; one projection "
                    "serves all, so give teachers of one width"
                )
            pair.project = first.project
        layers[task] = pair
        reading = Reading(task, params.data_dir, params.max_seq_len, max_rows=params.max_rows, seed=params.seed)
        data[task] = task_data(task_named(task), reading, tokenizer, batch_size=params.batch_size)
        session.run.input(task, data[task].source, data[task].train)
    return Multitask(params, session, tokenizer, student, layers, data)
