"""Dynamic-TinyBERT's training steps against the original loops: losses, sub-models, gradients and final weights."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from compresskit.models import CompactBertForQuestionAnswering, checkpoints
from compresskit.training import distill, distill_probabilities, distill_spans, lengthdrop
from compresskit.training.loop import Losses, Pieces, fit, learned
from compresskit.training.optim import EarlyAdamW, decay_groups, linear_schedule
from tests.oracle_cases import Case, Tolerance, oracle

LOSS = Tolerance(rtol=1e-4)
GRADIENT = Tolerance(atol=1e-5)
WEIGHT = Tolerance(atol=5e-5)
NOISE = Tolerance(atol=2e-3)  # of tensors whose true gradient is zero, by which Adam steps all the same


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("dynamic_tinybert", "sampling"), ids=str)
def test_lengths_and_layers_are_drawn_as_the_original_draws_them(case):
    for number, given in enumerate(case.value("cases")):
        case.check_value("cases", number, "out", got=drawn(given))


def drawn(given: dict[str, Any]) -> list[int]:
    draws = np.random.RandomState(given.get("seed"))
    shape = given.get("T"), given["L"]
    if given["fn"] == "length_fixed":
        return lengthdrop.fixed_lengths(*shape, given["length_drop_ratio"], given.get("layer_config"))
    if given["fn"] == "length_binomial":
        return lengthdrop.binomial_lengths(*shape, given["length_drop_prob"], draws, given.get("layer_config"))
    if given["fn"].startswith("length"):
        return lengthdrop.drawn_lengths(*shape, given["length_drop_ratio_bound"], draws, given.get("layer_config"))
    if given["fn"] == "layer_prob":
        return lengthdrop.drawn_layers(given["L"], given["layer_dropout_prob"], draws)
    if given["fn"] == "layer_bound":
        return lengthdrop.drawn_lower_layers(given["L"], given["layer_dropout_bound"], draws)
    return lengthdrop.lower_layers(given["L"], given["layer_dropout"])


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("dynamic_tinybert", "distill_"), ids=str)
def test_distillation_has_the_losses_and_the_weights_of_the_original(case):
    check_run(case)


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("dynamic_tinybert", "train_lengthdrop"), ids=str)
def test_lengthdrop_without_a_teacher_has_the_losses_and_the_weights_of_the_original(case):
    check_run(case)


def check_run(case: Case) -> None:
    run = Run(case)
    run.check_first_gradients()
    groups = decay_groups([run.student, run.project], run.args["weight_decay"])
    optimizer = EarlyAdamW(groups, lr=run.args["learning_rate"], eps=run.args["adam_epsilon"])
    steps = len({match[1] for match in case.names(r"batch_(\d+)/.+")})
    rates: list[float] = []
    schedule = linear_schedule(optimizer, steps, run.args["warmup_ratio"])
    fit(
        run.student,
        run,
        run.recorded,
        optimizer,
        schedule,
        steps,
        after_step=lambda step: rates.append(schedule.get_last_lr()[0]),
        max_grad_norm=run.args["max_grad_norm"],
    )
    run.check(steps, rates)


class Run:
    """A run of the original: its models, its batches, and what was computed in each forward and backward pass."""

    def __init__(self, case: Case):
        self.case, self.args = case, case.value("args")
        self.student, released = opened(case, "student_init", "student_config")
        self.has_projection = bool(released)
        weight = released.get("fit_dense.weight", torch.zeros(1, 1))
        self.project = nn.Linear(*reversed(weight.shape))
        if self.has_projection:
            self.project.load_state_dict({n.removeprefix("fit_dense."): tensor for n, tensor in released.items()})
        self.forwards: list[dict[str, Any]] = []
        self.backwards: list[float] = []
        self.numbers: list[list[dict[str, float]]] = []
        self.batch_now: dict[str, Tensor] = {}
        self.student.base_model.register_forward_hook(self.remember, with_kwargs=True)
        self.start()

    def start(self) -> None:
        """The draws begin anew: they follow the seed of the run, of which nothing else takes from them."""
        draws = np.random.RandomState(self.args["seed"])
        self.forwards, self.backwards, self.numbers = [], [], []
        self.losses = self.made(lambda step: draws)

    def made(self, draws: Any) -> Losses | Pieces:
        args = self.args
        teacher = None
        if self.case.value("teacher_config"):
            teacher, _ = opened(self.case, "teacher", "teacher_config")
        if args["length_adaptive"]:
            answers = lengthdrop.supervised
            if teacher is not None:
                answers = lengthdrop.taught(teacher, partial(distill_spans.span_answers, padded=True))
            sandwich = lengthdrop.Sandwich(
                num_random=args["num_sandwich"],
                length_ratio=args["length_drop_ratio_bound"],
                layer_probability=args["layer_dropout_prob"],
                layer_bound=args["layer_dropout_bound"],
                maybe_no_layers=True,
            )
            return lengthdrop.lengthdrop(self.student, answers, sandwich, draws, padded=True)
        if args["pred_distill"]:
            return distill_spans.prediction(self.student, teacher, padded=True)
        mapping = distill.uniform_mapping(self.student.config.num_hidden_layers, teacher.config.num_hidden_layers)
        measures = distill_probabilities.Measures(
            states="cosine" if args["state_distill_cs"] else "mse",
            attention="mse" if args["att_mse"] else "cosine",
            state_ratio=args["state_loss_ratio"],
            attention_ratio=args["att_loss_ratio"],
            partial_states=args["partial_reps"],
        )
        return distill_probabilities.intermediate(self.student, teacher, mapping, self.project, True, measures=measures)

    def recorded(self, batch: dict[str, Tensor], step: int):
        """The losses, whose numbers are kept."""
        self.batch_now = batch
        self.numbers.append([])
        found = self.losses(batch, step)
        for piece in [found] if isinstance(found, dict) else found:
            self.numbers[-1].append({name: value.item() for name, value in piece.items()})
            self.backwards.append(self.numbers[-1][-1]["loss"])
            yield piece

    def remember(self, encoder: Any, given: tuple, options: dict[str, Any], output: Any) -> None:
        """A forward pass of the student: which layers and lengths, and what it says of the labels."""
        layers = options.get("layer_config")
        with torch.no_grad():
            start, end = self.student.qa_outputs(output.last_hidden_state).unbind(-1)
            losses = [
                nn.functional.cross_entropy(logits, self.batch_now[f"{name}_positions"].clamp(0, logits.shape[1]),
                                            ignore_index=logits.shape[1])
                for name, logits in (("start", start), ("end", end))
            ]  # fmt: skip
        self.forwards.append(
            {
                "layer_config": list(range(self.student.config.num_hidden_layers)) if layers is None else list(layers),
                "length_config": list(options.get("length_config") or ()) or None,
                "task_loss": float(sum(losses) / 2),
            }
        )

    def batch(self, step: int) -> dict[str, Tensor]:
        return {name: tensor.long() for name, tensor in self.case.arrays(f"batch_{step}/").items()}

    def from_step(self, step: int, num_steps: int):
        return map(self.batch, range(step, num_steps))

    def check_first_gradients(self) -> None:
        self.student.train()
        learned(self.recorded, self.batch(0), 1, None, GradScaler("cpu", enabled=False))
        own = self.parameters()
        for match in self.case.names(r"grad_step0/(.+)"):
            self.case.check(match[0], own[match[1]].grad, tolerance=GRADIENT)
        without = [name for name, parameter in own.items() if parameter.grad is None]
        if not self.has_projection:
            without = [name for name in without if not name.startswith("fit_dense")]
        self.case.check_value("grad_none_at_step0", got=without)
        for parameter in own.values():
            parameter.grad = None
        self.start()

    def parameters(self) -> dict[str, nn.Parameter]:
        own = dict(self.student.named_parameters())
        return own | {f"fit_dense.{name}": parameter for name, parameter in self.project.named_parameters()}

    def check(self, steps: int, rates: list[float]) -> None:
        case = self.case
        case.check_value("forwards", got=self.forwards, tolerance=LOSS)
        case.check_value("backward_losses", got=self.backwards, tolerance=LOSS)
        case.check_value("steps", got=steps)
        case.check_value("tb_scalars", got=self.scalars(rates), tolerance=LOSS)
        logits_only = not self.args["state_loss_ratio"]
        last = f"encoder.layer.{self.student.config.num_hidden_layers - 1}.output.LayerNorm.bias"
        own = self.parameters() | dict(self.student.named_buffers())
        for match in case.names(r"student_final/(.+)"):
            name = match[1]
            if name not in own:  # position_ids, which no model of ours has
                assert name.endswith("position_ids")
                case.check(match[0], torch.arange(case[match[0]].shape[-1])[None])
                continue
            still = name.endswith("attention.self.key.bias") or (
                logits_only and (name == "qa_outputs.bias" or name.endswith(last))
            )
            case.check(match[0], own[name], tolerance=NOISE if still else WEIGHT)

    def scalars(self, rates: list[float]) -> list[list[Any]]:
        """What the original logs after each step: running means of a distillation's parts and, with LengthDrop, the
        sum of all losses so far; without a teacher the task's losses of the sub-models and their divergence.
        """
        lines: list[list[Any]] = []
        taught, adaptive = self.case.value("teacher_config") is not None, self.args["length_adaptive"]
        per_step = len(self.forwards) // len(self.numbers)
        totals = {"cls_loss": 0.0, "att_loss": 0.0, "rep_loss": 0.0}
        total = 0.0
        for step, pieces in enumerate(self.numbers, 1):
            own = sum(piece["loss"] for piece in pieces)
            total = total + own if taught and adaptive else own
            lines += [[step, "lr", rates[step - 1]], [step, "loss", total]]
            if taught:
                first = pieces[0]
                totals["att_loss"] += first.get("attention_loss", 0.0)
                totals["rep_loss"] += first.get("hidden_loss", 0.0)
                totals["cls_loss"] += first["loss"] if self.args["pred_distill"] else 0.0
                lines += [[step, name, value / step] for name, value in totals.items()]
            else:
                task = [f["task_loss"] for f in self.forwards[(step - 1) * per_step : step * per_step]]
                assert math.isclose(pieces[0]["full_loss"], task[0], rel_tol=1e-5)
                lines += [[step, "full_loss", task[0]], [step, "smallest_loss", task[1]]]
                lines += [[step, "sub_loss", sum(task[2:]) / len(task[2:])]]
                lines += [[step, "kl_loss", sum(piece["divergence"] for piece in pieces[1:])]]
        return lines


def opened(case: Case, arrays: str, config: str) -> tuple[Any, dict[str, Tensor]]:
    """A question-answering model of the original's, and its projection."""
    found = checkpoints.Checkpoint.of(case.value(config), case.arrays(f"{arrays}/"))
    return found.model(CompactBertForQuestionAnswering, num_labels=2), found.training_only
