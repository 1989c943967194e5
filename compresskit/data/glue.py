"""The nine GLUE tasks: where their columns are, how rows become token ids, which rows choose a checkpoint.

A data set is read from a directory in the official TSV layout or through `datasets` (hub id, or a local directory laid
out as a data set repository); both give the same columns: `sentence1`, `sentence2` (pair tasks), `label`, `idx`.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, Features, List, Value

logger = logging.getLogger(__name__)

Split = Literal["train", "dev", "test"]
MIN_SELECTION_ROWS = 200


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
        return {"train": self.train_file, "dev": self.dev_file, "test": self.test_file}[split]


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


def read(task: str, source: str | Path, split: Split) -> Dataset:
    """Rows of one split: `sentence1`, `sentence2` of pair tasks, `label` (class index, or a float; −1 in test), `idx`.

    `source` is a directory that holds the task's folder or is that folder, or what `datasets.load_dataset` takes.
    `idx` is the row's position in its file, header not counted. Raises FileNotFoundError or ValueError, in one
    sentence with file and line.
    """
    described = task_named(task)
    if split not in ("train", "dev", "test"):
        raise ValueError(f"unknown split {split!r}; there are 'train', 'dev' and 'test'")
    folder = _tsv_folder(described, Path(source))
    if folder is not None:
        columns = _read_tsv(described, folder / described.file(split), split)
    else:
        columns = _read_repository(described, str(source), split)
    label = Value("float32") if described.is_regression else Value("int64")
    texts = {name: Value("string") for name in PAIR[: len(described.text_columns)]}
    return Dataset.from_dict(columns, features=Features({**texts, "label": label, "idx": Value("int64")}))


def _tsv_folder(task: GlueTask, source: Path) -> Path | None:
    """The folder with the task's TSV files; None where `source` has to be handed to `datasets`."""
    files = {task.train_file, task.dev_file, task.test_file}
    for folder in (source / task.folder, source):
        if any((folder / name).is_file() for name in files):
            return folder
    if not source.exists():
        if source.is_absolute() or source.parts[:1] in {(".",), ("..",), ("~",)} or len(source.parts) > 2:
            raise FileNotFoundError(f"{source}: no such directory; give one that holds {task.folder}/{task.train_file}")
        return None
    if (source / "README.md").is_file() or any(source.rglob("*.parquet")) or any(source.rglob("*.json*")):
        return None
    raise FileNotFoundError(
        f"{source}: neither {task.folder}/{task.train_file} nor {task.train_file} is there; "
        f"give the directory that holds the folder {task.folder} of the official GLUE download"
    )


# --- the official TSV files


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number (from 1) and fields of each line. Quotes are plain text; BOM and CRLF are tolerated."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n").split(b"\n"), 1):
        try:
            yield number, line.decode().removesuffix("\r").split("\t")
        except UnicodeDecodeError as error:
            byte = line[error.start]
            raise ValueError(f"{path} line {number}: byte {byte:#04x} is not UTF-8; convert the file first") from None


def _read_tsv(task: GlueTask, path: Path, split: Split) -> dict[str, list]:
    rows = _rows(path)
    first_number, first = next(rows)
    if first == [""]:
        raise ValueError(f"{path} is empty; expected the {split} rows of {task.folder}")
    texts: tuple[int, ...]
    texts, label_column, width = task.text_columns, task.label_column % len(first), len(first)
    if task.has_header or split == "test":
        texts, label_column = _columns_by_name(task, path, first, split)
    else:
        rows = _chain((first_number, first), rows)
        if width <= max(*texts, label_column):
            raise ValueError(f"{path} line 1: {width} columns where {max(*texts, label_column) + 1} are needed")

    columns: dict[str, list] = {name: [] for name in (*PAIR[: len(texts)], "label", "idx")}
    skipped = []
    for position, (number, fields) in enumerate(rows):
        if len(fields) != width:
            if task.name == "qqp" and len(fields) < width:  # known of the official file: a few broken rows
                skipped.append(number)
                continue
            raise ValueError(f"{path} line {number}: {len(fields)} columns, expected {width} separated by tabs")
        for name, column in zip(PAIR, texts, strict=False):
            columns[name].append(fields[column])
        columns["label"].append(-1 if split == "test" else _label(task, fields[label_column], f"{path} line {number}"))
        columns["idx"].append(position)
    if skipped:
        shown = ", ".join(map(str, skipped[:5])) + (", …" if len(skipped) > 5 else "")
        logger.warning("%s: skipped %d short rows (lines %s)", path, len(skipped), shown)
    if not columns["idx"]:
        raise ValueError(f"{path} has a header but no rows")
    return columns


