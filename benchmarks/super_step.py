"""A step of a supernet's distillation against the published way, and a subnet in place against the same taken out:

    python -m benchmarks.super_step

The step is AutoTinyBERT's: KD-S1 inside 8 layers 768 wide learns BERT-base's last layer, 8 x 128 tokens, all of them
real, for then both ways have the same loss; forward passes, backward and optimizer (learning rate 0, so that every
round finds the same weights). The published way takes torch's default matrix product ("MKL") or oneDNN. Loss and one
gradient of every contestant are compared with the published way in float64. Dropout is 0. Forward passes of subnets are
of the published architectures of both flavours; in place and taken out they agree bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.autotinybert_original import SuperOriginal, step_loss
from benchmarks.harness import Goal, Timing, as_float64, measure, publish, ratios
from benchmarks.tinybert_original import Original
from compresskit.kernels.float32 import choose_float32_matmul
from compresskit.models import CompactBertConfig, CompactBertModel, presets
from compresskit.models.elastic import extract
from compresskit.training.optim import BertAdam, adamw, decay_groups
from compresskit.training.pretrain import DenseFit, last_layer
from compresskit.training.teacher import has_fast_bfloat16

NO_DROPOUT: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BERT_BASE = presets.config("bert-base", **NO_DROPOUT)
SUPERNET = presets.config("superbert", **NO_DROPOUT)
SUBNETS = {name: f"autotinybert-{name.lower()}" for name in ("S1", "S4", "KD-S1", "KD-S4")}  # as published
GRADIENT = "encoder.layer.0.intermediate.dense.weight"  # of the supernet, compared in every round's check
STEP = "super-net KD step, 8 x 128"
GOALS = {
    STEP: Goal(floor=4.0, aim=6.0),
    f"{STEP}, teacher in bfloat16": Goal(floor=4.0, aim=6.0),
    **{f"in place / taken out, {name}, 8 x 128": Goal(at_most=1.05, aim=1.0) for name in SUBNETS},
}
Batch = dict[str, Tensor]
Step = Callable[[Batch], list[Tensor]]


def subnet_of(name: str) -> CompactBertConfig:
    """A published architecture inside the supernet."""
    return SUPERNET.changed(**presets.sizes(SUBNETS[name]))


def batch_of(rows: int, length: int = 128) -> Batch:
    """Random tokens without padding; the types are those that the published way makes of the mask."""
    ids = torch.randint(1000, 30000, (rows, length), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.ones_like(ids)}


def models() -> tuple[CompactBertModel, CompactBertModel, DenseFit]:
    """Teacher, supernet and projection with random weights."""
    torch.manual_seed(0)
    return CompactBertModel(BERT_BASE, add_pooling_layer=False), CompactBertModel(SUPERNET), DenseFit(768, 768)


def published(student: SuperOriginal, teacher: Original, project: nn.Linear, precision: str) -> Step:
    """A whole step the published way."""
    parameters = [*student.parameters(), *project.parameters()]
    optimizer = BertAdam(decay_groups([student, project], 0.01), lr=0.0, eps=1e-8)
    watched, subnet = dict(student.named_parameters())[GRADIENT], subnet_of("KD-S1")

    def step(batch: Batch) -> list[Tensor]:
        torch.set_float32_matmul_precision(precision)
        loss = step_loss(student, teacher, project, subnet, batch)
        loss.backward(retain_graph=True)
        assert watched.grad is not None
        outputs = [loss.detach(), watched.grad.clone()]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return outputs

    return step


def ours(student: CompactBertModel, teacher: CompactBertModel, project: DenseFit) -> Step:
    """A whole step as the stage `pretrain` does it."""
    subnet = subnet_of("KD-S1")
    losses = last_layer(student, teacher, project, lambda step: [subnet])
    optimizer, parameters = adamw([student, project], 0.0), [*student.parameters(), *project.parameters()]
    watched = dict(student.named_parameters())[GRADIENT]
    student.train()

    def step(batch: Batch) -> list[Tensor]:
        torch.set_float32_matmul_precision("medium")
        outputs = []
        for piece in losses(batch, 1):
            piece["loss"].backward()
            outputs.append(piece["loss"].detach())
        assert watched.grad is not None
        outputs.append(watched.grad.clone())
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return outputs

    return step


def steps(timings: list[Timing], measures: dict[str, float]) -> None:
    """One step, several ways."""
    teacher, student, project = models()
    peers = SuperOriginal(SUPERNET), Original(BERT_BASE, fused=True)
    peers[0].load_state_dict(student.state_dict())
    peers[1].load_state_dict(teacher.state_dict(), strict=False)  # but for the pooler, of which nothing is learned
    contestants = {
        "published, MKL": published(*peers, project, "highest"),
        "published, oneDNN": published(*peers, project, "medium"),
        "ours": ours(student, teacher, project),
    }
    bounds = dict.fromkeys(contestants, 1e-4)
    if has_fast_bfloat16():
        half = CompactBertModel(BERT_BASE, add_pooling_layer=False)
        half.load_state_dict(teacher.state_dict())
        nn.Module.to(half, torch.bfloat16)
        contestants["ours, bf16 teacher"] = ours(student, half, project)
        bounds["ours, bf16 teacher"] = 2e-2
    exact = published(as_float64(peers[0]), as_float64(peers[1]), as_float64(project), "highest")
    label = "8 x 128"
    found = measure(contestants, {label: [batch_of(8)]}, baseline="published, MKL", reference=exact, max_error=bounds)
    timings += found
    by_mkl, by_onednn = (ratios(found, f"published, {library}") for library in ("MKL", "oneDNN"))
    measures[STEP] = by_mkl[f"ours {label}"]
    measures[f"{STEP}, against oneDNN"] = by_onednn[f"ours {label}"]
    if "ours, bf16 teacher" in contestants:
        measures[f"{STEP}, teacher in bfloat16"] = by_mkl[f"ours, bf16 teacher {label}"]


def subnets(timings: list[Timing], measures: dict[str, float]) -> None:
    """Forward passes of subnets, in place and taken out."""
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("medium")
    supernet = CompactBertModel(SUPERNET).eval()
    inputs = {f"{rows} x 128": [batch_of(rows)] for rows in (8, 1)}
    for name in SUBNETS:
        subnet = subnet_of(name)
        small = extract(supernet, subnet)
        exact = as_float64(small)
        run = torch.no_grad()(lambda model, batch, **given: [model(**batch, **given).last_hidden_state])
        found = measure(
            {
                "taken out": lambda batch, small=small, run=run: run(small, batch),
                "in place": lambda batch, subnet=subnet, run=run: run(supernet, batch, subnet=subnet),
            },
            {f"{name}, {label}": given for label, given in inputs.items()},
            baseline="taken out",
            reference=lambda batch, exact=exact, run=run: run(exact, batch),
        )
        timings += found
        for label, ratio in ratios(found, "taken out").items():
            measures[f"in place / taken out, {label.removeprefix('in place ')}"] = 1 / ratio


def main() -> None:
    """Measure both and publish."""
    choice = choose_float32_matmul()
    timings: list[Timing] = []
    measures: dict[str, float] = {}
    steps(timings, measures)
    subnets(timings, measures)
    goals = {name: goal for name, goal in GOALS.items() if name in measures}
    publish("super_step", timings, measures, goals, notes={"matmul": asdict(choice)})


if __name__ == "__main__":
    main()
