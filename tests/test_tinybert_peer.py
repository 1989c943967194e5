"""The peer of the distillation benchmark is the original: its recorded outputs, losses and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.tinybert_original import Original, intermediate_loss, prediction_loss
from compresskit.models import CompactBertConfig
from tests.oracle_cases import Case, folder

CASES = sorted((folder() / "tinybert").glob("train_*.json"))


def parts(case: Case, arrays: str, config: str) -> tuple[Original, nn.Linear, nn.Linear]:
    """Encoder, classifier and projection of a task model."""
    weights = case.arrays(f"{arrays}/")
    known = CompactBertConfig.__dataclass_fields__
    model = Original(CompactBertConfig(**{k: v for k, v in case.config(config).items() if k in known}))
    model.load_state_dict({n.removeprefix("bert."): t for n, t in weights.items() if n.startswith("bert.")})
    linears = []
    for name in ("classifier", "fit_dense"):
        linear = nn.Linear(*reversed(weights[f"{name}.weight"].shape))
        linear.load_state_dict({"weight": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]})
        linears.append(linear)
    return model, linears[0], linears[1]


def test_there_are_recorded_runs():
    assert CASES


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_first_step_of_the_peer_has_the_loss_and_the_gradients_of_the_recorded_run(path):
    case = Case(path)
    teacher, teacher_head, _ = parts(case, "teacher", "teacher")
    student, head, project = parts(case, "student_init", "student")
    names = {"input_ids": "input_ids", "attention_mask": "input_mask", "token_type_ids": "segment_ids"}
    batch = {ours: case[f"batch_0/{theirs}"].long() for ours, theirs in names.items()}
    if "--pred_distill" in case.value("argv"):
        loss = prediction_loss(student, teacher, [head, teacher_head], batch)
    else:
        ratio = len(teacher.encoder["layer"]) // len(student.encoder["layer"])
        mapping = [i * ratio for i in range(len(student.encoder["layer"]) + 1)]
        loss = intermediate_loss(student, teacher, project, mapping, batch)
    assert loss.item() == pytest.approx(case.value("eval_per_step", 0, "loss"), rel=1e-5)
    loss.backward()
    own = {f"bert.{n}": p for n, p in student.named_parameters()}
    own |= {f"{k}.{n}": p for k, m in (("classifier", head), ("fit_dense", project)) for n, p in m.named_parameters()}
    compared = case.names(r"grad_step0/(.+)")
    assert compared
    for match in compared:
        torch.testing.assert_close(own[match[1]].grad, case[match[0]], rtol=1e-4, atol=1e-5)
