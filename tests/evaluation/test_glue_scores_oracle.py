"""GLUE metrics against those of TinyBERT's code."""

from __future__ import annotations

import numpy as np
import pytest

from compresskit.data.glue import task_named
from compresskit.evaluation import glue
from tests.oracle_cases import oracle

TASKS = {"sst-2": "sst2", "sts-b": "stsb", "mnli-mm": "mnli_mm"}  # where our names differ from theirs
METRICS = {
    "acc": "accuracy",
    "f1": "f1",
    "acc_and_f1": "accuracy_f1",
    "mcc": "matthews_correlation",
    "pearson": "pearson",
    "spearmanr": "spearman",
    "corr": "pearson_spearman",
}


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("tinybert", "glue_metrics"), ids=str)
def test_metrics_are_those_of_the_original_code(case):
    for number, recorded in enumerate(case.value("cases")):
        task = task_named(TASKS.get(recorded["task"], recorded["task"]))
        predictions = np.array(recorded["preds"])
        logits = predictions[:, None] if task.is_regression else np.eye(task.num_labels)[predictions]
        metrics = glue.score(task.name, logits, recorded["labels"]).metrics
        got = {name: metrics[f"eval/{METRICS[name]}"] for name in recorded["result"]}
        case.check_value("cases", number, "result", got=got)


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("efficientbert", "glue_metrics"), ids=str)
def test_metrics_of_the_whole_set_and_means_of_batches_are_those_of_efficientbert(case):
    names = {**METRICS, "pearsonr": "pearson"}
    for number, recorded in enumerate(case.value("rows")):
        task = task_named(TASKS.get(recorded["task"], recorded["task"]))
        predictions = np.array(recorded["preds"])
        logits = predictions[:, None] if task.is_regression else np.eye(task.num_labels)[predictions]
        whole = glue.score(task.name, logits, recorded["labels"]).metrics
        means = glue.batch_means(task.name, logits, recorded["labels"], recorded["batch"])
        chosen_by = [name for name in recorded["whole_set"] if names[name] == list(means)[-1]]  # of two, their mean
        case.check_value("rows", number, "select_metric", got=chosen_by[0])
        for field, found in (("whole_set", {name.removeprefix("eval/"): v for name, v in whole.items()}),
                             ("batch_averaged_as_original", means)):  # fmt: skip
            case.check_value("rows", number, field, got={name: found[names[name]] for name in recorded[field]})
