"""Task models from anywhere, with the labels of the task in their place."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from compresskit.data.glue import GlueTask
from compresskit.models import CompactBertForSequenceClassification, checkpoints
from compresskit.stages import length_choice
from compresskit.stages.inputs import tokenizer_for
from compresskit.stages.session import model_folder, on_device

UNNAMED = re.compile(r"LABEL_\d+", re.IGNORECASE)


def open_classifier(
    source: str, task: GlueTask, *, trained: bool = False, labels: Sequence[str] = ()
) -> tuple[CompactBertForSequenceClassification, Any]:
    """The model that `source` names, on this machine's device, with its tokenizer, ready for `task`.

    A head with the task's labels in another order (as hub models have for MNLI) gets the task's order; `labels` names
    the outputs where the model itself does not. A head of another size is replaced by a fresh one. Raises ValueError
    where the model must be `trained` and has no head for the task, or one whose outputs have foreign names.
    """
    folder = model_folder(source)
    found = checkpoints.read(folder).for_task(task.name)
    head = found.weights.get("classifier.weight")
    names = dict(enumerate(task.labels)) or {0: "score"}
    settings: dict[str, Any] = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
    if head is None or head.shape[0] != task.num_labels:
        if trained:
            raise ValueError(f"{source} has no head with {task.num_labels} outputs; fine-tune it on {task.name} first")
        for name in ("classifier.weight", "classifier.bias"):
            found.weights.pop(name, None)
    else:
        theirs = list(labels) or _names(found.config.get("id2label"), source)
        order = label_order(theirs, task)
        if order is None and (trained or labels):
            raise ValueError(
                f"{source} calls its outputs {', '.join(theirs)}; expected the labels of {task.name} in any order: "
                f"{', '.join(task.labels)}; give these names as id2label in config.json (a teacher's: teacher_labels)"
            )
        for name in ("classifier.weight", "classifier.bias"):
            found.weights[name] = found.weights[name][order or range(task.num_labels)]
    model = on_device(found.model(CompactBertForSequenceClassification, **settings))
    return length_choice.chosen(model, source), tokenizer_for(folder, model.config.vocab_size)


def _names(id2label: Any, source: str) -> list[str]:
    """The names in a config, by number; none where they say nothing (LABEL_0, …)."""
    if id2label is None:
        return []
    if not isinstance(id2label, dict) or not all(str(number).isdecimal() for number in id2label):
        raise ValueError(f"{source}: id2label in config.json is {id2label!r}; expected names by number, from 0")
    names = [str(name) for _, name in sorted((int(number), name) for number, name in id2label.items())]
    return [] if all(UNNAMED.fullmatch(name) for name in names) else names


def label_order(theirs: Sequence[str], task: GlueTask) -> list[int] | None:
    """Which of the model's outputs stands for each of the task's labels; None where the names are not the task's.

    theirs: names of the outputs in any letter case, none for outputs without names, which are taken in the task's
    order, as the original TinyBERT and data files have it (MNLI: contradiction, entailment, neutral).
    """
    if not theirs or task.is_regression:
        return list(range(task.num_labels))
    found = [_plain(name) for name in theirs]
    for ours in (task.labels, task.hub_labels):
        if sorted(found) == sorted(ours):
            return [found.index(name) for name in ours]
    return None


def _plain(name: str) -> str:
    return re.sub(r"\W+", "_", name.strip().lower())
