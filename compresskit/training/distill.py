"""Distillation of layers and answers: one after the other (TinyBERT, sections 3 and 4), or together (SparseBERT,
EfficientBERT); of a supernet also of another network inside it at each step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from compresskit.training import distributed
from compresskit.training.loop import Batch, Losses, Pieces, summed
from compresskit.training.losses import (
    attention_map_mse,
    attention_score_mse,
    hidden_state_mse,
    soft_cross_entropy,
)

logger = logging.getLogger(__name__)

Answers = Callable[[Any, Any, Batch, float], Tensor]  # outputs of student and teacher, batch, temperature, to a loss
Network = Callable[[int], Any]  # step, from 1, to the config of the network inside the student that learns in it

# Up to this length the attention loss is fastest on maps, kept of the layers it compares (benchmarks/score_mse.py).
KEPT_MAPS = 192


def uniform_mapping(student_layers: int, teacher_layers: int) -> list[int]:
    """Teacher hidden state for each student hidden state, 0 being the embedding's output: [0, r, 2r, …].

    Raises ValueError where the teacher's layers are no multiple of the student's.
    """
    if teacher_layers % student_layers:
        raise ValueError(
            f"{teacher_layers} teacher layers are no multiple of {student_layers} student layers; give layer_mapping, "
            "for each student layer the teacher layer it learns from"
        )
    ratio = teacher_layers // student_layers
    return [i * ratio for i in range(student_layers + 1)]


def check_mapping(mapping: Sequence[int], student_layers: int, teacher_layers: int) -> None:
    """Raise ValueError unless `mapping` names a teacher hidden state for each of the student's, 0 for the first."""
    layers = list(mapping)[1:]
    if list(mapping)[:1] != [0] or len(layers) != student_layers or not all(1 <= t <= teacher_layers for t in layers):
        raise ValueError(
            f"layer mapping {list(mapping)} for {student_layers} student and {teacher_layers} teacher layers; expected "
            f"{student_layers + 1} numbers: 0 for the embedding, then one from 1 to {teacher_layers} per student layer"
        )


def projection(
    student_width: int,
    teacher_width: int,
    num_states: int,
    *,
    per_layer: bool = False,
    always: bool = False,
    released: Mapping[str, Tensor] | None = None,
) -> nn.Module | None:
    """The learned map from student to teacher hidden states, shared by all `num_states` of them or `per_layer`.

    None for equal widths, which are compared as they are, unless `always`, as in TinyBERT's code. released: the
    `fit_dense` or `fit_denses` of a released student; the map starts from them where they are of its shape.
    """
    if student_width == teacher_width and not always:
        return None
    shared = nn.Linear(student_width, teacher_width)
    project = nn.ModuleList(nn.Linear(student_width, teacher_width) for _ in range(num_states)) if per_layer else shared
    prefix = _prefix(project)
    given = {name.removeprefix(prefix): t for name, t in (released or {}).items() if name.startswith(prefix)}
    own = project.state_dict()
    if given.keys() == own.keys() and all(given[name].shape == own[name].shape for name in own):
        project.load_state_dict(given)
    elif released:
        logger.warning(
            "the projection that came with the student (%s) is not of the kind or the size asked for, so a new one "
            "starts at random; see the parameter projection",
            ", ".join(sorted(released)),
        )
    return project


def released_form(project: nn.Module) -> dict[str, Tensor]:
    """The weights of a projection by the names they have in TinyBERT's releases, which `projection` takes again."""
    return {_prefix(project) + name: tensor for name, tensor in project.state_dict().items()}


def _prefix(project: nn.Module) -> str:
    return "fit_denses." if isinstance(project, nn.ModuleList) else "fit_dense."


def check_heads(student: Any, teacher: Any, mapping: Sequence[int]) -> None:
    """Raise ValueError, naming the layer, where a layer has other attention heads than the one it learns from.

    student, teacher: their configs.
    """
    own, theirs = (config.per_layer("num_attention_heads") for config in (student, teacher))
    for layer, target in enumerate(list(mapping)[1:]):
        if own[layer] != theirs[target - 1]:
            raise ValueError(
                f"student layer {layer + 1} has {own[layer]} attention heads, teacher layer {target} has "
                f"{theirs[target - 1]}; attention is compared head by head, so give the student as many"
            )


