"""The files of the augmentation: candidates found so far, and train_aug.tsv with a card beside it.

train_aug.tsv has the layout of the task's train.tsv: each row of train, followed by its copies. train_aug.json, the
card, says how many of its rows come from each row of train; so the rows that choose a checkpoint can be left out with
all their copies, whichever seed has drawn them.
"""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from compresskit.data import glue
from compresskit.data.augment import Candidates
from compresskit.data.glue_tasks import PAIR, task_named
from compresskit.data.glue_tsv import Table, read_table

logger = logging.getLogger(__name__)

CARD = "train_aug.json"


class CandidateFile:
    """Candidates of text after text, one JSON line each, behind a first line that says what they were made from.

    What a stopped run has written is taken up again; a line that a kill cut off is dropped, and everything is where
    `made_from` has changed.
    """

    def __init__(self, path: Path, made_from: Mapping[str, Any]):
        self.path = path
        first = json.dumps(made_from, sort_keys=True).encode() + b"\n"
        self._ends = [len(first)]  # where text i begins, and the last one's end
        if path.is_file():
            with path.open("rb") as file:
                if file.readline() == first:
                    for line in file:
                        if line.endswith(b"\n"):
                            self._ends.append(self._ends[-1] + len(line))
                else:
                    logger.warning("%s was made from other inputs; it is begun anew", path)
                    path.unlink()
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(first)
        self._file = path.open("r+b")
        self._file.truncate(self._ends[-1])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def append(self, found: Iterable[Candidates]) -> None:
        """Keep the candidates of the next texts."""
        lines = [json.dumps(list(one.items()), ensure_ascii=False).encode() + b"\n" for one in found]
        self._file.seek(self._ends[-1])
        self._file.write(b"".join(lines))
        self._file.flush()
        for line in lines:
            self._ends.append(self._ends[-1] + len(line))

    def __getitem__(self, text: int) -> Candidates:
        self._file.seek(self._ends[text])
        line = self._file.read(self._ends[text + 1] - self._ends[text])
        return {position: words for position, words in json.loads(line)}

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def train_table(task: glue.GlueTask, source: str | Path, faithful: bool = False) -> Table:
    """The rows of train with all their columns; those of a data set repository are put into the official layout.

    faithful: a byte order mark stays where the original leaves it, in front of the first column's name.
    """
    folder = glue.tsv_folder(task, Path(source))
    if folder is not None:
        path = folder / task.train_file
        table = read_table(task, path, "train")
        if faithful and table.header and path.open("rb").read(3) == b"\xef\xbb\xbf":
            table.header[0] = "\ufeff" + table.header[0]
        return table
    rows = glue.read(task.name, source, "train")
    width = max(*task.text_columns, task.label_column, 1) + 1 + (task.label_column < 0)
    label_column = task.label_column % width

    def laid_out(texts: Sequence[str], label: str, others: Sequence[str]) -> list[str]:
        fields = list(others)
        for column, text in zip((*task.text_columns, label_column), (*texts, label), strict=True):
            fields[column] = " ".join(text.split()) if any(c in text for c in "\t\r\n") else text
        return fields

    header = laid_out(task.header[:-1], task.header[-1], [f"column{i}" for i in range(width)])
    lines = []
    for n, row in enumerate(rows):
        label = f"{row['label']:.6g}" if task.is_regression else task.labels[row["label"]]
        texts = [row[name] for name in PAIR[: len(task.text_columns)]]
        lines.append((row["idx"], n, laid_out(texts, label, [str(row["idx"]), *[""] * (width - 1)])))
    return Table(header if task.has_header else None, task.text_columns, label_column, lines)


