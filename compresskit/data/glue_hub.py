"""GLUE rows through `datasets`: from the hub, or from a local directory laid out as a data set repository."""

from typing import Any

import datasets
from datasets import ClassLabel

from compresskit.data.glue_tasks import PAIR, GlueTask, Split
from compresskit.data.glue_tsv import parse_label, quoted


def read_repository(task: GlueTask, source: str, split: Split) -> dict[str, list]:
    """The same columns as `glue_tsv.read_tsv`; `source` is what `datasets.load_dataset` takes."""
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
            f"data set {source!r}: missing column; expected {quoted((*task.hub_columns, 'label'))}, "
            f"it has {quoted(loaded.column_names)}"
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
        return [parse_label(task, known.get(str(v), str(v)), f"{where} {row}") for row, v in enumerate(values)]
    theirs = feature.names
    for ours in (task.labels, task.hub_labels):
        if sorted(theirs) == sorted(ours):
            order = [ours.index(name) for name in theirs]
            return [_class(order, value, f"data set {source!r} row {row}") for row, value in enumerate(values)]
    raise ValueError(
        f"data set {source!r}: classes {quoted(theirs)} are not those of {task.name}: {quoted(task.labels)}"
    )


def _class(order: list[int], value: int | None, where: str) -> int:
    if value is None or not 0 <= value < len(order):
        raise ValueError(f"{where}: label {value} is none of 0 to {len(order) - 1}")
    return order[value]
