"""GLUE: read a task's rows, turn them into token ids, and set aside the rows that choose a checkpoint.

A data set is read from a directory in the official TSV layout or through `datasets` (hub id, or a local directory laid
out as a data set repository); both give the same columns: `sentence1`, `sentence2` (pair tasks), `label`, `idx`.
"""

from pathlib import Path
from typing import Any, get_args

import numpy as np
from datasets import Dataset, Features, List, Value

from compresskit.data.glue_hub import read_repository
from compresskit.data.glue_tasks import PAIR, TASKS, GlueTask, Split, task_named
from compresskit.data.glue_tsv import read_tsv

__all__ = ["TASKS", "GlueTask", "Split", "encode", "read", "selection_size", "selection_split", "task_named"]

MIN_SELECTION_ROWS = 200
SPLITS = get_args(Split)


def read(task: str | GlueTask, source: str | Path, split: Split) -> Dataset:
    """Rows of one split: `sentence1`, `sentence2` of pair tasks, `label` (class index, or a float; −1 in test), `idx`.

    `source` is a directory that holds the task's folder or is that folder, or what `datasets.load_dataset` takes.
    `idx` is the row's position in its file, header not counted. "train_aug" is what the stage augment wrote. Raises
    FileNotFoundError or ValueError, in one sentence with file and line.
    """
    described = task_named(task) if isinstance(task, str) else task
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(map(repr, SPLITS))}")
    folder = tsv_folder(described, Path(source))
    if folder is not None:
        columns = read_tsv(described, folder / described.file(split), split)
    elif split == "train_aug":
        raise FileNotFoundError(f"{source}: no train_aug.tsv there; name a folder that the stage augment made")
    else:
        columns = read_repository(described, str(source), split)
    label = Value("float32") if described.is_regression else Value("int64")
    texts = {name: Value("string") for name in PAIR[: len(described.text_columns)]}
    return Dataset.from_dict(columns, features=Features({**texts, "label": label, "idx": Value("int64")}))


def tsv_folder(task: GlueTask, source: Path) -> Path | None:
    """The folder with the task's TSV files; None where `source` has to be handed to `datasets`."""
    files = [task.file(split) for split in SPLITS]
    for folder in (source / task.folder, source):
        if any((folder / name).is_file() for name in files):
            return folder
    if not source.exists():
        if source.is_absolute() or source.parts[:1] in {(".",), ("..",), ("~",)} or len(source.parts) > 2:
            raise FileNotFoundError(f"{source}: no such directory; give one that holds {task.folder}/{task.train_file}")
        return None
    others = (source / other.folder / other.file(split) for other in TASKS.values() for split in SPLITS)
    if not any(file.is_file() for file in others) and (  # else `datasets` would take another task's file for this one's
        (source / "README.md").is_file() or any(source.rglob("*.parquet")) or any(source.rglob("*.json*"))
    ):
        return None
    raise FileNotFoundError(
        f"{source}: neither {task.folder}/{task.train_file} nor {task.train_file} is there; "
        f"give the directory that holds the folder {task.folder} of the official GLUE download"
    )


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


def selection_size(rows: int) -> int:
    """How many of that many training rows choose checkpoints: 5 %, at least 200, at most half."""
    return min(max(round(0.05 * rows), MIN_SELECTION_ROWS), rows // 2)


def selection_split(dataset: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """Cut train in two: rows to train on, and rows to choose checkpoints and thresholds with (so dev is read once).

    5 % of the rows, at least 200, drawn by `seed`; of fewer than 400 rows half, so that training keeps at least as much
    as choosing. Both parts keep the order of the file. Fewer than 2 rows are a ValueError.
    """
    rows = len(dataset)
    if rows < 2:
        raise ValueError(f"{rows} training rows cannot be divided into a training and a selection part")
    size = selection_size(rows)
    chosen = np.zeros(rows, dtype=bool)
    chosen[np.random.default_rng(seed).choice(rows, size, replace=False)] = True
    return dataset.select(np.flatnonzero(~chosen)), dataset.select(np.flatnonzero(chosen))
