"""The counts of the report against the lines that SparseBERT's report script prints for the same weights."""

from __future__ import annotations

import pytest

from compresskit.evaluation.sparsity import report
from tests.oracle_cases import oracle


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("sparsebert", "sparsity_report"), ids=str)
def test_every_parameter_and_the_total_are_counted_as_by_the_original_script(case):
    state = case.arrays("model/")
    found = report(state)
    rows = found.matrices.set_index("name")
    counts = {
        name: {"size": int(row["size"]), "nonzero": int(row["size"] - row["zeros"]), "sparsity": float(row["sparsity"])}
        for name, row in rows.iterrows()
    }
    case.check_value("per_parameter", got=counts)
    lines = [f"layer, size, sparsity:  {name} {t.shape} {counts[name]['sparsity']}" for name, t in state.items()]
    lines.append(f"total_sparse_rate:  {found.totals.at['checkpoint_sparsity', 'sparsity']}")
    assert len(lines) == len(case.value("lines"))
    for number, line in enumerate(lines):
        case.check_text("lines", number, got=line)
