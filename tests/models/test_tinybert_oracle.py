"""TinyBERT's task models against numbers recorded from the original code."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from compresskit.models import CompactBertForSequenceClassification, checkpoints
from tests.oracle_cases import Case, oracle


def projection(case: Case, owner: str):
    """TinyBERT's fit_dense, the student's states mapped to the teacher's width; only training needs it."""
    fit = checkpoints.Checkpoint.of(case.config(owner), case.arrays(f"{owner}/")).training_only
    return lambda states: F.linear(states, fit["fit_dense.weight"], fit["fit_dense.bias"])


def as_they_are(states: Tensor) -> Tensor:
    return states


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("tinybert", "forward"), ids=str)
def test_logits_scores_and_hidden_states_are_those_of_the_original_code(case):
    inputs = [case[f"in/{name}"] for name in ("input_ids", "input_mask", "segment_ids")]
    models = {
        owner: checkpoints.Checkpoint.of(case.config(owner), case.arrays(f"{owner}/")).model(
            CompactBertForSequenceClassification
        )
        for owner in ("teacher", "student")
    }
    calls = {
        "teacher": ("teacher", inputs, as_they_are),
        "student_fit": ("student", inputs, projection(case, "student")),
        "student_raw": ("student", inputs, as_they_are),
        "student_nomask": ("student", inputs[:1], as_they_are),  # no mask: all real; no segments: all 0
    }
    for call, (owner, given, project) in calls.items():
        with torch.no_grad():
            output = models[owner](*given, output_hidden_states=True, output_attention_scores=True)
        ours = {"logits": output.logits}
        ours |= {f"att_{layer}": scores for layer, scores in enumerate(output.attention_scores)}
        ours |= {f"rep_{layer}": project(states) for layer, states in enumerate(output.hidden_states)}
        for recorded in case.names(f"out/{call}/(.+)"):
            case.check(recorded[0], ours[recorded[1]])