def check_widths(student: Any, teacher: Any, project: nn.Module | None) -> None:
    """Raise ValueError where states of two widths would be compared without a projection. Both are configs."""
    if project is None and student.hidden_size != teacher.hidden_size:
        raise ValueError(
            f"hidden_size is {student.hidden_size} in the student and {teacher.hidden_size} in the teacher; a "
            "projection is needed between them"
        )


def inputs(batch: Batch) -> Batch:
    """The batch without its labels."""
    return {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}


def layer_inputs(batch: Batch, layers: Sequence[int]) -> dict[str, Any]:
    """What a model is given for `layer_losses`: the batch, and the wish for hidden states and, of short rows, for the
    scores of `layers`, counted from 1, else for queries and keys.
    """
    maps = batch["input_ids"].shape[1] <= KEPT_MAPS
    wish = {"output_attention_scores": [layer - 1 for layer in layers]} if maps else {"output_query_key_states": True}
    return {**inputs(batch), "output_hidden_states": True, **wish}


def whole(step: int) -> None:
    """No network inside the student: all of it learns at every step."""


def taught(teacher: nn.Module, given: Mapping[str, Any]) -> Any:
    """What the teacher says, without gradients; one whose weights were rounded as a whole computes as it is."""
    kind = given["input_ids"].device.type
    rounded = next(teacher.parameters()).dtype != torch.float32  # autocast wants weights in float32
    with torch.no_grad(), torch.autocast(kind, enabled=torch.is_autocast_enabled(kind) and not rounded):
        return teacher(**given)


def layer_losses(
    own: Any, target: Any, mapping: Sequence[int], project: nn.Module | None, batch: Batch, padded: bool = False
) -> tuple[Tensor, Tensor]:
    """Attention and hidden-state loss of the outputs of student and teacher.

    Means run over real tokens; padded: over padding too, as in TinyBERT's code, so that they depend on its amount.
    """
    mask = batch["attention_mask"]
    with torch.autocast(mask.device.type, enabled=False):  # differences of large numbers
        if own.attention_scores is not None:
            ours, theirs = (_exact(output.attention_scores) for output in (own, target))
            attention = attention_map_mse(ours, theirs, mapping, mask, padded)
        else:
            ours, theirs = (
                list(zip(_exact(output.query_states), _exact(output.key_states), strict=True))
                for output in (own, target)
            )
            attention = attention_score_mse(ours, theirs, mapping, mask, padded)
        states, goals = (_exact(output.hidden_states) for output in (own, target))
        hidden = hidden_state_mse(states, goals, mapping, project, None if padded else mask)
    if padded:
        return attention, hidden
    lengths = mask.sum(-1)
    pairs, tokens = distributed.weight(torch.stack([lengths.square().sum(), lengths.sum()]))
    return attention * pairs, hidden * tokens  # of several processes the one with more tokens counts for more


def _exact(tensors: Sequence[Tensor | None]) -> Sequence[Any]:
    """In float32 what autocast has rounded; what is in float32 or float64 as it is."""
    half = (torch.bfloat16, torch.float16)
    return [t.float() if t is not None and t.dtype in half else t for t in tensors]


def check_pair(
    student: PreTrainedModel, teacher: PreTrainedModel, mapping: Sequence[int], project: nn.Module | None
) -> None:
    """Raise ValueError where the mapping, the heads or, without `project`, the widths do not go together."""
    check_mapping(mapping, student.config.num_hidden_layers, teacher.config.num_hidden_layers)
    check_heads(student.config, teacher.config, mapping)
    check_widths(student.config, teacher.config, project)


def intermediate(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    mapping: Sequence[int],
    project: nn.Module | None,
    padded: bool = False,
    network: Network = whole,
) -> Losses:
    """Losses of the first step: attention scores and hidden states. The teacher is in evaluation mode throughout.

    padded: as in `layer_losses`. network: which network inside the student learns at a step. Raises ValueError where
    the mapping, the heads or, without `project`, the widths do not go together.
    """
    check_pair(student, teacher, mapping, project)
    teacher.eval()

    def losses(batch: Batch, step: int) -> dict[str, Tensor]:
        target = taught(teacher.base_model, layer_inputs(batch, mapping[1:]))
        own = student.base_model(**layer_inputs(batch, range(1, len(mapping))), subnet=network(step))
        attention, hidden = layer_losses(own, target, mapping, project, batch, padded)
        return {"loss": attention + hidden, "attention_loss": attention.detach(), "hidden_loss": hidden.detach()}

    return losses


