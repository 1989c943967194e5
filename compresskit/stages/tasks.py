"""What a task is to a stage: a model with its head, rows, losses and a score. GLUE and SQuAD answer the same calls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
from datasets import Dataset
from transformers import PreTrainedModel

from compresskit import tracking
from compresskit.data import augment_files, glue, squad, squad_features
from compresskit.data.batching import Batches
from compresskit.evaluation import glue as label_scores
from compresskit.evaluation import squad as span_scores
from compresskit.evaluation import squad_answers
from compresskit.evaluation.scores import Score
from compresskit.models import CompactBertForQuestionAnswering, CompactBertForSequenceClassification, checkpoints
from compresskit.stages import length_choice
from compresskit.stages.classifiers import open_classifier
from compresskit.stages.inputs import data_folder, glue_source, tokenizer_for
from compresskit.stages.session import model_folder, on_device
from compresskit.stages.yaml_text import did_you_mean
from compresskit.training import distill, distill_spans, prune
from compresskit.training.loop import Batch
from compresskit.training.progress import watched

SPLITS = ("train", "selection", "dev")
EVALUATION_TOKENS = 8192  # of a batch without gradients: 64 rows of 128
TaskModel = CompactBertForSequenceClassification | CompactBertForQuestionAnswering


class TaskParams(Protocol):
    """The parameters of a stage that say which rows it reads and how they become tokens."""

    task: str
    data_dir: str
    max_seq_len: int
    doc_stride: int
    max_query_length: int
    max_rows: int
    seed: int


class SentenceTask:
    """A GLUE task: a label or a grade for a sentence or a pair."""

    answers_per_row = True  # a fixed number of logits each
    recorded = ("labels", "logits")  # names in a record: what is right, and what the model said
    usual_seq_len = 128  # where nobody says otherwise
    prediction = staticmethod(distill.prediction)  # losses of the second step of distillation
    answers = staticmethod(prune.label_answers)  # the answers' part of the loss while pruning

    def __init__(self, name: str):
        self.name, self.described = name, glue.TASKS[name]

    def open_model(self, source: str, *, trained: bool = False, labels: Sequence[str] = ()) -> tuple[TaskModel, Any]:
        """Model and tokenizer; see `open_classifier`."""
        return open_classifier(source, self.described, trained=trained, labels=labels)

    def source(self, data_dir: str) -> Path | str:
        """Where the rows are read from."""
        return glue_source(data_dir)

    def read(self, source: Path | str, split: glue.Split, max_rows: int) -> Dataset:
        """Rows of "train" or "dev"; max_rows, unless 0, keeps the first ones."""
        rows = glue.read(self.name, source, split)
        return rows.select(range(min(max_rows, len(rows)))) if max_rows else rows

    def divide(self, rows: Dataset, seed: int) -> tuple[Dataset, Dataset]:
        """Rows to train on and rows to choose by."""
        return glue.selection_split(rows, seed)

    def with_copies(self, train: Dataset, folder: str | Path) -> Dataset:
        """The training rows and their copies from a folder of the stage augment; see `augment_files.training_rows`."""
        return augment_files.training_rows(self.name, folder, train)

    def encode(self, rows: Dataset, tokenizer: Any, params: TaskParams, *, training: bool = False) -> Dataset:
        """Token ids and targets, the same whether to train on or not."""
        return glue.encode(rows, tokenizer, params.max_seq_len)

    def describe(self, rows: Dataset) -> dict[str, float]:
        """Share of each label, or mean and spread of the grades."""
        labels = pd.Series(rows["label"][:])
        if self.described.is_regression:
            return {"label mean": labels.mean(), "label std": labels.std()}
        return {f"label {name}": (labels == i).mean() for i, name in enumerate(self.described.labels)}

    def predict(self, model: PreTrainedModel, split: Split, batches: Iterable[Batch]) -> dict[str, Any]:
        """The record of a model's answers, plain values for JSON: labels (N), logits (N, C) to 5 decimals."""
        logits, labels, _ = label_scores.predict(model, batches)
        return {"labels": labels.tolist(), "logits": logits.astype(float).round(5).tolist()}

    def official_files(self, record: dict[str, Any]) -> dict[str, Any]:
        """None: what the server wants of unlabelled rows is the command predict's."""
        return {}

    def score(self, record: dict[str, Any]) -> Score:
        """The score that follows from a record."""
        return label_scores.score(self.name, record["logits"], record["labels"])


