"""The pruner by itself against SparseBERT's: after every call the same masks, weights and shares of zeros."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compresskit.pruning.masks import MagnitudePruner
from tests.oracle_cases import Tolerance, oracle

WEIGHT = Tolerance(atol=1e-6)
SHARE = Tolerance(atol=1e-12)


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("sparsebert", "schedule"), ids=str)
def test_masks_weights_and_sparsity_after_every_call_are_those_of_the_original(case):
    model = nn.ParameterDict(case.arrays("init/"))
    params = case.value("params")
    targets = params["targets"]
    columns = [field.removeprefix("sparsity ") for field in case.value("log_fields")[1:-1]]
    pruner = MagnitudePruner(
        model,
        targets,
        begin=params["pretrain_step"],
        end=params["pretrain_step"] + params["sparse_step"],
        frequency=params["frequency"],
        restore_sparsity=params["restore_sparsity"],
        fix_sparsity=params["fix_sparsity"],
        faithful=True,
    )
    for row, recorded in enumerate(case.value("log")):
        step = recorded[0]
        with torch.no_grad():
            for name, update in case.arrays(f"update_{step}/").items():
                model[name].add_(update)
        pruner.step(step)
        zeros = {name: int((model[name] == 0).sum()) for name in targets}
        shares = [zeros[name] / model[name].numel() for name in columns]
        total = sum(zeros.values()) / sum(model[name].numel() for name in targets)
        assert pruner.sparsity() == pytest.approx(total, abs=1e-12)
        case.check_value("log", row, got=[step, *shares, total], tolerance=SHARE)
        for name in targets:
            case.check(f"{name}_{step}", model[name], tolerance=WEIGHT)
            case.check(f"mask_{name}_{step}", pruner.masks[name].to(torch.int8))


def by_definition(weight, updates, start, length, frequency, target, restore, fix):
    """Weights after each call, as SparseBERT describes its pruning; yields them."""
    mask = (weight != 0).double() if restore else torch.ones_like(weight)
    initial = 1 - int(mask.sum()) / mask.numel()
    for step, update in enumerate(updates, start=1):
        weight = weight + update
        if not fix and start < step < start + length and (step - start) % frequency == 0:
            k, total = (step - start) // frequency, length // frequency
            sparsity = target + (initial - target) * (1 - k / total) ** 3
            keep = math.floor(weight.numel() * (1 - sparsity))
            size = (weight * mask).abs()
            mask = (size >= size.flatten().sort(descending=True).values[keep - 1]).double() if keep else 0 * mask
        weight = weight * mask
        yield weight


@settings(max_examples=60, deadline=None)
@given(
    start=st.integers(0, 6), length=st.integers(1, 20), frequency=st.integers(1, 7), target=st.floats(0, 1),
    zeros=st.floats(0, 0.9), restore=st.booleans(), fix=st.booleans(), coarse=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_schedule_is_followed_as_it_is_described(
    start, length, frequency, target, zeros, restore, fix, coarse, seed
):
    generator = torch.Generator().manual_seed(seed)
    weight, *updates = torch.randn(28, 6, 7, dtype=torch.float64, generator=generator)
    weight = weight * (torch.rand(6, 7, generator=generator) >= zeros)
    if coarse:  # many ties
        weight, updates = weight.round(), [update.round() for update in updates]
    model = nn.ParameterDict({"weight": nn.Parameter(weight.clone())})
    pruner = MagnitudePruner(
        model, {"weight": target}, start, start + length, frequency,
        restore_sparsity=restore, fix_sparsity=fix, faithful=True,
    )  # fmt: skip
    expected = by_definition(weight, updates, start, length, frequency, target, restore, fix)
    for step, (update, right) in enumerate(zip(updates, expected, strict=True), start=1):
        with torch.no_grad():
            model["weight"].add_(update)
        pruner.step(step)
        assert torch.equal(model["weight"], right), step
