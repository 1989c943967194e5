"""The files of the original searches for length configurations, and ours in the same layouts.

    store-iter{i}.tsv, population-iter{i}.tsv, parents-iter{i}.tsv   evolution: lengths, MACs, score, method, parents
    sigopt-pareto-front.log / .csv, optuna-pareto-front.log           fronts of the hyper-parameter searches
    metrics.log                                                       one evaluation a line, as JSON
    measure_out.log                                                   evaluations at constant ratios

Scores are in per cent, as there. Nothing in a file is executed.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compresskit.search.files import write_whole
from compresskit.search.lengths import Entry, Lengths

STORE = "store.tsv"  # in a model's folder: what an earlier search has found
METRICS_LOG, MEASURE_LOG = "metrics.log", "measure_out.log"
FRONT_LOG, FRONT_CSV, OPTUNA_LOG = "sigopt-pareto-front.log", "sigopt-pareto-front.csv", "optuna-pareto-front.log"
LENGTH_KEYS = re.compile(r"(?:x|hlayer_)(\d+)")
SEARCHED, PLAIN = -1.0, 0.0  # `rate` in metrics.log of a searched configuration, and of none


# Stores of the evolutionary search


def generation_files(number: int) -> dict[str, str]:
    """The names of the three files of a round: store, population, parents."""
    return {part: f"{part}-iter{number}.tsv" for part in ("store", "population", "parents")}


def store_text(rows: Iterable[tuple[Lengths, Entry]]) -> str:
    """Tab-separated Python literals, one configuration a line."""
    out = io.StringIO()
    writer = csv.writer(out, delimiter="\t")
    for lengths, entry in rows:
        writer.writerow([str(value) for value in (lengths, *entry)])
    return out.getvalue()


def write_generation(
    folder: Path, number: int, store: Mapping[Lengths, Entry], population: Sequence[Lengths], hull: Sequence[Lengths]
) -> None:
    """Write the three files of a round; the store is sorted by cost."""
    parts = {
        "store": sorted(store.items(), key=lambda item: item[1].cost),
        "population": [(lengths, store[lengths]) for lengths in population],
        "parents": [(lengths, store[lengths]) for lengths in hull],
    }
    for part, name in generation_files(number).items():
        write_whole(folder / name, store_text(parts[part]))


def read_store(path: str | Path) -> dict[Lengths, Entry]:
    """The configurations of a store, population or parents file, in its order; method and parents may be missing.

    Raises ValueError with the line that is no such row.
    """
    found = {}
    with open(path, encoding="utf-8", newline="") as file:
        for number, cells in enumerate(csv.reader(file, delimiter="\t"), 1):
            try:
                lengths, cost, score, *origin = (ast.literal_eval(cell) for cell in cells)
                method, parents = origin or (0, None)
                entry = Entry(_number(cost), _number(score), int(method), _parents(parents))
                found[_lengths(lengths)] = entry
            except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
                raise ValueError(
                    f"{path}, line {number}: expected lengths, cost, score, method and parents as Python literals with "
                    f"tabs between them ({error})"
                ) from error
    return found


def _lengths(value: Any) -> Lengths:
    if not isinstance(value, tuple) or not value or any(type(length) is not int or length < 1 for length in value):
        raise ValueError(f"{value!r} is no tuple of lengths")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or value != value:
        raise ValueError(f"{value!r} is no number")
    return value


def _parents(value: Any) -> tuple[Lengths, ...] | None:
    return None if value is None else tuple(_lengths(lengths) for lengths in value)


# Fronts


@dataclass(frozen=True)
class FrontPoint:
    """A configuration of a front: its lengths as the search had them, F1 in per cent, seconds of an evaluation."""

    lengths: tuple[float, ...]
    f1: float
    eval_time: float

    def rounded(self) -> Lengths:
        """The lengths that were run."""
        return tuple(round(length) for length in self.lengths)

    def keyed(self) -> dict[str, float]:
        """As in the published files: x0, x1, …, f1, evalTime."""
        return {f"x{i}": length for i, length in enumerate(self.lengths)} | {"f1": self.f1, "evalTime": self.eval_time}


def front_log(points: Iterable[FrontPoint]) -> str:
    """The front as JSON lines."""
    return "".join(json.dumps(point.keyed()) + "\n" for point in points)


def front_csv(points: Sequence[FrontPoint]) -> str:
    """The front in the published CSV layout: header x0 … f1, evalTime, no quoting."""
    lines = [point.keyed() for point in points]
    return "".join(",".join(map(str, cells)) + "\n" for cells in [list(lines[0]), *(line.values() for line in lines)])


def read_front_log(path: str | Path) -> list[FrontPoint]:
    """The points of a sigopt-pareto-front.log (x0, …) or an optuna-pareto-front.log (hlayer_0, …), of any depth.

    Raises ValueError with the line that is no such point.
    """
    found = []
    for number, record in _records(path):
        lengths = {int(m[1]): value for key, value in record.items() if (m := LENGTH_KEYS.fullmatch(key))}
        try:
            if sorted(lengths) != list(range(len(lengths))) or not lengths:
                raise ValueError(f"the layers {sorted(lengths)}")
            ordered = tuple(_number(lengths[layer]) for layer in range(len(lengths)))
            found.append(FrontPoint(ordered, _number(record["f1"]), _number(record["evalTime"])))
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: expected x0, x1, …, f1 and evalTime, found {error}") from error
    return found


def read_front_csv(path: str | Path) -> list[FrontPoint]:
    """The points of a sigopt-pareto-front.csv, ours or the original's."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = []
    for number, row in enumerate(rows, 2):
        try:
            numbers = {key: float(value) for key, value in row.items()}
            depth = len(numbers) - 2
            found.append(FrontPoint(tuple(numbers[f"x{i}"] for i in range(depth)), numbers["f1"], numbers["evalTime"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: expected x0, x1, …, f1, evalTime, found {error}") from error
    return found


def convert_front(log: str | Path, table: str | Path) -> None:
    """A front's log as CSV."""
    points = read_front_log(log)
    if not points:
        raise ValueError(f"{log} holds no point of a front")
    write_whole(table, front_csv(points))


# Evaluations


def metrics_line(results: Mapping[str, Any], *, eval_time: float, model: str, macs: int, rate: float) -> str:
    """One evaluation of metrics.log: the results by name, then time, model, MACs and rate."""
    told = {"eval_time": eval_time, "model": model, "macs": macs, "rate": rate}
    return json.dumps(dict(sorted(results.items())) | told) + "\n"


def read_metrics_log(path: str | Path) -> list[dict[str, Any]]:
    """The evaluations of a metrics.log; raises ValueError with the line that is none."""
    found = []
    for number, record in _records(path):
        if missing := [name for name in ("eval_time", "model", "macs", "rate") if name not in record]:
            raise ValueError(f"{path}, line {number}: no {missing[0]} in this evaluation")
        found.append(record)
    return found


def measure_text(rate: float, lengths: Lengths, macs: int, results: Mapping[str, Any]) -> str:
    """One ratio of measure_out.log."""
    return f"{rate}:\nsequences={lengths}\nmacs={macs}\neval={dict(results)}\n"


def _records(path: str | Path) -> Iterable[tuple[int, dict[str, Any]]]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError("no object")
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: no JSON object ({error})") from error
            yield number, record
