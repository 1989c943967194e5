"""AutoTinyBERT's optimizer and the rule of its warm-up against recorded numbers."""

from __future__ import annotations

import pytest
from torch import nn

from compresskit.training.optim import BertAdam, adaptive_warmup, bert_schedule
from tests.oracle_cases import oracle


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("autotinybert", "adaptive_warmup"), ids=str)
def test_the_rule_of_the_warmup_is_that_of_the_original(case):
    for i, row in enumerate(case.value("rows")):
        found = adaptive_warmup(row["total_steps"], row["warmup_steps"], row["warmup_proportion"])
        case.check_value("rows", i, "ratio", got=found.ratio)
        case.check_value("rows", i, "actual_warmup_steps", got=found.steps)


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("autotinybert", "bertadam"), ids=str)
def test_bert_adam_of_the_pretraining_updates_as_the_original(case):
    for i, run in enumerate(case.value("runs")):
        first, *others = (nn.Parameter(case[match[0]]) for match in case.names(rf"in\.{i}\.p\d+"))
        groups = [{"params": [first], "weight_decay": run["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
        optimizer = BertAdam(groups, lr=run["lr"], eps=run["eps"])
        name = "none" if run["t_total"] == -1 else "warmup_linear"
        schedule = bert_schedule(optimizer, run["t_total"], name, run["warmup"], first_step=1)
        used = []
        for step in range(run["steps"]):
            for number, parameter in enumerate((first, *others)):
                parameter.grad = case[f"in.{i}.grad.{step}.{number}"]
            used.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
            for number, parameter in enumerate((first, *others)):
                case.check(f"out.{i}.step.{step}.{number}", parameter)
        case.check_value("runs", i, "lr_after_step", got=used)
