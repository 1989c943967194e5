"""Token dropping and the question-answering student against numbers recorded from the original code.

The original holds tokens in the order of what they received, also in a layer that keeps them all, where ours stay as
they are: such layers are compared token by token. Which padding survives is arbitrary, so only real tokens are.
"""

from __future__ import annotations

import re
from itertools import count
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from compresskit.kernels.attention import column_sums
from compresskit.models import (
    CompactBertForQuestionAnswering,
    CompactBertForSequenceClassification,
    checkpoints,
)
from tests.oracle_cases import Case, Tolerance, oracle

FORWARD = Tolerance(atol=2e-5)


def opened(case: Case, model_class: type) -> tuple[Any, dict[str, Tensor]]:
    found = checkpoints.Checkpoint.of(case.config(), case.arrays("model/"))
    return found.model(model_class, num_labels=case.value("config", "num_labels")), found.training_only


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("dynamic_tinybert", "qa_forward"), ids=str)
def test_questions_drop_the_tokens_of_the_original_and_give_its_logits(case):
    rows = len(case["in/input_ids"])
    ends = [2] * (rows - 1) + [99]
    labels = {"start_positions": torch.ones(rows, dtype=torch.long), "end_positions": torch.tensor(ends)}
    check_forwards(case, opened(case, CompactBertForQuestionAnswering)[0], labels)


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("dynamic_tinybert", "cls_forward"), ids=str)
def test_classes_drop_the_tokens_of_the_original_and_give_its_logits(case):
    labels = {"labels": torch.arange(len(case["in/input_ids"])) % case.value("config", "num_labels")}
    check_forwards(case, opened(case, CompactBertForSequenceClassification)[0], labels)


@torch.no_grad()
def check_forwards(case: Case, model: Any, labels: dict[str, Tensor]) -> None:
    given = {name: case[f"in/{name}"] for name in ("input_ids", "attention_mask", "token_type_ids")}
    real = given["attention_mask"].bool()
    for name, call in case.value("cases").items():
        lengths, layers = call["length_config"], call.get("layer_config")
        options = {"length_config": lengths or (), "layer_config": layers, "padded_queries": True}
        plain = model(**given, **options, **labels)  # without maps where that is the rule
        got = model(**given, **options, **labels, output_hidden_states=True, output_attentions=True)
        names = set(got.keys()) & {"logits", "start_logits", "end_logits"}
        for logits in names:
            ours = {key: output[logits] for key, output in (("plain", plain), ("maps", got))}
            torch.testing.assert_close(ours["plain"], ours["maps"], rtol=0, atol=2e-5)
            whole = ours["maps"].shape == real.shape
            check(case, f"{name}/{logits}", ours["maps"], real if whole else None)
        if "loss" in call:
            case.check_value("cases", name, "loss", got=float(got.loss), tolerance=FORWARD)
        check_layers(case, name, got, real, bool(lengths), layers)


def check_layers(case: Case, name: str, got: Any, real: Tensor, dropped: bool, layers: list[int] | None) -> None:
    """Hidden states and attentions of each layer that ran; where tokens are dropped, which stay and why."""
    held = ours = torch.arange(real.shape[1]).expand_as(real)  # positions by place, the original's and ours
    check(case, f"{name}/hidden_0", got.hidden_states[0], real)
    for layer in range(len(got.attentions)):
        valid = real.gather(1, held)
        match = matching(ours, held)  # of each of its places, ours
        maps = got.attentions[layer]
        rows = maps.gather(2, match[:, None, :, None].expand_as(maps))
        maps = rows.gather(3, match[:, None, None, :].expand_as(maps))
        check(case, f"{name}/attention_{layer}", maps, valid, (0, 2))
        if dropped:
            received = column_sums(maps, torch.ones_like(held, dtype=maps.dtype))
            check(case, f"{name}/significance_{layer}", received, valid)
            kept = case[f"{name}/keep_indices_{layer}"]
            protected = received.clone()
            if "logits" in got:
                protected[:, 0] = torch.inf
            best = protected.topk(kept.shape[1]).indices
            check(case, f"{name}/keep_indices_{layer}", best, valid.gather(1, kept))
            ours, held = got.kept_positions[layer], held.gather(1, kept)
            match = matching(ours, held)
        hidden = got.hidden_states[layer + 1]
        hidden = hidden.gather(1, match[:, :, None].expand_as(hidden))
        check(case, f"{name}/hidden_{layer + 1}", hidden, real.gather(1, held))
    if case.names(f"{name}/last_hidden_state"):
        check(case, f"{name}/last_hidden_state", last_hidden(got, real), real)


def last_hidden(got: Any, real: Tensor) -> Tensor:
    """Every token's state behind the last layer in which it was alive, from the layers' own."""
    full = got.hidden_states[0].clone()
    for number, hidden in enumerate(got.hidden_states[1:]):
        positions = torch.arange(real.shape[1]).expand_as(real)
        if got.kept_positions is not None:
            positions = got.kept_positions[number]
        full = full.scatter(1, positions[:, :, None].expand_as(hidden), hidden)
    return full


def matching(ours: Tensor, theirs: Tensor) -> Tensor:
    """For each of their places the place of ours that holds the same position; of padding any."""
    return (ours[:, None, :] == theirs[:, :, None]).long().argmax(-1)


def check(case: Case, name: str, got: Tensor, valid: Tensor | None, axes: tuple[int, int] | None = None) -> None:
    """Compare real tokens only: at the others the recorded number is taken.  valid: (B, n), of axes 0 and 1."""
    recorded = case[name]
    if valid is not None:
        shape = [1] * recorded.dim()
        where = torch.ones_like(recorded, dtype=torch.bool)
        for axis in range(1, recorded.dim()) if axes else (1,):
            if recorded.shape[axis] == valid.shape[1] and (axes is None or axis >= axes[1]):
                here = shape.copy()
                here[0], here[axis] = valid.shape
                where &= valid.view(here)
        got = torch.where(where, got, recorded)
    case.check(name, got, tolerance=FORWARD)


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("dynamic_tinybert", "tiny_qa_student_forward"), ids=str)
@torch.no_grad()
def test_the_students_projected_states_probabilities_and_logits_are_those_of_the_original(case):
    model, fit = opened(case, CompactBertForQuestionAnswering)
    given = [case[f"in/{name}"] for name in ("input_ids", "attention_mask", "token_type_ids")]
    got = model(*given, output_hidden_states=True, output_attentions=True)
    ours = {"start_logits": got.start_logits, "end_logits": got.end_logits}
    for layer, states in zip(count(), got.hidden_states, strict=False):
        ours[f"rep_{layer}"] = F.linear(states, fit["fit_dense.weight"], fit["fit_dense.bias"])
    ours |= {f"attention_{layer}": maps for layer, maps in enumerate(got.attentions)}
    for match in case.names(r"out/(.+)"):
        case.check(match[0], ours[re.sub(r"^hidden_", "rep_", match[1])])