def _chain(first: Any, rest: Iterator) -> Iterator:
    yield first
    yield from rest


def _columns_by_name(task: GlueTask, path: Path, header: list[str], split: Split) -> tuple[tuple[int, ...], int]:
    wanted = task.header[:-1] if split == "test" else task.header
    missing = [name for name in wanted if name not in header]
    if len(missing) == len(wanted):
        raise ValueError(
            f"{path}: the header is missing; line 1 should name the columns {', '.join(map(repr, wanted))} "
            f"but reads {_shown(header)}"
        )
    if missing:
        raise ValueError(f"{path}: missing column {', '.join(map(repr, missing))}; the header has {_shown(header)}")
    positions = [header.index(name) for name in wanted]
    return tuple(positions[: len(task.text_columns)]), positions[-1]


def _shown(fields: Sequence[str]) -> str:
    return ", ".join(repr(field if len(field) <= 40 else field[:39] + "…") for field in fields)


def _label(task: GlueTask, text: str, where: str) -> int | float:
    if not task.is_regression:
        if text not in task.labels:
            raise ValueError(f"{where}: label {_shown([text])} is none of {', '.join(task.labels)}")
        return task.labels.index(text)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where}: graded label {_shown([text])} is not a number")
    return value


# --- data set repositories, on the hub or in a local directory


def _read_repository(task: GlueTask, source: str, split: Split) -> dict[str, list]:
    config = task.hub_config or task.name
    part = {"train": "train", "dev": task.hub_dev_split, "test": task.hub_test_split}[split]
    try:
        loaded = datasets.load_dataset(source, _repository_config(source, config), split=part)
    except (
        OSError,
        ValueError,
        datasets.exceptions.DatasetGenerationError,
    ) as error:  # not found, offline, no split
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(f"data set {source!r} (configuration {config!r}, split {part!r}): {reason}") from None
    label_name = "score" if task.is_regression and "label" not in loaded.column_names else "label"
    names = next((n for n in (task.hub_columns, PAIR[: len(task.hub_columns)]) if {*n} <= {*loaded.column_names}), None)
    if names is None or (label_name not in loaded.column_names and split != "test"):
        raise ValueError(
            f"data set {source!r}: missing column; expected {_shown((*task.hub_columns, 'label'))}, "
            f"it has {_shown(loaded.column_names)}"
        )
    columns = {ours: loaded[theirs][:] for ours, theirs in zip(PAIR, names, strict=False)}
    if split == "test":
        columns["label"] = [-1] * len(loaded)
    else:
        columns["label"] = _repository_labels(task, loaded[label_name][:], loaded.features[label_name], source)
    columns["idx"] = list(range(len(loaded)))
    return columns


def _repository_config(source: str, config: str) -> str | None:
    """The task's own configuration; a repository of this one task may have a single one of any name."""
    names = datasets.get_dataset_config_names(source)
    return config if config in names or len(names) != 1 else names[0]


