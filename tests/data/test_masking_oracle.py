"""How many tokens are masked, against AutoTinyBERT's formula."""

from __future__ import annotations

import pytest
import torch

from compresskit.data.masking import MOST_MASKED, num_masked
from tests.oracle_cases import oracle


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("autotinybert", "mask_counts"), ids=str)
def test_as_many_tokens_are_masked_as_in_the_original(case):
    for i, row in enumerate(case.value("rows")):
        assert row["max_predictions"] == MOST_MASKED
        case.check_value("rows", i, "n_masked", got=num_masked(torch.tensor(row["len"]), row["prob"]).item())
