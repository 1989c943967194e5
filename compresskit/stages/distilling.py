"""What the stages distill, general_distill, multitask and prune share: learning from a teacher's layers, by default as
it is best done and with `faithful` as the original: TinyBERT's code, on which SparseBERT's stands, or EfficientBERT's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal, Protocol, TypeVar

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from compresskit.data.batching import Batches, Epochs
from compresskit.models import CompactBertConfig, checkpoints, elastic, presets
from compresskit.models.feed_forward import parse
from compresskit.search.progressive import Rules, SizesOfFormulas
from compresskit.stages.session import DEVICE, Session, model_folder
from compresskit.training import distill
from compresskit.training.loop import Batch, Losses, Observer, Pieces, fit
from compresskit.training.optim import BertAdam, adamw, bert_schedule, decay_groups, linear_schedule
from compresskit.training.state import TrainingState
from compresskit.training.teacher import MAX_LOSS_CHANGE, has_fast_bfloat16, in_bfloat16


class LearningParams(Protocol):
    """The parameters of a stage that say how it trains."""

    max_seq_len: int
    warmup_ratio: float
    faithful: bool


class TeacherParams(LearningParams, Protocol):
    """The parameters of a stage that learns from a teacher's layers."""

    teacher_dtype: Literal["auto", "float32", "bfloat16"]


class LayerParams(TeacherParams, Protocol):
    """The parameters of a stage that say how layers are learned."""

    layer_mapping: list[int]
    projection: Literal["shared", "per_layer"]


FEED_FORWARD = ("feed_forward", "feed_forward_width", "intermediate_size")  # what an architecture may cut in place
Student = TypeVar("Student", bound=PreTrainedModel)
Original = Literal["tinybert", "efficientbert"]  # whose code `faithful` follows


@dataclass
class Layers:
    """A student's layers, the teacher layers they learn from, and the map between the widths of their states."""

    params: LayerParams
    teacher: PreTrainedModel
    student: PreTrainedModel
    mapping: list[int]
    project: nn.Module | None
    network: distill.Network = distill.whole  # inside the student, that learns at a step
    compared: Callable[..., Losses] = distill.intermediate  # by what the layers are: as distill.intermediate is called

    @classmethod
    def of(
        cls,
        params: LayerParams,
        teacher: PreTrainedModel,
        student: PreTrainedModel,
        released: Mapping[str, Tensor],
        network: distill.Network = distill.whole,
        compared: Callable[..., Losses] = distill.intermediate,
    ) -> Layers:
        """The pair, checked; released: projections that came with the student, see `distill.projection`."""
        mapping = layer_mapping(params, student.config, teacher.config)
        project = distill.projection(
            student.config.hidden_size,
            teacher.config.hidden_size,
            len(mapping),
            per_layer=params.projection == "per_layer",
            always=params.faithful,
            released=released,
        )
        projected = None if project is None else project.to(DEVICE)
        return cls(params, teacher, student, mapping, projected, network, compared)

    @property
    def modules(self) -> list[nn.Module]:
        """What is trained."""
        return [self.student] if self.project is None else [self.student, self.project]

    @property
    def parts(self) -> dict[str, nn.Module]:
        """What is saved beside the student while it is trained."""
        return {} if self.project is None else {"projection": self.project}

    def losses(self, teacher: PreTrainedModel | None = None, network: distill.Network = distill.whole) -> Losses:
        """What is minimised; `teacher`: another form of it, such as one in bfloat16."""
        asked = self.teacher if teacher is None else teacher
        padded = self.params.faithful
        return self.compared(self.student, asked, self.mapping, self.project, padded=padded, network=network)

    def learn(
        self,
        session: Session,
        batches: Batches | Epochs,
        *,
        learning_rate: float,
        num_steps: int,
        planned_steps: int,
        schedule: str,
        schedule_steps: int,
        label: str,
        state: TrainingState,
        observe: Observer,
        original: Original = "tinybert",
        autocast: torch.dtype | None = None,
    ) -> None:
        """Attention scores and hidden states, no answers: there is nothing to choose by, the last weights stand.

        schedule, schedule_steps: what `faithful` asks of the learning rate, and how long it takes.
        """
        teacher = self.teacher_for(session, batches, num_steps)
        fit(
            self.student,
            batches,
            self.losses(teacher, self.network),
            *optimizer(self.params, self.modules, learning_rate, schedule_steps, schedule, original),
            num_steps,
            label=label,
            state=state,
            parts=self.parts,
            planned_steps=planned_steps,
            max_grad_norm=max_grad_norm(self.params, original),
            autocast=autocast,
            observe=observe,
        )

    def teacher_for(self, session: Session, batches: Batches | Epochs, num_steps: int) -> PreTrainedModel:
        """The teacher as it is asked: see `teacher_as_asked`."""
        sample = batches.from_step(0, min(2, num_steps))
        return teacher_as_asked(self.params, session, self.teacher, self.student, self.losses, sample)

    def released_form(self) -> dict[str, Tensor]:
        """The projection under the names of TinyBERT's releases, to be kept beside the student; {} without one."""
        return {} if self.project is None else distill.released_form(self.project)


