"""Rows of a corpus that are held out: the last of every source, and never so many that nothing is left."""

import pytest
from datasets import Dataset

from compresskit.data.corpus.prepared import hold_out


@pytest.mark.parametrize(
    ("sizes", "share", "most", "held_out"),
    [
        ([100], 0.02, 50, [98, 99]),
        ([100, 50], 0.04, 50, [96, 97, 98, 99, 148, 149]),
        ([100], 0.5, 3, [97, 98, 99]),
        ([100, 50], 0.5, 4, [98, 99, 148, 149]),
        ([10], 0.02, 50, [9]),
        ([1, 3], 0.5, 50, [2, 3]),
        ([0, 4], 0.25, 50, [3]),
    ],
)
def test_the_last_rows_of_each_source_are_held_out(sizes, share, most, held_out):
    rows = Dataset.from_dict({"number": list(range(sum(sizes)))})
    train, kept = hold_out(rows, sizes, share, most)
    assert kept["number"][:] == held_out
    assert train["number"][:] == [number for number in range(sum(sizes)) if number not in held_out]


def test_a_corpus_of_one_row_is_refused():
    with pytest.raises(ValueError, match=r"too few rows \(1\) to spare one"):
        hold_out(Dataset.from_dict({"number": [0]}), [1], 0.5, 10)