class SpanTask:
    """SQuAD: questions whose answer is a part of a paragraph, in 2.0 also questions without one."""

    answers_per_row = False  # one for each token
    recorded = ("answers", "predictions")
    usual_seq_len = 384
    prediction = staticmethod(distill_spans.prediction)
    answers = staticmethod(distill_spans.span_answers)

    def __init__(self, name: str, version: str):
        self.name, self.version = name, version
        self.has_null = version == "2.0"  # questions may have no answer

    def open_model(self, source: str, *, trained: bool = False, labels: Sequence[str] = ()) -> tuple[TaskModel, Any]:
        """Model and tokenizer. A model without a head for questions gets a fresh one; where it must be `trained` it is
        refused with a ValueError, as are names for its outputs: they are start and end.
        """
        if labels:
            raise ValueError(f"{self.name} has no labels, but they are named {', '.join(labels)}; leave them out")
        folder = model_folder(source)
        found = checkpoints.read(folder)
        if trained and "qa_outputs.weight" not in found.weights:
            raise ValueError(f"{source} has no head for questions; fine-tune it on {self.name} first")
        model = on_device(found.model(CompactBertForQuestionAnswering, num_labels=2))
        return length_choice.chosen(model, source), tokenizer_for(folder, model.config.vocab_size)

    def source(self, data_dir: str) -> Path:
        """The folder with the official files: `data_dir` or its folder `squad`."""
        folder = Path(data_folder(data_dir))
        return folder / "squad" if (folder / "squad").is_dir() else folder

    def read(self, source: Path | str, split: glue.Split, max_rows: int) -> list[squad.SquadExample]:
        """Questions of "train" or "dev"; max_rows, unless 0, keeps the first ones."""
        file = Path(source) / f"{split}-v{self.version}.json"
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file; {self.name} is read from a folder that holds {file.name}")
        questions = squad.read(file)
        return questions[:max_rows] if max_rows else questions

    def divide(
        self, rows: list[squad.SquadExample], seed: int
    ) -> tuple[list[squad.SquadExample], list[squad.SquadExample]]:
        """Questions to train on and questions to choose by, about other paragraphs."""
        return squad.selection_split(rows, seed)

    def with_copies(self, train: list[squad.SquadExample], folder: str | Path) -> list[squad.SquadExample]:
        """Refused with a ValueError: a copy in other words would not hold its answer."""
        raise ValueError(
            f"{self.name} has no augmented rows: a copy in other words loses its answer; leave augmented out"
        )

    def encode(
        self, rows: list[squad.SquadExample], tokenizer: Any, params: TaskParams, *, training: bool = False
    ) -> Dataset:
        """Windows over the paragraphs, with targets where they are to train on; kept in the project's .cache."""
        kept = tracking.project_root() / ".cache" / "squad_features"
        sizes = (params.max_seq_len, params.doc_stride, params.max_query_length)
        return squad_features.encode_kept(kept, rows, tokenizer, *sizes, training)

    def describe(self, rows: list[squad.SquadExample]) -> dict[str, float]:
        """Questions, paragraphs, and the share of questions that have no answer."""
        silent = sum(not question.answers for question in rows) / len(rows)
        paragraphs = len({question.context for question in rows})
        return {"questions": len(rows), "paragraphs": paragraphs, "without answer": silent}

    def predict(self, model: PreTrainedModel, split: Split, batches: Iterable[Batch]) -> dict[str, Any]:
        """The record of a model's answers: gold texts, predicted text and `n_best` by question id; for 2.0, predicted
        at null threshold 0, also the null odds and what the best threshold would give.
        """
        logits = span_scores.predict(model, batches)
        found = squad_answers.answers(split.rows, split.encoded, *logits, split.tokenizer, null=self.has_null)
        answers = {question.id: [text for text, _ in question.answers] for question in split.rows}
        record = {"answers": answers, "predictions": found.predictions(), "n_best": found.n_best}
        if found.null_odds is not None:
            best = span_scores.best_thresholds(found.best_texts(), found.null_odds, answers)
            record |= {"null_odds": found.null_odds, "best_thresholds": best}
        return record

    def official_files(self, record: dict[str, Any]) -> dict[str, Any]:
        """What the official program writes beside a model, by file name, from a record."""
        files = {"predictions.json": record["predictions"], "nbest_predictions.json": record["n_best"]}
        files |= {"null_odds.json": record["null_odds"]} if self.has_null else {}
        return files | {"scores.json": span_scores.official_scores(record["predictions"], record["answers"])}

    def score(self, record: dict[str, Any]) -> Score:
        """The score that follows from a record. Extra metrics of 2.0: the scores of questions with and without answer
        apart, and those at the best thresholds, chosen on these rows.
        """
        score = span_scores.score(record["predictions"], record["answers"])
        if self.has_null:
            score.metrics.update(span_scores.by_answerability(record["predictions"], record["answers"]))
        for metric, best in record.get("best_thresholds", {}).items():
            score.metrics[f"eval/best_threshold_{metric}"] = best["value"]
        return score


