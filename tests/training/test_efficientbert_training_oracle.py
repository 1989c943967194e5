"""EfficientBERT's distillation losses, multi-task heads, optimizer groups and schedules against the original code."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from compresskit.data import glue
from compresskit.models import (
    CompactBertConfig,
    CompactBertForMaskedLM,
    CompactBertForMultitask,
    CompactBertForQuestionAnswering,
    CompactBertForSequenceClassification,
    CompactBertModel,
    checkpoints,
    efficientbert,
)
from compresskit.search import classifier_tree
from compresskit.stages.tasks import TASKS
from compresskit.training import distill
from compresskit.training.optim import decay_groups
from tests.oracle_cases import Case, oracle

NAMES = {"sst-2": "sst2", "sts-b": "stsb", "mnli-mm": "mnli_mm", "squad1.1": "squad1", "squad2.0": "squad2",
         "ax": "mnli"}  # where ours differ from theirs; AX is answered by MNLI's model  # fmt: skip
SCHEDULES = {"step": get_linear_schedule_with_warmup, "cosine": get_cosine_schedule_with_warmup}


def ours(name: str) -> str:
    """What a parameter of the original is called here, without the prefix of the encoder."""
    found = checkpoints.Checkpoint.of({"pooler_relu": False}, {name: torch.empty(0)})
    return next(iter(found.weights | found.training_only))


def opened(case: Case, owner: str, model_class: Any, **changes: Any) -> tuple[Any, dict[str, Tensor]]:
    """A network of the case, and the projection that it carries."""
    heads = case.config("teacher" if owner.startswith("teacher") else None)["num_attn_heads"]
    found = efficientbert.checkpoint(case.arrays(owner), heads)
    return found.model(model_class, **changes), found.training_only


def encoder(config: CompactBertConfig) -> CompactBertModel:
    return CompactBertModel(config, add_pooling_layer=False)


def batch_of(case: Case) -> dict[str, Tensor]:
    given = {"input_ids": case["in.token_ids"], "attention_mask": 1 - case["in.attn_mask"],
             "token_type_ids": case["in.segment_ids"]}  # fmt: skip
    assert torch.equal(case["in.position_ids"], torch.arange(given["input_ids"].shape[1]).expand_as(given["input_ids"]))
    return given | ({"labels": case["in.labels"]} if case.names("in.labels") else {})


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("efficientbert", "distil_"), ids=str)
def test_losses_and_gradients_are_those_of_the_original(case):
    name = NAMES.get(case.value("task"), case.value("task"))
    spans = name.startswith("squad")
    if name == "pretrain":
        model_class: Any = encoder
    else:
        model_class = CompactBertForQuestionAnswering if spans else CompactBertForSequenceClassification
    (student, projection), (teacher, _) = (opened(case, owner, model_class) for owner in ("sd.", "teacher_sd."))
    depths = (student.config.num_hidden_layers, teacher.config.num_hidden_layers)
    mapping = distill.uniform_mapping(*depths)
    case.check_value("teacher_layer_of_student", got=[target - 1 for target in mapping[1:]])
    project = distill.projection(
        student.config.hidden_size, teacher.config.hidden_size, len(mapping), always=True, released=projection
    )
    searched = case.value("arch")
    part = student.config.changed(feed_forward=searched) if searched else None
    given, batch = {"padded": True, "network": lambda step: part}, batch_of(case)
    if name == "pretrain":
        losses = distill.intermediate(student, teacher, mapping, project, **given)
    else:
        ratios = {"hidden_ratio": case.value("hidden_ratio"), "prediction_ratio": case.value("pred_ratio")}
        settings = {**ratios, "temperature": case.value("temperature"), **given}
        losses = distill.together(student, teacher, mapping, project, TASKS[name].original_answers, **settings)
    got = losses(batch, 1)
    scalars = {"loss": got["loss"], "attn_loss": got["attention_loss"], "ffn_loss": got["hidden_loss"],
               "pred_loss": got.get("prediction_loss")}  # fmt: skip
    for field, value in scalars.items():
        case.check_value("scalars", field, got=None if value is None else value.item())

    got["loss"].backward()
    own = {re.sub(r"^bert\.", "", n): p for n, p in student.named_parameters()}
    own |= {f"fit_dense.{n}": p for n, p in project.named_parameters()}
    for match in case.names(r"grad\.(.+)"):
        parameter = own[ours(match[1]).replace("classifier.", "qa_outputs.") if spans else ours(match[1])]
        case.check(match[0], torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    check_outputs(case, student, teacher, project, part, batch)


def check_outputs(case: Case, student: Any, teacher: Any, project: nn.Module, part: Any, batch: dict) -> None:
    asked = {**distill.inputs(batch), "output_hidden_states": True, "output_attention_scores": True}
    with torch.no_grad():
        outputs = {"": student(**asked, subnet=part), "teacher": teacher(**asked)}
        for match in case.names(
            r"out\.(?:(teacher)[._])?(?:(logits|start_logits|end_logits)|(attn_score|hidden)\.(\d+))"
        ):
            output = outputs[match[1] or ""]
            if match[2]:
                found = output[match[2]]
                found = found.squeeze(-1) if match[2] == "logits" else found
            elif match[3] == "attn_score":
                found = output.attention_scores[int(match[4])]
            else:
                found = output.hidden_states[int(match[4])]
                found = found if match[1] else project(found)
            case.check(match[0], found)


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("efficientbert", "multitask"), ids=str)
def test_each_task_has_its_head_in_the_order_of_the_original(case):
    order = [NAMES.get(task, task) for task in case.value("task_order")]
    theirs = {"sst2": "sst-2", "stsb": "sts-b"}
    case.check_value("task_order", got=[theirs.get(task, task) for task in efficientbert.MULTITASK])
    recorded = case.value("num_classes")
    case.check_value("num_classes", got={task: glue.TASKS[NAMES.get(task, task)].num_labels for task in recorded})
    found = efficientbert.checkpoint(case.arrays("sd."), case.config()["num_attn_heads"])
    model = found.model(CompactBertForMultitask)
    assert model.config.tasks == {task: glue.TASKS[task].num_labels for task in order}
    part = model.config.changed(feed_forward=case.value("arch"), tasks=None)
    for match in case.names(r"out\.logits\.(\d+)"):
        task = order[int(match[1])]
        with torch.no_grad():
            logits = model.for_task(task)(**distill.inputs(batch_of(case)), subnet=part).logits
        case.check(match[0], logits.squeeze(-1))
        alone = found.for_task(task).model(CompactBertForSequenceClassification)
        torch.testing.assert_close(alone(**distill.inputs(batch_of(case)), subnet=part).logits, logits)


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("efficientbert", "schedule"), ids=str)
def test_rates_decay_and_heights_are_those_of_the_original(case):
    for number, row in enumerate(case.value("rows")):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = SCHEDULES[row["type"]](optimizer, row["warmup"], row["total"])
        factors = [schedule.lr_lambdas[0](step) for step in range(len(row["factor"]))]
        case.check_value("rows", number, "factor", got=[float(factor) for factor in factors])

    names = [name for field in ("decay_names", "no_decay_names") for name in case.value(field)]
    layers = 1 + max(int(match[1]) for name in names if (match := re.match(r"encoder\.(\d+)\.", name)))
    model = CompactBertForMaskedLM(CompactBertConfig(vocab_size=10, hidden_size=4, num_hidden_layers=layers,
                                                     num_attention_heads=2, intermediate_size=4))  # fmt: skip
    fit_dense = nn.Linear(4, 4)
    parameters = {id(p): re.sub(r"^bert\.", "", name) for name, p in model.named_parameters()}
    parameters |= {id(p): f"fit_dense.{name}" for name, p in fit_dense.named_parameters()}
    decaying, free = ({parameters[id(p)] for p in group["params"]} for group in decay_groups([model, fit_dense], 0.01))
    assert decaying | free == {ours(name) for name in names}
    case.check_value("decay_names", got=[name for name in names if ours(name) in decaying])
    case.check_value("no_decay_names", got=[name for name in names if ours(name) in free])
    heights = {scored: classifier_tree.height(int(scored)) for scored in case.value("search_height")}
    case.check_value("search_height", got=heights)
