"""Multiply-adds by the closed formula against what was counted on the original models."""

import pytest

from compresskit.evaluation.flops import macs
from compresskit.models import CompactBertConfig
from tests.oracle_cases import oracle


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("dynamic_tinybert", "macs"), ids=str)
def test_multiply_adds_are_those_that_were_counted(case):
    heads = {"qa": "question_answering", "cls": "sequence_classification"}
    for number, given in enumerate(case.value("cases")):
        config = CompactBertConfig(
            hidden_size=given["hidden"],
            num_hidden_layers=given["layers"],
            num_attention_heads=given["heads"],
            intermediate_size=given["intermediate"],
            num_labels=given["num_labels"],
        )
        got = macs(config, given["T"], heads[given["task"]], given["length_config"])
        case.check_value("cases", number, "macs", got=got)
