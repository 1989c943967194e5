"""Pruning while distilling against SparseBERT's own entry point: batch by batch the same losses, masks and weights."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from compresskit.models import CompactBertForSequenceClassification
from compresskit.pruning.masks import MagnitudePruner
from compresskit.training import prune
from compresskit.training.loop import fit
from compresskit.training.optim import BertAdam, bert_schedule, decay_groups
from tests.oracle_cases import Case, Tolerance, oracle
from tests.training.test_tinybert_runs_oracle import Recorded, check_weights, opened, running_means

LOSS = Tolerance(rtol=1e-3)
WEIGHT = Tolerance(atol=5e-5)
SHARE = Tolerance(atol=1e-12)
FILES = ["config.json", "eval_results.txt", "pytorch_model.bin", "vocab.txt"]  # once something was evaluated


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("sparsebert", "prune_train"), ids=str)
def test_pruning_while_distilling_has_the_losses_the_masks_and_the_weights_of_the_original(case):
    teacher, _ = opened(case, "teacher", CompactBertForSequenceClassification, "config")
    student, project = opened(case, "student_init", CompactBertForSequenceClassification, "config")
    hyper, given = case.value("hyper"), case.value("prune_args")
    steps, per_epoch = hyper["steps"], hyper["steps"] // hyper["epochs"]
    pruner = MagnitudePruner(
        student,
        hyper["sparsity_target"],
        begin=given["pretrain_step"],
        end=given["pretrain_step"] + given["sparse_step"],
        frequency=given["frequency"],
        restore_sparsity=given.get("restore_sparsity", False),
        fix_sparsity=given.get("fix_sparsity", False),
        faithful=True,
    )
    evaluated: list[int] = []
    saved = None

    def prune_and_compare(step: int) -> None:
        nonlocal saved
        before = dict(pruner.masks)
        pruner.step(step)
        changed = any(not torch.equal(pruner.masks[name], mask) for name, mask in before.items())
        got = [step, pruner.updated_at == step, changed, pruner.sparsity()]
        case.check_value("per_step", step - 1, got=got, tolerance=SHARE)
        check_masks(case, f"mask_t{step}", pruner)
        if (step + 1) % hyper["eval_step"] == 0:
            line = f"epoch {(step - 1) // per_epoch}: weight sparsity={pruner.sparsity()}; "
            line += f"layer weight sparsity={sparsities(pruner)}"
            case.check_text("printed_sparsity_lines", len(evaluated), got=line, tolerance=SHARE)
            evaluated.append(step)
            saved = copy.deepcopy(student)

    optimizer = BertAdam(decay_groups([student, project], hyper["weight_decay"]), lr=hyper["lr"])
    history: list[dict[str, float]] = []
    fit(
        student,
        Recorded(case),
        prune.all_layers(student, teacher, padded=True),
        optimizer,
        bert_schedule(optimizer, steps, hyper["schedule"]),
        steps,
        after_step=prune_and_compare,
        max_grad_norm=math.inf,
        observe=lambda step, numbers: history.append(dict(numbers)),
    )

    check_evaluations(case, history, evaluated, [per_epoch] * hyper["epochs"])
    check_weights(case, "student_after_all_steps", student, project, WEIGHT)
    check_masks(case, "mask_final", pruner)
    case.check_value("final_layer_sparsity", got=sparsities(pruner), tolerance=SHARE)
    case.check_value("final_total_sparsity", got=pruner.sparsity(), tolerance=SHARE)
    case.check_value("pruned_names", got=sorted(pruner.weights))
    written = ["config.json", "vocab.txt"] if saved is None else FILES
    case.check_value("files_written", got=written)
    if saved is not None:
        check_weights(case, "student_saved", saved, project, WEIGHT)


def sparsities(pruner: MagnitudePruner) -> dict[str, float]:
    return {name: 1 - int(weight.count_nonzero()) / weight.numel() for name, weight in pruner.weights.items()}


def check_masks(case: Case, owner: str, pruner: MagnitudePruner) -> None:
    for match in case.names(rf"{owner}/(.+)"):
        case.check(match[0], pruner.masks[match[1]].to(torch.int8))


def check_evaluations(
    case: Case, history: list[dict[str, float]], evaluated: list[int], epoch_sizes: list[int]
) -> None:
    """The log of the evaluations. A case has no dev rows: their metrics are taken as they stand, the rest is ours."""
    means = running_means(history, epoch_sizes)
    lines = case.value("eval_results_txt").splitlines()
    per_evaluation = len(lines) // max(1, len(evaluated))
    assert len(lines) == per_evaluation * len(evaluated)
    ours = []
    for number, line in enumerate(lines):
        name = line.split(" = ")[0]
        step = evaluated[number // per_evaluation]
        own = {**means[step - 1], "global_step": step}
        ours.append(f"{name} = {own[name]}" if name in own else line)
    text = "".join(f"{line}\n" for line in ours)
    case.check_text("eval_results_txt", got=text, tolerance=LOSS)