Task = SentenceTask | SpanTask
TASKS: dict[str, Task] = {
    **{name: SentenceTask(name) for name in glue.TASKS},
    "squad1": SpanTask("squad1", "1.1"),
    "squad2": SpanTask("squad2", "2.0"),
}


def task_named(name: str) -> Task:
    """The task of that name, or a ValueError that proposes the nearest one."""
    if name not in TASKS:
        near = did_you_mean(name.lower().replace("-", ""), TASKS)
        raise ValueError(f"unknown task {name!r}{near}; known are {', '.join(TASKS)}")
    return TASKS[name]


@dataclass(frozen=True)
class Split:
    """Rows as the task reads them, and as token ids, in which a question may have several rows."""

    rows: Any
    encoded: Dataset
    tokenizer: Any


@dataclass(frozen=True)
class TaskData:
    """Rows to learn from, rows to choose by, and dev rows, read once at the end."""

    task: Task
    tokenizer: Any
    splits: dict[str, Split]
    source: str
    batch_size: int
    max_seq_len: int
    seed: int

    @property
    def train(self) -> Dataset:
        """Training rows as token ids."""
        return self.splits["train"].encoded

    @property
    def dev(self) -> Dataset:
        """Dev rows as token ids."""
        return self.splits["dev"].encoded

    def batches(self, **order: Any) -> Batches:
        """Training batches, shuffled, similar lengths together unless `order` (of `Batches`) says otherwise."""
        return Batches(self.train, self.batch_size, self.seed, self.tokenizer.pad_token_id, **order)

    def predict(self, model: PreTrainedModel, split: str, label: str = "") -> dict[str, Any]:
        """The record of a model's answers on "selection" or "dev"; its progress is shown under `label`."""
        part = self.splits[split]
        rows = rows_in_order(part.encoded, self.tokenizer, self.max_seq_len)
        return self.task.predict(model, part, watched(label, rows, len(rows)) if label else rows)

    def score(self, model: PreTrainedModel, split: str) -> Score:
        """A model's score on "selection" or "dev"."""
        return self.task.score(self.predict(model, split))

    def describe(self) -> pd.DataFrame:
        """Rows, tokens per row, and what the task says of its rows, for each split."""
        lines = []
        for name, split in self.splits.items():
            lengths = pd.Series([len(ids) for ids in split.encoded["input_ids"]])
            line = {
                "split": name,
                "rows": len(lengths),
                "tokens (median)": lengths.median(),
                "tokens (max)": lengths.max(),
            }
            lines.append(line | self.task.describe(split.rows))
        return pd.DataFrame(lines).set_index("split").round(3)


def rows_in_order(encoded: Dataset, tokenizer: Any, max_seq_len: int) -> Batches:
    """Batches for a model's answers: each row remembers its place."""
    size = max(1, EVALUATION_TOKENS // max_seq_len)
    return Batches(encoded, size, 0, tokenizer.pad_token_id, shuffle=False, with_index=True)


def task_data(
    task: Task,
    params: TaskParams,
    tokenizer: Any,
    *,
    batch_size: int = 1,
    splits: Sequence[str] = SPLITS,
    augmented: str = "",
) -> TaskData:
    """Read and encode the task's rows; `splits`: ("dev",) where nothing is trained.

    augmented: a folder of the stage augment, or a run's; the training rows then come with their copies, those that
    choose a checkpoint stay as they are, and no copy of them is learned from.
    """
    source = task.source(params.data_dir)
    rows: dict[str, Any] = {}
    if "train" in splits:
        rows["train"], rows["selection"] = task.divide(task.read(source, "train", params.max_rows), params.seed)
        if augmented:
            rows["train"] = task.with_copies(rows["train"], tracking.resolve(augmented))
    rows["dev"] = task.read(source, "dev", params.max_rows)
    parts = {
        name: Split(rows[name], task.encode(rows[name], tokenizer, params, training=name == "train"), tokenizer)
        for name in splits
    }
    return TaskData(task, tokenizer, parts, str(source), batch_size, params.max_seq_len, params.seed)
