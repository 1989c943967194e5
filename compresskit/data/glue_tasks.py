"""The nine GLUE tasks as data: where their columns are, what their labels mean, how they are scored."""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

Split = Literal["train", "dev", "test", "train_aug"]  # the last: train with the copies that the stage augment makes


@dataclass(frozen=True)
class GlueTask:
    """One task. Columns count from 0; a negative one counts from the end. The order of `labels` is the class index."""

    name: str
    folder: str
    text_columns: tuple[int, ...]
    label_column: int
    labels: tuple[str, ...]  # empty: the label is a number (regression)
    header: tuple[str, ...]  # official header names of the text columns, then of the label
    hub_columns: tuple[str, ...]  # names of the text columns on the hub
    hub_labels: tuple[str, ...] = ()  # class names used on the hub, in our order, where they differ from ours
    metrics: tuple[str, ...] = ("accuracy",)
    main_metric: str = "accuracy"
    train_file: str = "train.tsv"
    dev_file: str = "dev.tsv"
    test_file: str = "test.tsv"
    has_header: bool = True  # of train and dev; test files always have one
    hub_config: str = ""  # empty: the task's name
    hub_dev_split: str = "validation"
    hub_test_split: str = "test"

    @property
    def is_regression(self) -> bool:
        return not self.labels

    @property
    def num_labels(self) -> int:
        return max(len(self.labels), 1)

    def file(self, split: Split) -> str:
        files = {"train": self.train_file, "dev": self.dev_file, "test": self.test_file, "train_aug": "train_aug.tsv"}
        return files[split]


BINARY = ("0", "1")
PAIR = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")
NLI = ("contradiction", "entailment", "neutral")  # the hub's data sets say entailment, neutral, contradiction

TASKS = {
    task.name: task
    for task in (
        GlueTask("cola", "CoLA", (3,), 1, BINARY, ("sentence", "label"), ("sentence",), ("unacceptable", "acceptable"),
                 metrics=("matthews_correlation",), main_metric="matthews_correlation", has_header=False),
        GlueTask("sst2", "SST-2", (0,), 1, BINARY, ("sentence", "label"), ("sentence",), ("negative", "positive")),
        GlueTask("mrpc", "MRPC", (3, 4), 0, BINARY, ("#1 String", "#2 String", "Quality"), PAIR,
                 ("not_equivalent", "equivalent"), metrics=("accuracy", "f1")),
        GlueTask("stsb", "STS-B", (7, 8), -1, (), (*PAIR, "score"), PAIR,
                 metrics=("pearson", "spearman"), main_metric="pearson_spearman"),
        GlueTask("qqp", "QQP", (3, 4), 5, BINARY, ("question1", "question2", "is_duplicate"),
                 ("question1", "question2"), ("not_duplicate", "duplicate"), metrics=("accuracy", "f1")),
        GlueTask("mnli", "MNLI", (8, 9), -1, NLI, (*PAIR, "gold_label"), ("premise", "hypothesis"),
                 dev_file="dev_matched.tsv", test_file="test_matched.tsv",
                 hub_dev_split="validation_matched", hub_test_split="test_matched"),
        GlueTask("mnli_mm", "MNLI", (8, 9), -1, NLI, (*PAIR, "gold_label"), ("premise", "hypothesis"),
                 dev_file="dev_mismatched.tsv", test_file="test_mismatched.tsv", hub_config="mnli",
                 hub_dev_split="validation_mismatched", hub_test_split="test_mismatched"),
        GlueTask("qnli", "QNLI", (1, 2), -1, ENTAILMENT, ("question", "sentence", "label"), ("question", "sentence")),
        GlueTask("rte", "RTE", (1, 2), -1, ENTAILMENT, (*PAIR, "label"), PAIR),
        GlueTask("wnli", "WNLI", (1, 2), -1, BINARY, (*PAIR, "label"), PAIR, ("not_entailment", "entailment")),
    )
}  # fmt: skip


def task_named(name: str) -> GlueTask:
    """The task of that name, or a ValueError that proposes the nearest ones."""
    if name not in TASKS:
        near = get_close_matches(name.lower().replace("-", ""), TASKS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? Known tasks: " if near else "known tasks: "
        raise ValueError(f"unknown GLUE task {name!r}; {hint}{', '.join(TASKS)}")
    return TASKS[name]