def teacher_as_asked(
    params: TeacherParams,
    session: Session,
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    losses: Callable[[PreTrainedModel], Losses | Pieces],
    sample: Iterable[Batch],
) -> PreTrainedModel:
    """The teacher, in bfloat16 where that is faster and changes the loss on `sample` by less than 0.1 %.

    losses: what the student minimises, of a form of the teacher.
    """
    wanted = params.teacher_dtype
    if wanted == "float32" or (wanted == "auto" and (params.faithful or not has_fast_bfloat16())):
        return teacher
    half, change = in_bfloat16(teacher, student, losses, sample)
    taken = wanted == "bfloat16" or change < MAX_LOSS_CHANGE
    session.run.tag({"teacher_dtype": "bfloat16" if taken else "float32", "teacher_loss_change": f"{change:.1e}"})
    return half if taken else teacher


def layer_mapping(params: LayerParams, student: Any, teacher: Any) -> list[int]:
    """Teacher hidden state for each of the student's, the embedding's output first: as given, or every r-th.

    student, teacher: their configs. Raises ValueError where the mapping does not fit the layers, or pairs layers with
    different numbers of heads.
    """
    depths = (student.num_hidden_layers, teacher.num_hidden_layers)
    mapping = [0, *params.layer_mapping] if params.layer_mapping else distill.uniform_mapping(*depths)
    distill.check_mapping(mapping, *depths)
    distill.check_heads(student, teacher, mapping)
    return mapping


