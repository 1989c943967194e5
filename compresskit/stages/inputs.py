"""What stages take in, by name: data folders, tokenizers, task data."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset

from compresskit import tracking
from compresskit.data import bundled, glue, vocabulary
from compresskit.data.batching import Batches

BUNDLED = "bundled"
DATA = "COMPRESSKIT_DATA"


def data_folder(data_dir: str) -> Path | str:
    """The folder or hub id that `data_dir` names; "bundled" is the data set the package makes, "" is $COMPRESSKIT_DATA.

    Raises ValueError where nothing is named.
    """
    source = data_dir or os.environ.get(DATA, "")
    if not source:
        raise ValueError(f"no data named; --set data_dir=FOLDER, export {DATA}=FOLDER, or use data_dir: bundled")
    if source == BUNDLED:
        return bundled.write(tracking.project_root() / ".cache" / "bundled")
    folder = Path(source).expanduser()
    return folder if folder.exists() else source


def glue_source(data_dir: str) -> Path | str:
    """Where the GLUE task folders are: in `data_dir` itself or in its `glue` folder."""
    source = data_folder(data_dir)
    return source / "glue" if isinstance(source, Path) and (source / "glue").is_dir() else source


def board(task: str, data_dir: str) -> str:
    """The leaderboard and experiment of a task: results on made sentences never stand beside results on real ones."""
    return f"{task}-{BUNDLED}" if data_dir == BUNDLED else task


def corpus_file(corpus: str) -> Path:
    """A text file of one sentence per line; "bundled" and "" as in `data_folder`, in which it is corpus.txt.

    Raises FileNotFoundError where there is no such file.
    """
    path = Path(corpus).expanduser() if corpus not in ("", BUNDLED) else Path(data_folder(corpus)) / "corpus.txt"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; corpus names a text file with one sentence per line")
    return path


@dataclass(frozen=True)
class TaskData:
    """A GLUE task as token ids: rows to learn from, rows to choose by, and dev rows, read once at the end."""

    task: glue.GlueTask
    tokenizer: Any
    train: Dataset
    selection: Dataset
    dev: Dataset
    source: str
    batch_size: int
    seed: int

    def batches(self) -> Batches:
        """Training batches, shuffled, similar lengths together."""
        return Batches(self.train, self.batch_size, self.seed, self.tokenizer.pad_token_id)

    def rows(self, split: str) -> Batches:
        """The rows of "selection" or "dev" in batches that remember their place."""
        rows = {"selection": self.selection, "dev": self.dev}[split]
        return Batches(rows, 64, 0, self.tokenizer.pad_token_id, shuffle=False, with_index=True)

    def describe(self) -> pd.DataFrame:
        """Rows, tokens per row, and share of each label, for each split."""
        lines = []
        for name, rows in (("train", self.train), ("selection", self.selection), ("dev", self.dev)):
            lengths = pd.Series([len(ids) for ids in rows["input_ids"]])
            line = {
                "split": name,
                "rows": len(rows),
                "tokens (median)": lengths.median(),
                "tokens (max)": lengths.max(),
            }
            labels = pd.Series(rows["labels"])
            if self.task.is_regression:
                line |= {"label mean": labels.mean(), "label std": labels.std()}
            else:
                line |= {f"label {name}": (labels == i).mean() for i, name in enumerate(self.task.labels)}
            lines.append(line)
        return pd.DataFrame(lines).set_index("split").round(3)


def task_data(
    task: str, data_dir: str, tokenizer: Any, *, max_seq_len: int, batch_size: int, seed: int, max_rows: int = 0
) -> TaskData:
    """Read and encode a task. max_rows, unless 0, keeps the first rows of each split."""
    source = glue_source(data_dir)
    train, selection = glue.selection_split(_head(glue.read(task, source, "train"), max_rows), seed)
    dev = _head(glue.read(task, source, "dev"), max_rows)
    train, selection, dev = (glue.encode(rows, tokenizer, max_seq_len) for rows in (train, selection, dev))
    return TaskData(glue.TASKS[task], tokenizer, train, selection, dev, str(source), batch_size, seed)


def _head(rows: Dataset, max_rows: int) -> Dataset:
    return rows if not max_rows else rows.select(range(min(max_rows, len(rows))))


def tokenizer_for(source: str | Path, vocab_size: int) -> Any:
    """The tokenizer beside a model, checked against the size of its embedding."""
    tokenizer = vocabulary.load_tokenizer(source)
    vocabulary.check_vocabulary(tokenizer, vocab_size, source)
    return tokenizer
