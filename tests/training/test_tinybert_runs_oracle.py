"""TinyBERT's optimizer, its general distillation and both steps of its task distillation against the original runs.

What the original does and we do otherwise by default is asked for here: padding counts, the projection stands between
equal widths too, BertAdam clips and decays.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertTokenizer

from compresskit.data import glue
from compresskit.data.batching import Batches
from compresskit.evaluation import glue as scoring
from compresskit.models import (
    CompactBertForMaskedLM,
    CompactBertForPreTraining,
    CompactBertForSequenceClassification,
    checkpoints,
)
from compresskit.training import distill
from compresskit.training.loop import Losses, fit
from compresskit.training.optim import BertAdam, bert_schedule, decay_groups
from tests.oracle_cases import Case, Tolerance, oracle

LOSS = Tolerance(rtol=1e-4)
WEIGHT = Tolerance(atol=2e-5)
NAMES = {"train/loss": "loss", "train/attention_loss": "att_loss", "train/hidden_loss": "rep_loss",
         "train/prediction_loss": "cls_loss"}  # fmt: skip
TASKS = {"SST-2": "sst2", "CoLA": "cola", "MRPC": "mrpc", "STS-B": "stsb", "QQP": "qqp", "MNLI": "mnli", "QNLI": "qnli",
         "RTE": "rte", "WNLI": "wnli"}  # fmt: skip
METRICS = {
    "eval/accuracy": "acc",
    "eval/f1": "f1",
    "eval/accuracy_f1": "acc_and_f1",
    "eval/pearson": "pearson",
    "eval/spearman": "spearmanr",
    "eval/pearson_spearman": "corr",
    "eval/matthews_correlation": "mcc",
}


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("tinybert", "bertadam"), ids=str)
def test_bert_adam_updates_as_the_original(case):
    weight, bias = (nn.Parameter(case[name]) for name in ("w_init", "b_init"))
    decay = case.value("weight_decay")
    optimizer = BertAdam(
        [{"params": [weight], "weight_decay": decay["w"]}, {"params": [bias], "weight_decay": decay["b"]}],
        lr=case.value("lr"),
        betas=(case.value("b1"), case.value("b2")),
        eps=case.value("eps"),
        max_grad_norm=case.value("max_grad_norm"),
    )
    schedule = bert_schedule(optimizer, case.value("t_total"), case.value("schedule"), case.value("warmup"))
    for step in range(len(case.names(r"w_\d+"))):
        weight.grad, bias.grad = case[f"gw_{step}"], case[f"gb_{step}"]
        optimizer.step()
        schedule.step()
        case.check(f"w_{step}", weight)
        case.check(f"b_{step}", bias)


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("tinybert", "pretraining_forward"), ids=str)
def test_the_general_students_scores_and_projected_states_and_the_masked_lm_are_those_of_the_original(case):
    inputs = [case[f"in/{name}"] for name in ("input_ids", "input_mask", "segment_ids")]
    student, project = opened(case, "tiny_pretraining", CompactBertForPreTraining, config="config")
    with torch.no_grad():
        got = student(*inputs, output_hidden_states=True, output_attention_scores=True)
        for match in case.names(r"out/tiny_pretraining/(att|rep)_(\d+)"):
            layer = int(match[2])
            ours = got.attention_scores[layer] if match[1] == "att" else project(got.hidden_states[layer])
            case.check(match[0], ours, tolerance=Tolerance(atol=1e-5, masked_rtol=1e-6))
        masked_lm, _ = opened(case, "masked_lm", CompactBertForMaskedLM, config="config")
        case.check("out/masked_lm/scores", masked_lm(*inputs).logits)


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("tinybert", "general_distill"), ids=str)
def test_general_distillation_ends_with_the_weights_of_the_original_and_its_log(case):
    teacher = checkpoints.Checkpoint.of(case.config("teacher"), case.arrays("teacher/")).model(
        CompactBertForPreTraining
    )
    student, project = opened(case, "student_init", CompactBertForPreTraining, config="student_config")
    hyper = case.value("hyper")
    losses = distill.intermediate(student, teacher, mapping(student, teacher), project, padded=True)
    sizes = epoch_sizes(case, hyper["batch"])
    history = trained(case, student, project, losses, hyper, steps=sum(sizes), t_total=t_total(case, hyper))

    log = ""
    for step, means in enumerate(running_means(history, sizes), 1):
        lines = sorted({**means, "global_step": step}.items())
        log += "".join(f"{name} = {number}\n" for name, number in lines)
    case.check_text("log", got=log, tolerance=LOSS)
    saved = [f"step_{step}_pytorch_model.bin" for step in range(1, len(history) + 1)]
    case.check_value("files_written", got=sorted(["config.json", "log.txt", "vocab.txt", *saved]))
    case.check_value("final_checkpoint", got=saved[-1])
    check_weights(case, "student_final", student, project)


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("tinybert", "train_"), ids=str)
def test_task_distillation_logs_scores_and_ends_with_the_weights_of_the_original(case, tmp_path):
    teacher, student = (
        opened(case, arrays, CompactBertForSequenceClassification, f"{owner}_config")[0]
        for owner, arrays in (("teacher", "teacher"), ("student", "student_init"))
    )
    project = projection(case, "student_init", "student_config")
    hyper, epochs = case.value("hyper"), case.value("hyper", "epochs")
    argv = case.value("argv")
    answers = "--pred_distill" in argv
    if answers:
        losses = distill.prediction(student, teacher, hyper["temperature"])
    else:
        losses = distill.intermediate(student, teacher, mapping(student, teacher), project, padded=True)
    check_first_gradients(case, student, project, losses)

    scores: list[dict[str, Any]] = []
    dev = dev_scores(case, student, argv, tmp_path) if answers else None

    def evaluate() -> float | None:
        if dev is None:
            return None
        scores.append(dev())
        return scores[-1]["main"]

    sizes = [hyper["steps"] // epochs] * epochs
    history = trained(case, student, project, losses, hyper, hyper["steps"], hyper["steps"], evaluate)
    for step, means in enumerate(running_means(history, sizes)):
        recorded = case.value("eval_per_step", step)
        ours = {
            "global_step": float(step + 1),
            "loss": means["loss"],
            "att_loss": 0.0,
            "rep_loss": 0.0,
            "cls_loss": 0.0,
        }
        ours |= {"cls_loss": means["loss"]} if answers else {name: means[name] for name in ("att_loss", "rep_loss")}
        ours |= {name: value for name, value in (scores[step] if answers else {}).items() if name in recorded}
        case.check_value("eval_per_step", step, got=ours, tolerance=LOSS)
    check_weights(case, "student_saved", student, project)


# ---- the parts of a run


def opened(case: Case, owner: str, model_class: type, config: str) -> tuple[Any, nn.Linear]:
    """A model of the original's release and its projection."""
    model = checkpoints.Checkpoint.of(case.value(config), case.arrays(f"{owner}/")).model(model_class)
    return model, projection(case, owner, config) if case.names(f"{owner}/fit_dense.+") else nn.Linear(1, 1)


