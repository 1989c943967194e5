"""The files that the GLUE server scores: test rows in, eleven TSV files and their zip out, and a check of both.

A file has the header `index<TAB>prediction` and a line per test row, numbered from 0 in the order of the test file.
"""

import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from compresskit.data import glue
from compresskit.data.glue_tasks import NLI, PAIR, TASKS, GlueTask

AX = GlueTask("ax", "AX", (1, 2), -1, NLI, (*PAIR, "label"), ("premise", "hypothesis"), test_file="diagnostic.tsv")
AX_FOLDERS = ("AX", "diagnostic", "MNLI")  # where downloads have put diagnostic.tsv
FILES = {  # name of the file, without .tsv
    "CoLA": TASKS["cola"],
    "SST-2": TASKS["sst2"],
    "MRPC": TASKS["mrpc"],
    "STS-B": TASKS["stsb"],
    "QQP": TASKS["qqp"],
    "MNLI-m": TASKS["mnli"],
    "MNLI-mm": TASKS["mnli_mm"],
    "QNLI": TASKS["qnli"],
    "RTE": TASKS["rte"],
    "WNLI": TASKS["wnli"],
    "AX": AX,
}
TAUGHT_BY = {"MNLI-mm": "mnli", "AX": "mnli"}  # files that another task's model answers
HEADER = "index\tprediction"
HIGHEST_GRADE, LOWEST_GRADE = 5.0, -5.0  # a regression may fall a little below 0; the original leaves that as it is
ZIP = "submission.zip"


def files_of(task: str) -> list[str]:
    """The files that the model of a task answers."""
    return [name for name, described in FILES.items() if TAUGHT_BY.get(name, described.name) == task]


def read_test(name: str, source: str | Path) -> Dataset:
    """The test rows of a file of FILES, in the order of the test file. `source`: as in `glue.read`.

    Raises ValueError where a row is missing in the middle, FileNotFoundError where there is no test file.
    """
    task = FILES[name]
    if task is AX:
        places = (folder for folder in AX_FOLDERS if (Path(source) / folder / AX.test_file).is_file())
        task = replace(AX, folder=next(places, AX.folder))
    rows = glue.read(task, source, "test")
    numbers = np.asarray(rows["idx"])
    if (numbers != np.arange(len(numbers))).any():
        row = int((numbers != np.arange(len(numbers))).argmax())
        raise ValueError(f"{source}: row {row} of the test file of {name} is broken; fetch it again")
    return rows


def predictions(name: str, logits: NDArray) -> list[str]:
    """What a file says of each row. logits: (N, C), C = 1 for STS-B: three decimals, at most 5."""
    task = FILES[name]
    if logits.ndim != 2 or logits.shape[1] != task.num_labels:
        raise ValueError(f"{name}: logits of shape {logits.shape}; expected ({len(logits)}, {task.num_labels})")
    if not np.isfinite(logits).all():
        raise ValueError(f"{name}: logits contain NaN or infinity: the model has diverged or its file is damaged")
    if task.is_regression:
        return [f"{min(float(grade), HIGHEST_GRADE):.3f}" for grade in logits[:, 0]]
    return [task.labels[label] for label in logits.argmax(1)]


def write(folder: Path, name: str, answers: Sequence[str]) -> Path:
    """Write one file, whole or not at all."""
    lines = [HEADER, *(f"{number}\t{answer}" for number, answer in enumerate(answers))]
    return write_whole(folder / f"{name}.tsv", "\n".join([*lines, ""]).encode())


def write_json(path: Path, value: Any) -> Path:
    """Write a JSON file, whole or not at all."""
    return write_whole(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def write_whole(path: Path, content: bytes) -> Path:
    """Write a file, whole or not at all."""
    unfinished = path.with_name(f".{path.name}.part")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def write_zip(folder: Path) -> Path:
    """Zip the eleven files of a folder as the server wants them: on the top level. The same files, the same bytes."""
    unfinished = folder / f".{ZIP}.part"
    try:
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in FILES:
                archive.writestr(zipfile.ZipInfo(f"{name}.tsv"), (folder / f"{name}.tsv").read_bytes(),
                                 zipfile.ZIP_DEFLATED)  # fmt: skip
        os.replace(unfinished, folder / ZIP)
    finally:
        unfinished.unlink(missing_ok=True)
    return folder / ZIP


# --- the check


def check(path: Path, rows: Mapping[str, int]) -> None:
    """Hold a folder or a zip against the server's rules; `rows`: the test rows of each file of FILES.

    Raises ValueError with one sentence per faulty file: missing or surplus, header, number of rows, index, prediction.
    """
    found = _contents(path)
    wrong = [f"{name} is none of the eleven files" for name in sorted(found) if name not in _names()]
    for name in FILES:
        file = f"{name}.tsv"
        fault = next(_faults(name, found[file], rows[name]), None) if file in found else "is missing"
        if fault:
            wrong.append(f"{file} {fault}")
    if wrong:
        raise ValueError(f"{path}: {'; '.join(wrong)}")


def _names() -> set[str]:
    return {f"{name}.tsv" for name in FILES}


def _contents(path: Path) -> dict[str, bytes]:
    """The TSV files of a folder, or everything in a zip."""
    if path.is_dir():
        return {file.name: file.read_bytes() for file in path.glob("*.tsv")}
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such folder or zip; name what `compresskit predict` wrote")
    try:
        with zipfile.ZipFile(path) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:  # broken, unknown method, encrypted
        raise ValueError(f"{path} is no readable zip: {error}") from None


def _faults(name: str, content: bytes, rows: int) -> Iterator[str]:
    """What is wrong with a file, the first fault first, each with its line."""
    try:
        lines = content.decode().split("\n")
    except UnicodeDecodeError:
        yield "is not UTF-8"
        return
    if lines[0].removesuffix("\r") != HEADER:
        yield f"line 1: header {lines[0][:40]!r}, expected {HEADER!r}"
    body = lines[1:-1] if lines[-1] == "" else lines[1:]
    for number, line in enumerate(body[:rows]):
        fields = line.removesuffix("\r").split("\t")
        where = f"line {number + 2}: "
        if len(fields) != 2:
            yield f"{where}{len(fields)} columns, expected 2 separated by a tab"
        elif fields[0] != str(number):
            yield f"{where}index {fields[0][:20]!r}, expected {number}"
        elif fault := _wrong_prediction(FILES[name], fields[1]):
            yield where + fault
    if len(body) != rows:
        yield f"has {len(body)} rows, the test file {rows}"


def _wrong_prediction(task: GlueTask, text: str) -> str | None:
    if not task.is_regression:
        return None if text in task.labels else f"prediction {text[:40]!r} is none of {', '.join(task.labels)}"
    if not re.fullmatch(r"-?\d+\.\d{3}", text):
        return f"prediction {text[:40]!r} is no number with three decimals"
    if not LOWEST_GRADE <= float(text) <= HIGHEST_GRADE:
        return f"prediction {text[:40]} is no grade from 0 to 5"
    return None
