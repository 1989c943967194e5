"""Tables too long for memory: Arrow files of a folder, written one after another and read memory-mapped.

Beside data-00000.arrow lies its note, data-00000.json: what the writer must know to go on after that file, so a stopped
job begins again at the last whole one. The note is written last; without it the file does not count.
"""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
from datasets import Dataset, concatenate_datasets

BATCH_BYTES = 4 << 20  # of a record batch: what is in memory while writing
SHARD_BYTES, SHARD_SECONDS = 64 << 20, 30.0  # of a file, whichever comes first: what a stopped job does again


class Writer:
    """`with Writer(folder, schema) as writer:` adds rows; `commit(note)`, when due, ends a file and begins the next."""

    def __init__(self, folder: Path, schema: pa.Schema):
        self.folder, self.schema = Path(folder), schema
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob("*.part"):
            path.unlink()
        self.number = len(notes(self.folder))
        self._bytes = 0  # of the rows since the last commit
        self._begun = time.monotonic()
        self._stream: Any = None
        self._waiting: list[pa.RecordBatch] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._stream is not None:
            self._stream.close()
            self._unfinished.unlink(missing_ok=True)

    def add(self, columns: Sequence[pa.Array]) -> None:
        """Append rows."""
        batch = pa.record_batch(list(columns), schema=self.schema)
        self._waiting.append(batch)
        self._bytes += batch.nbytes
        if sum(waiting.nbytes for waiting in self._waiting) > BATCH_BYTES:
            self._flush()

    @property
    def due(self) -> bool:
        """Whether the rows since the last commit are enough for a file."""
        return self._bytes > SHARD_BYTES or (self._bytes > 0 and time.monotonic() - self._begun > SHARD_SECONDS)

    def _flush(self) -> None:
        if self._stream is None:
            self._stream = pa.ipc.new_stream(str(self._unfinished), self.schema)
        if self._waiting:
            self._stream.write_batch(pa.concat_batches(self._waiting))
            self._waiting.clear()

    def commit(self, note: dict[str, Any]) -> None:
        """End the file, however many rows it has, and keep the note beside it."""
        self._flush()
        self._stream.close()
        path = self.folder / f"data-{self.number:05d}.arrow"
        os.replace(self._unfinished, path)
        write_json(path.with_suffix(".json"), note)
        self._stream, self._bytes, self._begun = None, 0, time.monotonic()
        self.number += 1

    @property
    def _unfinished(self) -> Path:
        return self.folder / f"data-{self.number:05d}.arrow.part"


def notes(folder: Path) -> list[dict[str, Any]]:
    """The notes of the whole files of a folder, in order."""
    found: list[dict[str, Any]] = []
    while (path := Path(folder) / f"data-{len(found):05d}.json").is_file():
        found.append(json.loads(path.read_text(encoding="utf-8")))
    return found


def files(folder: Path) -> list[Path]:
    """The whole files of a folder, in order."""
    return [Path(folder) / f"data-{number:05d}.arrow" for number in range(len(notes(folder)))]


def dataset(folder: Path) -> Dataset:
    """All rows of a folder, memory-mapped. Raises FileNotFoundError where there are none."""
    found = files(folder)
    if not found:
        raise FileNotFoundError(f"{folder}: no data-00000.arrow with its note; the job that writes it did not finish")
    return concatenate_datasets([Dataset.from_file(str(path)) for path in found])


def batches(folder: Path) -> list[pa.RecordBatch]:
    """All record batches of a folder that have rows, memory-mapped, in order."""
    tables = (pa.ipc.open_stream(pa.memory_map(str(path))).read_all() for path in files(folder))
    return [batch for table in tables for batch in table.to_batches() if batch.num_rows]


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, whole or not at all."""
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    os.replace(unfinished, path)
