"""Pruning while distilling: all three distillation losses at once (SparseBERT); the pruner acts after each step."""

from __future__ import annotations

from transformers import PreTrainedModel

from compresskit.training.distill import Answers, label_answers, together
from compresskit.training.loop import Losses


def all_layers(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    temperature: float = 1.0,
    answers: Answers = label_answers,
    padded: bool = False,
) -> Losses:
    """Hidden states, attention scores and answers of a teacher of the same shape, weights 1 (SparseBERT, section 3).

    answers, padded: as in `distill.together`. Raises ValueError where student and teacher differ in depth, width, heads
    or labels.
    """
    for name in ("num_hidden_layers", "hidden_size"):
        if getattr(student.config, name) != getattr(teacher.config, name):
            raise ValueError(
                f"{name} is {getattr(student.config, name)} in the pruned model and {getattr(teacher.config, name)} in "
                "the teacher; pruning while distilling needs a teacher of the same shape"
            )
    mapping = range(student.config.num_hidden_layers + 1)
    return together(student, teacher, mapping, None, answers, temperature=temperature, padded=padded)
