"""The pruner by itself against SparseBERT's: after every call the same masks, weights and shares of zeros."""

from __future__ import annotations

import pytest
import torch
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
