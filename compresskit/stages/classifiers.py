"""Task models from anywhere, with the labels of the task in their place."""

from __future__ import annotations

from typing import Any

import torch

from compresskit.data.glue import GlueTask
from compresskit.models import CompactBertForSequenceClassification, checkpoints
from compresskit.stages.inputs import tokenizer_for
from compresskit.stages.session import model_folder, on_device


def open_classifier(
    source: str, task: GlueTask, *, trained: bool = False
) -> tuple[CompactBertForSequenceClassification, Any]:
    """The model that `source` names, on this machine's device, with its tokenizer, ready for `task`.

    A head with the task's labels in another order (as hub models have for MNLI) gets the task's order; any other head
    is replaced by a fresh one. Raises ValueError where the model must be `trained` and has no head for the task.
    """
    folder = model_folder(source)
    found = checkpoints.read(folder)
    head = found.weights.get("classifier.weight")
    names = dict(enumerate(task.labels)) or {0: "score"}
    settings: dict[str, Any] = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
    if head is None or head.shape[0] != task.num_labels:
        if trained:
            raise ValueError(f"{source} has no head with {task.num_labels} outputs; fine-tune it on {task.name} first")
        for name in ("classifier.weight", "classifier.bias"):
            found.weights.pop(name, None)
    else:
        order = _order(found.config.get("id2label") or {}, task)
        for name in ("classifier.weight", "classifier.bias"):
            found.weights[name] = found.weights[name][order]
    model = found.model(CompactBertForSequenceClassification, **settings)
    return on_device(model), tokenizer_for(folder, model.config.vocab_size)


def _order(id2label: dict[Any, str], task: GlueTask) -> torch.Tensor:
    """Which of the model's outputs stands for each of the task's labels."""
    theirs = [str(name) for _, name in sorted((int(i), name) for i, name in id2label.items())]
    for ours in (task.labels, task.hub_labels):
        if ours and sorted(theirs) == sorted(ours):
            return torch.tensor([theirs.index(name) for name in ours])
    return torch.arange(task.num_labels)  # unnamed outputs ("LABEL_0") are taken in the task's order
