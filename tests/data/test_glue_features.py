"""Token ids of single texts and pairs, and the slice of train that chooses."""

import itertools

import numpy as np
import pytest
from datasets import Dataset

from compresskit.data import glue

LETTERS = "a b c d e f g h i"


def popped(a: list, b: list, limit: int) -> tuple[list, list]:
    """The rule as it is told: pop from the longer list, from b when equal."""
    a, b = list(a), list(b)
    while len(a) + len(b) > limit:
        (a if len(a) > len(b) else b).pop()
    return a, b


def test_pairs_are_cut_as_by_popping_from_the_longer_text(tokenizer):
    letters = LETTERS.split()
    lengths = list(itertools.product(range(1, 10), range(1, 10)))
    rows = Dataset.from_dict(
        {
            "sentence1": [" ".join(letters[:a]) for a, _ in lengths],
            "sentence2": [" ".join(letters[:b]) for _, b in lengths],
            "label": [0] * len(lengths),
        }
    )
    for max_seq_len in (4, 5, 8, 11, 12, 25):
        encoded = glue.encode(rows, tokenizer, max_seq_len)
        for (a, b), row in zip(lengths, encoded, strict=True):
            first, second = popped(letters[:a], letters[:b], max_seq_len - 3)
            tokens = ["[CLS]", *first, "[SEP]", *second, "[SEP]"]
            assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == tokens
            assert row["token_type_ids"] == [0] * (len(first) + 2) + [1] * (len(second) + 1)


def test_a_single_text_keeps_its_first_pieces(tokenizer):
    rows = Dataset.from_dict({"sentence1": [LETTERS, "plots"], "label": [1, 0]})
    encoded = glue.encode(rows, tokenizer, 6)
    assert tokenizer.convert_ids_to_tokens(encoded[0]["input_ids"]) == ["[CLS]", "a", "b", "c", "d", "[SEP]"]
    assert tokenizer.convert_ids_to_tokens(encoded[1]["input_ids"]) == ["[CLS]", "plot", "##s", "[SEP]"]
    assert encoded[0]["token_type_ids"] == [0] * 6
    assert encoded["labels"][:] == [1, 0]


def test_an_empty_second_text_counts_as_absent(tokenizer):
    rows = Dataset.from_dict({"sentence1": ["a b"], "sentence2": [""], "label": [2.5]})
    encoded = glue.encode(rows, tokenizer, 16)
    assert tokenizer.convert_ids_to_tokens(encoded[0]["input_ids"]) == ["[CLS]", "a", "b", "[SEP]"]
    assert encoded[0]["token_type_ids"] == [0, 0, 0, 0]
    assert encoded[0]["labels"] == 2.5


def test_a_length_without_room_for_text_is_refused(tokenizer):
    with pytest.raises(ValueError, match="max_seq_len 3 leaves no room"):
        glue.encode(Dataset.from_dict({"sentence1": ["a"], "label": [0]}), tokenizer, 3)


@pytest.mark.parametrize(
    ("rows", "selected"), [(67_349, 3367), (8_000, 400), (1_000, 200), (400, 200), (60, 30), (3, 1)]
)
def test_selection_takes_five_percent_at_least_200_at_most_half(rows, selected):
    train, selection = glue.selection_split(Dataset.from_dict({"idx": np.arange(rows)}), seed=1)
    assert len(selection) == selected
    assert sorted([*train["idx"][:], *selection["idx"][:]]) == list(range(rows))


def test_selection_depends_on_the_seed_alone():
    rows = Dataset.from_dict({"idx": np.arange(1000)})
    first, again, other = (glue.selection_split(rows, seed)[1]["idx"][:] for seed in (0, 0, 1))
    assert first == again
    assert first != other
    with pytest.raises(ValueError, match="1 training rows cannot be divided"):
        glue.selection_split(rows.select([0]), 0)