def projection(case: Case, owner: str, config: str) -> nn.Linear:
    """The shared fit_dense, from the student's to the teacher's width."""
    weights = checkpoints.Checkpoint.of(case.value(config), case.arrays(f"{owner}/")).training_only
    project = nn.Linear(*reversed(weights["fit_dense.weight"].shape))
    project.load_state_dict({name.removeprefix("fit_dense."): tensor for name, tensor in weights.items()})
    return project


def mapping(student: Any, teacher: Any) -> list[int]:
    return distill.uniform_mapping(student.config.num_hidden_layers, teacher.config.num_hidden_layers)


class Recorded:
    """The batches of a case, in the order they were used."""

    def __init__(self, case: Case):
        self.case = case

    def batch(self, step: int) -> dict[str, Tensor]:
        names = {"input_ids": "input_ids", "attention_mask": "input_mask", "token_type_ids": "segment_ids"}
        given = {ours: self.case[f"batch_{step}/{theirs}"].long() for ours, theirs in names.items()}
        labels = [match[0] for match in self.case.names(rf"batch_{step}/label.*")]
        return given | ({"labels": self.case[labels[0]]} if labels else {})

    def from_step(self, step: int, num_steps: int):
        return map(self.batch, range(step, num_steps))


def trained(
    case: Case, student: Any, project: nn.Module, losses: Losses, hyper: dict[str, Any], steps: int, t_total: int,
    evaluate: Callable[[], float | None] | None = None,
) -> list[dict[str, float]]:  # fmt: skip
    """Train as the original did; the numbers of each step."""
    optimizer = BertAdam(decay_groups([student, project], hyper["weight_decay"]), lr=hyper["lr"])
    schedule = bert_schedule(optimizer, t_total, hyper["schedule"], hyper["warmup"])
    history: list[dict[str, float]] = []
    fit(
        student, Recorded(case), losses, optimizer, schedule, steps, max_grad_norm=math.inf,
        evaluate=evaluate, eval_every=1, observe=lambda step, numbers: history.append(dict(numbers)),
    )  # fmt: skip
    return history