@torch.no_grad()
def mean_losses(student: PreTrainedModel, losses: Losses | Pieces, batches: Iterable[Batch]) -> dict[str, float]:
    """The losses as means over the rows of `batches`, of the student in evaluation mode; its mode is left as found."""
    training = student.training
    student.eval()
    rows, sums = 0, dict[str, float]()
    for batch in batches:
        size = len(batch["input_ids"])
        found = losses({name: tensor.to(student.device) for name, tensor in batch.items()}, 0)
        for name, value in summed(found).items():
            sums[name] = sums.get(name, 0.0) + size * value.item()
        rows += size
    student.train(training)
    return {name: total / rows for name, total in sums.items()}


def check_labels(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Raise ValueError where student and teacher do not have the same number of labels."""
    own, theirs = (model.config.num_labels for model in (student, teacher))
    if own != theirs:
        raise ValueError(f"the student has {own} labels and the teacher {theirs}; fine-tune the teacher on this task")


def prediction(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    temperature: float = 1.0,
    teacher_logits: Callable[[Batch], Tensor] | None = None,
) -> Losses:
    """Losses of the second step: the teacher's answers; for regression the gold scores, as TinyBERT does.

    teacher_logits: the teacher's answers to a batch, (B, C), such as `TeacherLogits` remembers; None: it is asked each
    time.  Raises ValueError where student and teacher do not have the same number of labels.
    """
    check_labels(student, teacher)
    teacher.eval()

    def losses(batch: Batch, step: int) -> dict[str, Tensor]:
        logits = student(**inputs(batch)).logits
        if student.config.num_labels == 1:
            return {"loss": F.mse_loss(logits.squeeze(-1), batch["labels"].to(logits.dtype))}
        if teacher_logits is not None:
            return {"loss": soft_cross_entropy(logits, teacher_logits(batch), temperature)}
        with torch.no_grad():
            target = teacher(**inputs(batch)).logits
        return {"loss": soft_cross_entropy(logits, target, temperature)}

    return losses


def label_answers(own: Any, target: Any, batch: Batch, temperature: float) -> Tensor:
    """The teacher's softened answers; for regression the gold scores. own, target: outputs of student and teacher."""
    if own.logits.shape[-1] == 1:
        return F.mse_loss(own.logits.squeeze(-1), batch["labels"].to(own.logits.dtype))
    return soft_cross_entropy(own.logits, target.logits, temperature)


def together(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    mapping: Sequence[int],
    project: nn.Module | None,
    answers: Answers = label_answers,
    *,
    hidden_ratio: float = 1.0,
    prediction_ratio: float = 1.0,
    temperature: float = 1.0,
    padded: bool = False,
    network: Network = whole,
) -> Losses:
    """Attention scores, hidden states and answers at once: hidden_ratio·(L_attn + L_hidden) + prediction_ratio·L_pred.

    (EfficientBERT's fine-tuning; with a teacher of the same shape SparseBERT's, section 3). answers: the loss on what
    the head says; `distill_spans.span_answers` for questions. padded, network: as in `intermediate`. Raises ValueError
    as that does, and where student and teacher have other labels.
    """
    check_pair(student, teacher, mapping, project)
    check_labels(student, teacher)
    teacher.eval()

    def losses(batch: Batch, step: int) -> dict[str, Tensor]:
        target = taught(teacher, layer_inputs(batch, mapping[1:]))
        own = student(**layer_inputs(batch, range(1, len(mapping))), subnet=network(step))
        attention, hidden = layer_losses(own, target, mapping, project, batch, padded)
        answer = answers(own, target, batch, temperature)
        return {
            "loss": hidden_ratio * (attention + hidden) + prediction_ratio * answer,
            "attention_loss": attention.detach(),
            "hidden_loss": hidden.detach(),
            "prediction_loss": answer.detach(),
        }

    return losses
