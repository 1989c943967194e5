"""GLUE rows from the official TSV files: tab separated, quotes are plain text, BOM and CRLF tolerated."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compresskit.data.glue_tasks import PAIR, GlueTask, Split

logger = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Table:
    """A TSV file: its header (None where it has none), its columns of interest, and its rows.

    rows: position in the file (header not counted), line number, all fields.
    """

    header: list[str] | None
    text_columns: tuple[int, ...]
    label_column: int
    rows: list[tuple[int, int, list[str]]]


def read_tsv(task: GlueTask, path: Path, split: Split) -> dict[str, list]:
    """Columns `sentence1`, `sentence2` of pair tasks, `label`, `idx` of one official file."""
    table = read_table(task, path, split)
    columns: dict[str, list] = {name: [] for name in (*PAIR[: len(table.text_columns)], "label", "idx")}
    for position, number, fields in table.rows:
        for name, column in zip(PAIR, table.text_columns, strict=False):
            columns[name].append(fields[column])
        columns["label"].append(
            -1 if split == "test" else parse_label(task, fields[table.label_column], f"{path} line {number}")
        )
        columns["idx"].append(position)
    return columns


def read_table(task: GlueTask, path: Path, split: Split) -> Table:
    """One official file with all its columns; `read_tsv` gives the same rows, read."""
    lines = _rows(path)
    first_number, first = next(lines)
    if first == [""]:
        raise ValueError(f"{path} is empty; expected the {split} rows of {task.folder}")
    texts: tuple[int, ...]
    texts, label_column, width = task.text_columns, task.label_column % len(first), len(first)
    has_header = task.has_header or split == "test"
    if has_header:
        texts, label_column = _columns_by_name(task, path, first, split)
    else:
        lines = _chain((first_number, first), lines)
        if width <= max(*texts, label_column):
            raise ValueError(f"{path} line 1: {width} columns where {max(*texts, label_column) + 1} are needed")

    rows, skipped = [], []
    for position, (number, fields) in enumerate(lines):
        if len(fields) != width:
            if task.name == "qqp" and len(fields) < width:  # known of the official file: a few broken rows
                skipped.append(number)
                continue
            raise ValueError(f"{path} line {number}: {len(fields)} columns, expected {width} separated by tabs")
        rows.append((position, number, fields))
    if skipped:
        shown = ", ".join(map(str, skipped[:5])) + (", …" if len(skipped) > 5 else "")
        logger.warning("%s: skipped %d short rows (lines %s)", path, len(skipped), shown)
    if not rows:
        raise ValueError(f"{path} has a header but no rows")
    return Table(first if has_header else None, texts, label_column, rows)


def _chain(first: Any, rest: Iterator) -> Iterator:
    yield first
    yield from rest


def _columns_by_name(task: GlueTask, path: Path, header: list[str], split: Split) -> tuple[tuple[int, ...], int]:
    wanted = task.header[:-1] if split == "test" else task.header
    missing = [name for name in wanted if name not in header]
    if len(missing) == len(wanted):
        raise ValueError(
            f"{path}: the header is missing; line 1 should name the columns {', '.join(map(repr, wanted))} "
            f"but reads {quoted(header)}"
        )
    if missing:
        raise ValueError(f"{path}: missing column {', '.join(map(repr, missing))}; the header has {quoted(header)}")
    positions = [header.index(name) for name in wanted]
    return tuple(positions[: len(task.text_columns)]), positions[-1]


def quoted(fields: Sequence[str]) -> str:
    """The fields in quotes, long ones cut, for a message."""
    return ", ".join(repr(field if len(field) <= 40 else field[:39] + "…") for field in fields)


def parse_label(task: GlueTask, text: str, where: str) -> int | float:
    """Class index or number that `text` stands for; `where` begins the message of the ValueError."""
    if not task.is_regression:
        if text not in task.labels:
            raise ValueError(f"{where}: label {quoted([text])} is none of {', '.join(task.labels)}")
        return task.labels.index(text)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where}: graded label {quoted([text])} is not a number")
    return value
