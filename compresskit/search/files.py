"""AutoTinyBERT's text files of a search: candidates, measured latencies, results of evaluated candidates.

candidates   one architecture per line (search/arch_text.py)
latencies    architecture, tab, milliseconds
results      blocks of `name = value` between lines of asterisks, as superbert_run_en_classifier.py appends them
"""

from __future__ import annotations

import ast
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from statistics import fmean

from compresskit.models.config import CompactBertConfig
from compresskit.search import arch_text
from compresskit.search.arch_text import Order

BEGIN, END = "**************S*************", "**************E*************"
FIELDS = ("task_name", "architecture", "parameter size", "best_acc", "time_per_batch_infer", "infer_cnt")
NUMBER = re.compile(r"\d+(\.\d*)?(e[+-]?\d+)?")
F1 = re.compile(rf"f1:\s*({NUMBER.pattern})")


def read_candidates(path: str | Path, template: CompactBertConfig) -> list[CompactBertConfig]:
    """Every architecture of a file, in its order; all else as in `template`.  Raises ValueError with file and line."""
    return [_parsed(path, number, line, template) for number, line in _lines(path)]


def write_candidates(path: str | Path, configs: Iterable[CompactBertConfig], order: Order) -> None:
    """One architecture per line, with its entries in the order that the flavour's searcher writes."""
    write_whole(path, "".join(f"{arch_text.text(config, order)}\n" for config in configs))


def read_latencies(path: str | Path, template: CompactBertConfig) -> list[tuple[CompactBertConfig, float]]:
    """Measured architectures with their milliseconds.  Raises ValueError with file and line."""
    found = []
    for number, line in _lines(path):
        text, _, milliseconds = line.partition("\t")
        if not NUMBER.fullmatch(milliseconds.strip()) or not float(milliseconds) > 0:
            raise ValueError(f"{path}, line {number}: expected an architecture, a tab and its milliseconds")
        found.append((_parsed(path, number, text, template), float(milliseconds)))
    return found


def write_latencies(path: str | Path, measured: Iterable[tuple[CompactBertConfig, float]]) -> None:
    """The original's lat.tmp: architecture, tab, milliseconds."""
    write_whole(path, "".join(f"{arch_text.text(config, 'mutant')}\t{ms!r}\n" for config, ms in measured))


# Results


@dataclass(frozen=True)
class Result:
    """One architecture on one task.

    architecture: its text. best_acc: a share of 1, or "f1: 83.31; em: 75.1" in per cent, or empty where nothing came
    out. time_per_batch_infer_ms: mean over infer_cnt batches.
    """

    task_name: str
    architecture: str
    parameters: int
    best_acc: str
    time_per_batch_infer_ms: float
    infer_cnt: int

    def block(self) -> str:
        """As the original writes it."""
        values = (
            self.task_name,
            self.architecture,
            self.parameters,
            self.best_acc,
            f"{self.time_per_batch_infer_ms:.3f} ms",
            self.infer_cnt,
        )
        lines = [f"{name} = {value}" for name, value in zip(FIELDS, values, strict=True)]
        return "\n".join((BEGIN, *lines, END)) + "\n\n"


def write_results(path: str | Path, results: Iterable[Result]) -> None:
    """A whole results file."""
    write_whole(path, "".join(result.block() for result in results))


def read_results(path: str | Path) -> list[Result]:
    """Every block of a results file, in its order.  Raises ValueError with file and line."""
    results: list[Result] = []
    found: dict[str, str] | None = None
    number = 0
    for number, line in _lines(path):
        if line.startswith(BEGIN[:10]):
            if (found is None) != ("S" in line):
                problem = "ends before it begins" if found is None else "begins inside another"
                raise ValueError(f"{path}, line {number}: a result {problem}")
            if found is not None:
                results.append(_result(path, number, found))
            found = {} if found is None else None
        elif found is None:
            raise ValueError(f"{path}, line {number}: expected {BEGIN}, which begins a result")
        else:
            name, equals, value = line.partition("=")
            if not equals or name.strip() not in FIELDS:
                raise ValueError(f"{path}, line {number}: expected one of {', '.join(FIELDS)}, then = and a value")
            found[name.strip()] = value.strip()
    if found is not None:
        raise ValueError(f"{path}: the last result is cut off after line {number}; remove it")
    return results


def fitness(results: Sequence[Result], *, faithful: bool = False) -> dict[str, float]:
    """Mean score in per cent of each architecture, F1 of question answering among them, by its canonical text.

    Several results on one task are averaged first; an architecture without a result on each task of the file is not
    finished, and left out. faithful: as the original, which takes the mean of every two results, whatever their
    architectures, for that of the second's text, and the seven characters after "f1: " for the number.
    """
    if faithful:
        pairs = zip(results[::2], results[1::2], strict=False)
        return {
            second.architecture: (_score_pct(first.best_acc, True) + _score_pct(second.best_acc, True)) / 2
            for first, second in pairs
        }
    scores: dict[str, dict[str, list[float]]] = {}
    for result in results:
        tasks = scores.setdefault(canonical(result.architecture), {})
        tasks.setdefault(result.task_name, []).append(_score_pct(result.best_acc))
    wanted = {result.task_name for result in results}
    return {text: fmean(map(fmean, tasks.values())) for text, tasks in scores.items() if tasks.keys() == wanted}


def canonical(architecture: str) -> str:
    """The same text for the same architecture, whatever the order of its entries."""
    return str(dict(sorted(ast.literal_eval(architecture).items())))


def _score_pct(best_acc: str, faithful: bool = False) -> float:
    if not best_acc:
        return 0.0
    if faithful and "f1: " in best_acc:
        return float(best_acc.partition("f1: ")[2][:7])
    score = F1.match(best_acc)
    number = float(score[1]) if score else float(best_acc) * 100
    if not isfinite(number):
        raise ValueError(f"best_acc is {best_acc}")
    return number


def _result(path: str | Path, number: int, found: dict[str, str]) -> Result:
    if missing := [name for name in FIELDS if name not in found]:
        raise ValueError(f"{path}: the result that ends in line {number} has no {missing[0]}")
    task, architecture, parameters, best_acc, time, count = (found[name] for name in FIELDS)
    try:
        _score_pct(best_acc)
        canonical(architecture)
        return Result(task, architecture, int(parameters), best_acc, float(time.removesuffix("ms")), int(count))
    except (ValueError, SyntaxError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: the result that ends in line {number} cannot be read ({error})") from error


# Lines


def _lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """The lines of a file that are not blank, with their numbers from 1."""
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line.strip("\n")


def _parsed(path: str | Path, number: int, text: str, template: CompactBertConfig) -> CompactBertConfig:
    try:
        return arch_text.parse(text, template)
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: {error}") from error


def write_whole(path: str | Path, text: str) -> None:
    """Write a text file that is never seen half-written."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as unfinished:
        Path(unfinished, path.name).write_text(text, encoding="utf-8")
        os.replace(Path(unfinished, path.name), path)