def _repository_labels(task: GlueTask, values: list, feature: Any, source: str) -> list:
    """Labels in our order: names decide. Plain numbers serve only where our own labels are 0 and 1."""
    if task.is_regression or not isinstance(feature, ClassLabel):
        known = {label: label for label in task.labels} | dict(zip(task.hub_labels, task.labels, strict=False))
        where = f"data set {source!r} row"
        return [_label(task, known.get(str(v), str(v)), f"{where} {row}") for row, v in enumerate(values)]
    theirs = feature.names
    for ours in (task.labels, task.hub_labels):
        if sorted(theirs) == sorted(ours):
            order = [ours.index(name) for name in theirs]
            return [_class(order, value, f"data set {source!r} row {row}") for row, value in enumerate(values)]
    raise ValueError(
        f"data set {source!r}: classes {_shown(theirs)} are not those of {task.name}: {_shown(task.labels)}"
    )


def _class(order: list[int], value: int | None, where: str) -> int:
    if value is None or not 0 <= value < len(order):
        raise ValueError(f"{where}: label {value} is none of 0 to {len(order) - 1}")
    return order[value]


# --- rows to token ids, and the rows that choose


def encode(dataset: Dataset, tokenizer: Any, max_seq_len: int) -> Dataset:
    """Token ids of each row, unpadded: `input_ids`, `token_type_ids`, `labels`.

    [CLS] a [SEP] or [CLS] a [SEP] b [SEP], at most `max_seq_len` long. A single text keeps its first pieces; of a pair
    the longer text loses its last piece until both fit, the second one when they are equally long (`longest_first` of
    the tokenizers library shares an odd remainder differently). An empty second text counts as absent.
    """
    if max_seq_len < 4:
        raise ValueError(f"max_seq_len {max_seq_len} leaves no room for text; give at least 4")
    cls, sep = [tokenizer.cls_token_id], [tokenizer.sep_token_id]
    input_ids, token_type_ids = [], []
    for begin in range(0, len(dataset), 2000):
        rows = dataset[begin : begin + 2000]
        firsts = _pieces(tokenizer, rows["sentence1"])
        seconds = _pieces(tokenizer, rows["sentence2"]) if "sentence2" in rows else [[]] * len(firsts)
        for a, b in zip(firsts, seconds, strict=True):
            if b:
                keep_a, keep_b = _pair_lengths(len(a), len(b), max_seq_len - 3)
                a, b = a[:keep_a], b[:keep_b] + sep
            else:
                a = a[: max_seq_len - 2]
            input_ids.append(np.array(cls + a + sep + b, dtype=np.int32))
            token_type_ids.append(np.repeat(np.array([0, 1], dtype=np.int8), [len(a) + 2, len(b)]))
    features = Features({"input_ids": List(Value("int32")), "token_type_ids": List(Value("int8"))})
    features["labels"] = dataset.features["label"]
    columns = {"input_ids": input_ids, "token_type_ids": token_type_ids, "labels": dataset["label"][:]}
    return Dataset.from_dict(columns, features=features)


def _pieces(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def _pair_lengths(a: int, b: int, limit: int) -> tuple[int, int]:
    """Lengths after popping from the longer list, from b when equal, until a + b ≤ limit."""
    if a + b <= limit:
        return a, b
    half, odd = divmod(limit, 2)
    if b <= half:
        return limit - b, b
    if a <= half + odd:
        return a, limit - a
    return half + odd, half


def selection_split(dataset: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """Cut train in two: rows to train on, and rows to choose checkpoints and thresholds with (so dev is read once).

    5 % of the rows, at least 200, drawn by `seed`; of fewer than 400 rows half, so that training keeps at least as much
    as choosing. Both parts keep the order of the file. Fewer than 2 rows are a ValueError.
    """
    rows = len(dataset)
    if rows < 2:
        raise ValueError(f"{rows} training rows cannot be divided into a training and a selection part")
    size = min(max(round(0.05 * rows), MIN_SELECTION_ROWS), rows // 2)
    chosen = np.zeros(rows, dtype=bool)
    chosen[np.random.default_rng(seed).choice(rows, size, replace=False)] = True
    return dataset.select(np.flatnonzero(~chosen)), dataset.select(np.flatnonzero(chosen))