def write(
    folder: Path,
    header: Sequence[str] | None,
    rows: Iterable[tuple[int, Iterable[list[str]]]],
    card: Mapping[str, Any],
    *,
    faithful: bool = False,
) -> int:
    """Write train_aug.tsv and its card into `folder`, whole or not at all; returns the number of rows.

    rows: position in train.tsv, and the fields of the row and its copies. Quotes are plain text and lines end in LF.
    faithful: quotes are doubled and fields that have any are quoted, lines end in CRLF.
    """
    folder.mkdir(parents=True, exist_ok=True)
    counts: list[int] = []  # by position; 0 for a row that was left out
    unfinished = folder / ".train_aug.tsv.part"
    try:
        with unfinished.open("w", encoding="utf-8", newline="") as file:
            put: Callable[[Sequence[str]], Any] = (
                csv.writer(file, delimiter="\t").writerow
                if faithful
                else lambda fields: file.write("\t".join(fields) + "\n")
            )
            if header is not None:
                put(header)
            for position, copies in rows:
                counts += [0] * (position + 1 - len(counts))
                for fields in copies:
                    put(fields)
                    counts[position] += 1
        text = json.dumps({**card, "rows": sum(counts), "rows_from": counts})
        (folder / f".{CARD}.part").write_text(text + "\n", encoding="utf-8")
        os.replace(folder / f".{CARD}.part", folder / CARD)
        os.replace(unfinished, folder / "train_aug.tsv")
    finally:
        unfinished.unlink(missing_ok=True)
    return sum(counts)


def training_rows(task: str, folder: str | Path, train: Dataset) -> Dataset:
    """The rows `train` and their copies, from a folder that the stage augment made; `idx` is the row of train.

    train: rows of `glue.read(task, …, "train")`, such as the training part of `glue.selection_split`: the copies of all
    other rows stay out. Raises FileNotFoundError where there is no such folder and ValueError where one of the rows
    is not in it.
    """
    described, source = task_named(task), Path(folder)
    place = next((f for f in (source / described.folder, source) if (f / described.file("train_aug")).is_file()), None)
    if place is None:
        raise FileNotFoundError(f"{source}: no {described.folder}/train_aug.tsv there; make it with the stage augment")
    if not (place / CARD).is_file():
        raise FileNotFoundError(
            f"{place}: train_aug.tsv without {CARD}, which says what each row is a copy of; without it, copies of rows "
            "that choose a checkpoint could not be left out: make both with the stage augment"
        )
    counts = np.array(json.loads((place / CARD).read_text(encoding="utf-8"))["rows_from"], dtype=np.int64)
    rows = glue.read(task, place, "train_aug")
    if counts.sum() != len(rows):
        raise ValueError(f"{place}: {CARD} tells of {counts.sum()} rows, train_aug.tsv has {len(rows)}")
    wanted = np.array(train["idx"], dtype=np.int64)
    known = wanted[wanted < len(counts)]
    missing = len(wanted) - np.count_nonzero(counts[known])
    if missing:
        raise ValueError(
            f"{place}: {missing} of {len(wanted)} training rows are not in it; run augment with the same data_dir and "
            "max_rows"
        )
    first = rows.select((counts.cumsum() - counts)[wanted])  # the row itself comes before its copies
    for name in (*PAIR[: len(described.text_columns)], "label"):
        for idx, ours, theirs in zip(wanted, train[name][:], first[name][:], strict=True):
            if not _same(ours, theirs):
                raise ValueError(
                    f"{place}: {name} of train row {idx} is {str(theirs)[:60]!r} there and {str(ours)[:60]!r} in the "
                    "data; it was made from other data, so run augment with this data_dir"
                )
    origin = np.repeat(np.arange(len(counts)), counts)
    kept = np.isin(origin, wanted)
    table = rows.data.table.filter(pa.array(kept))
    return Dataset(table.set_column(table.column_names.index("idx"), "idx", pa.array(origin[kept])))


def _same(ours: str | float, theirs: str | float) -> bool:
    """Whether a row was augmented from this one; a faithful file has more quotes, that of a repository other blanks."""
    if isinstance(ours, str) and isinstance(theirs, str):
        return ours.replace('"', "").split() == theirs.replace('"', "").split()
    return ours == theirs