def running_means(history: list[dict[str, float]], epoch_sizes: list[int]) -> list[dict[str, float]]:
    """Means since the beginning of the epoch, as the original logs them."""
    means, start = [], 0
    for size in epoch_sizes:
        for step in range(start, start + size):
            part = history[start : step + 1]
            means.append(
                {ours: sum(n[theirs] for n in part) / len(part) for theirs, ours in NAMES.items() if theirs in part[0]}
            )
        start += size
    return means


def epoch_sizes(case: Case, batch_size: int) -> list[int]:
    """Steps of each epoch of a general distillation: whole batches of the examples in that epoch's file."""
    examples = case.value("hyper", "epochs"), pregenerated(case)
    return [examples[1][epoch % len(examples[1])] // batch_size for epoch in range(examples[0])]


def t_total(case: Case, hyper: dict[str, Any]) -> int:
    counts = pregenerated(case)
    return int(sum(counts[epoch % len(counts)] for epoch in range(hyper["epochs"])) / hyper["batch"])


def pregenerated(case: Case) -> list[int]:
    """Examples in each file of the case `pregenerate` beside this one, from which the run read."""
    record = json.loads((case.path.parent / "pregenerate.json").read_text(encoding="utf-8"))
    return [
        json.loads(text)["num_training_examples"] for name, text in sorted(record["files"].items()) if "metrics" in name
    ]


def check_first_gradients(case: Case, student: Any, project: nn.Module, losses: Losses) -> None:
    student.train()
    losses(Recorded(case).batch(0), 1)["loss"].backward()
    own = dict(student.named_parameters()) | {f"fit_dense.{name}": p for name, p in project.named_parameters()}
    for match in case.names(r"grad_step0/(.+)"):
        case.check(match[0], own[match[1]].grad, tolerance=WEIGHT)
    groups = [group["params"] for group in decay_groups([student, project], 0.01)]
    names = {id(parameter): name for name, parameter in own.items()}
    case.check_value("grad_none_at_step0", got=[names[id(p)] for group in groups for p in group if p.grad is None])
    for parameter in own.values():
        parameter.grad = None


def dev_scores(case: Case, student: Any, argv: list[str], home: Path) -> Callable[[], dict[str, Any]]:
    """The original's evaluation on the dev file of the case `glue_processors`, in its metric names."""
    given = dict(itertools.pairwise(argv))
    task = glue.TASKS[TASKS[given["--task_name"]]]
    record = json.loads((case.path.parent / "glue_processors.json").read_text(encoding="utf-8"))
    for name, text in record["files"].items():
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_text(text, encoding="utf-8")
    tokenizer = BertTokenizer(vocab={piece: i for i, piece in enumerate(record["vocab"])})
    encoded = glue.encode(glue.read(task.name, home, "dev"), tokenizer, int(given["--max_seq_length"]))
    size = int(given["--eval_batch_size"])
    batches = Batches(encoded, size, 0, 0, shuffle=False, length_buckets=False, pad_to=int(given["--max_seq_length"]))

    def scores() -> dict[str, Any]:
        parts = [scoring.predict(student, [batch]) for batch in batches]
        logits, labels = (torch.cat([torch.from_numpy(part[i]) for part in parts]).numpy() for i in (0, 1))
        score = scoring.score(task.name, logits, labels)
        named = {METRICS[name]: value for name, value in score.metrics.items() if name in METRICS}
        return named | {"eval_loss": sum(part[2] for part in parts) / len(parts), "main": score.value}

    return scores


def check_weights(case: Case, owner: str, student: Any, project: nn.Module, tolerance: Tolerance = WEIGHT) -> None:
    own = dict(student.state_dict()) | {f"fit_dense.{name}": tensor for name, tensor in project.state_dict().items()}
    for match in case.names(rf"{owner}/(.+)"):
        case.check(match[0], own[match[1]], tolerance=tolerance)