def check_vocabularies(student: Any, teacher: Any) -> None:
    """Raise ValueError unless both tokenizers mean the same by each id: both models read the same ids."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours != theirs:
        unlike = sum(theirs.get(piece) != number for piece, number in ours.items())
        raise ValueError(
            f"student and teacher have other vocabularies: {len(ours)} and {len(theirs)} pieces, {unlike} of the "
            "student's with another id or none in the teacher's; take a student with the teacher's vocabulary"
        )


def shapes(teacher: PreTrainedModel, student: PreTrainedModel, mapping: list[int]) -> pd.DataFrame:
    """Teacher and student side by side, and which teacher layer each student layer learns from."""
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "qkv_size", "intermediate_size")
    models = {"teacher": teacher, "student": student}
    table = pd.DataFrame(
        {who: {name: m.config.brief(name) for name in names} for who, m in models.items()}, dtype=object
    )
    table.loc["parameters"] = [m.num_parameters() for m in models.values()]
    table.loc["learns from"] = ["", str(mapping)]
    return table


def batch_order(params: LearningParams) -> dict[str, Any]:
    """How `Batches` are drawn: of similar lengths; faithful: in plain random order, whole ones only, padded in full."""
    return {"length_buckets": False, "drop_last": True, "pad_to": params.max_seq_len} if params.faithful else {}


def optimizer(
    params: LearningParams,
    modules: list[nn.Module],
    learning_rate: float,
    num_steps: int,
    schedule: str,
    original: Original = "tinybert",
) -> tuple[Optimizer, LRScheduler]:
    """AdamW with warm-up and linear decay; faithful: the same from a rate of 0 on, as EfficientBERT's code, or BertAdam
    with the `schedule` of TinyBERT's.
    """
    if params.faithful and original == "tinybert":
        bert_adam = BertAdam(decay_groups(modules, 0.01), lr=learning_rate)
        return bert_adam, bert_schedule(bert_adam, num_steps, schedule, params.warmup_ratio)
    adam = adamw(modules, learning_rate)
    if params.faithful:
        return adam, get_linear_schedule_with_warmup(adam, int(num_steps * params.warmup_ratio), num_steps)
    return adam, linear_schedule(adam, num_steps, params.warmup_ratio)


def max_grad_norm(params: LearningParams, original: Original = "tinybert") -> float:
    """BertAdam clips each tensor by itself."""
    return math.inf if params.faithful and original == "tinybert" else 1.0


def architecture(named: str) -> CompactBertConfig:
    """The config that `named` means: a published architecture, or that of a model or of a search's winner, wherever it
    is.  Raises ValueError or FileNotFoundError where it is neither.
    """
    if not Path(named).expanduser().is_dir() and "/" not in named:
        return presets.config(named)
    folder = checkpoints.local_folder(model_folder(named))
    return checkpoints.Checkpoint.of(checkpoints.read_config(folder), {}, named).architecture()


def cut(
    student: Student, wanted: CompactBertConfig | None, sizes_vary: bool, seed: int
) -> tuple[Student, distill.Network]:
    """The student as the network of these feed-forwards that is inside it, and which of those inside that one learns.

    wanted: None: the student's own. sizes_vary: all sizes of its formulas are kept, and at each step others learn: see
    `random_sizes`. Raises ValueError where the student does not hold what is wanted.
    """
    if wanted is None and not sizes_vary:
        return student, distill.whole
    config: CompactBertConfig = student.config  # type: ignore[assignment]
    if wanted is not None:
        same = ("num_hidden_layers", "hidden_size", "num_attention_heads", "embedding")
        unlike = [name for name in same if config.brief(name) != wanted.brief(name)]
        if unlike:
            name = unlike[0]
            raise ValueError(
                f"architecture: {name} is {wanted.brief(name)}, the student's {config.brief(name)}; take a student of "
                "that shape, or cut it to it with the stage general_distill"
            )
        fields = ("feed_forward", "feed_forward_width") if sizes_vary else FEED_FORWARD
        config = config.changed(**{name: getattr(wanted, name) for name in fields})
    network = random_sizes(config, seed) if sizes_vary else distill.whole
    return elastic.extract(student, widest(config) if sizes_vary else config), network


def widest(config: CompactBertConfig) -> CompactBertConfig:
    """The network that holds those of all feed-forward sizes. Raises ValueError for one without formulas."""
    if config.feed_forward is None:
        raise ValueError("random_sizes: the student has no feed-forward formulas whose sizes could be drawn")
    return config.changed(feed_forward=[str(parse(formula).resized("4_1")) for formula in config.feed_forward])


def random_sizes(config: CompactBertConfig, seed: int) -> distill.Network:
    """At each step a network of other feed-forward sizes: each layer has that of `config` or one of the sixteen, with
    equal chances (EfficientBERT, third stage of the search). What is drawn follows from seed and step alone.
    """
    whole = widest(config)
    space = SizesOfFormulas(Rules(whole), tuple(config.feed_forward or ()))
    return lambda step: whole.changed(feed_forward=list(space.draw(Random(f"{seed} sizes {step}"))))
