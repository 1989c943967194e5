"""Answers to GLUE's unlabelled test rows and to SQuAD's questions, as the files that are handed in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from compresskit import tracking
from compresskit.data import glue, glue_submission
from compresskit.evaluation import glue as label_scores
from compresskit.evaluation import squad_answers
from compresskit.models import checkpoints
from compresskit.stages import length_choice
from compresskit.stages.inputs import glue_source
from compresskit.stages.session import model_folder
from compresskit.stages.tasks import TASKS, SentenceTask, SpanTask, TaskModel, rows_in_order, task_data, task_named
from compresskit.training.progress import watched

LEDGER = "predictions.json"  # what each file was made from
SUBMITTED = {task: glue_submission.files_of(task) for task in glue.TASKS if glue_submission.files_of(task)}
QUESTIONS = [name for name, task in TASKS.items() if isinstance(task, SpanTask)]
Job = tuple[str, Dataset, Callable[[], Path]]  # a file's or a folder's name, the rows it answers, and what writes it


@dataclass
class Reading:
    """Where the rows of a task are and how they become tokens; the names are those of `TaskParams`."""

    task: str
    data_dir: str
    max_seq_len: int
    doc_stride: int
    max_query_length: int
    max_rows: int = 0
    seed: int = 0


def predict(
    models: Mapping[str, str],
    data_dir: str,
    out: Path,
    *,
    max_seq_len: int = 0,
    doc_stride: int = 128,
    max_query_length: int = 64,
) -> None:
    """Write the files that the models of `models`, by task, answer; with all nine GLUE tasks also their checked zip.

    A task's TSV files answer its test rows (mnli: also MNLI-mm and AX); the folders squad1 and squad2 answer the dev
    questions by predictions.json, nbest_predictions.json and, for 2.0, null_odds.json, with scores.json beside them.
    max_seq_len 0: 128 for sentences, 384 for questions. A file that stands there already, of the same model and rows,
    is kept, so a stopped call goes on. Raises ValueError or FileNotFoundError before the first file where a task is
    unknown, a model is not there or test rows are missing.
    """
    tasks = {name: _predictable(name) for name in models}
    if not tasks:
        raise ValueError(f"no model named; give --model TASK=MODEL, with tasks {', '.join((*SUBMITTED, *QUESTIONS))}")
    folders = {name: checkpoints.local_folder(model_folder(source)) for name, source in models.items()}
    tests = {file: _test_rows(file, data_dir) for name in models for file in SUBMITTED.get(name, [])}
    for name in set(QUESTIONS) & set(tasks):  # a faulty file is better known now than in an hour
        tasks[name].read(tasks[name].source(data_dir), "dev", 0)
    out.mkdir(parents=True, exist_ok=True)
    ledger = _read_ledger(out / LEDGER)
    for name, task in tasks.items():
        reading = Reading(name, data_dir, max_seq_len or task.usual_seq_len, doc_stride, max_query_length)
        model, tokenizer = task.open_model(length_choice.moved(models[name], folders[name]), trained=True)
        if isinstance(task, SpanTask):
            jobs = _span_jobs(task, model, tokenizer, reading, out)
        else:
            jobs = _sentence_jobs(task, model, tokenizer, reading, tests, out)
        origin = {"model": models[name], "model_digest": tracking.folder_digest(folders[name])}
        for file, rows, write in jobs:
            made_from = {**origin, "rows_digest": tracking.digest(rows)}
            kept = ledger.get(file) == {**made_from, "content": _digest(out / file)}
            if not kept:
                (out / glue_submission.ZIP).unlink(missing_ok=True)  # of older files
                ledger[file] = {**made_from, "content": _digest(write())}
                glue_submission.write_json(out / LEDGER, ledger)
            print(f"{out / file}: {len(rows)} rows of {models[name]}{', as it was' if kept else ''}", flush=True)
    missing = {task: files for task, files in SUBMITTED.items() if task not in models}
    if not missing:
        glue_submission.check(out, {file: len(rows) for file, rows in tests.items()})
        print(f"{glue_submission.write_zip(out)}: checked and ready to hand in")
    elif tests:
        files = ", ".join(file for files in missing.values() for file in files)
        print(f"no {glue_submission.ZIP}: {files} are missing; give --model for {', '.join(missing)} too")


def check(path: Path, data_dir: str) -> None:
    """Hold a folder or zip against the test files; see `glue_submission.check`."""
    rows = {file: len(_test_rows(file, data_dir)) for file in glue_submission.FILES}
    glue_submission.check(path, rows)
    print(f"{path}: {len(rows)} files, {sum(rows.values())} rows, all as the server wants them")


def _predictable(name: str) -> SentenceTask | SpanTask:
    if name == "mnli_mm":
        raise ValueError("mnli_mm: MNLI-mm and AX are answered by MNLI's model; give --model mnli=MODEL")
    return task_named(name)


def _test_rows(file: str, data_dir: str) -> Dataset:
    return glue_submission.read_test(file, glue_source(data_dir))


def _sentence_jobs(
    task: SentenceTask, model: TaskModel, tokenizer: Any, reading: Reading, tests: Mapping[str, Dataset], out: Path
) -> Iterator[Job]:
    for name in SUBMITTED[task.name]:
        rows = task.encode(tests[name], tokenizer, reading)

        def write(name: str = name, rows: Dataset = rows) -> Path:
            batches = rows_in_order(rows, tokenizer, reading.max_seq_len)
            logits, _, _ = label_scores.predict(model, watched(name, batches, len(batches)))
            return glue_submission.write(out, name, glue_submission.predictions(name, logits))

        yield f"{name}.tsv", rows, write


def _span_jobs(task: SpanTask, model: TaskModel, tokenizer: Any, reading: Reading, out: Path) -> Iterator[Job]:
    data = task_data(task, reading, tokenizer, splits=("dev",))

    def write() -> Path:
        files = task.official_files(data.predict(model, "dev", task.name))
        squad_answers.write_files(out / task.name, files)
        return out / task.name

    yield task.name, data.dev, write


def _read_ledger(path: Path) -> dict[str, Any]:
    """What was written before; nothing where that cannot be read: everything is then made anew."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _digest(path: Path) -> str:
    if path.is_dir():
        return tracking.folder_digest(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else ""
