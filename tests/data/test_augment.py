"""Which words of a text can be replaced, by what, and how copies are drawn from that."""

from __future__ import annotations

from collections import Counter
from random import Random

import numpy as np
import pytest

from compresskit.data import augment, vocabulary
from compresskit.data.augment import Augmenter, draw, groups, row_copies
from compresskit.data.glue_tasks import TASKS
from compresskit.data.word_vectors import WordVectors


@pytest.fixture
def vectors():
    """Nearest to plots: films, then tales; to duller: nothing but what lies across."""
    words = ["plots", "films", "tales", "duller", "dull"]
    directions = np.array([[1, 0, 0], [0.9, 0.1, 0], [0.6, 0, 0.4], [0, 1, 0], [0, 0.8, 0.2]])
    return WordVectors(words, directions / np.linalg.norm(directions, axis=1)[:, None])


def ids(tokenizer, pieces: str) -> list[int]:
    return tokenizer.convert_tokens_to_ids(pieces.split())


def test_every_glue_task_has_its_number_of_copies():
    assert augment.COPIES.keys() == TASKS.keys()


def test_a_special_token_is_one_word_only_where_it_stands_alone(tokenizer):
    words = Augmenter(tokenizer, None).words("A [MASK] plot, [SEP]is NOT[MASK] dull's")
    assert words == ["a", "[MASK]", "plot", ",", "[", "sep", "]", "is", "not", "[", "mask", "]", "dull", "'", "s"]


def test_single_piece_words_are_asked_of_the_masked_lm_beside_the_original_text(tokenizer):
    prepared = Augmenter(tokenizer, None).prepare("The plot is duller , grand")
    assert prepared.words == ["the", "plot", "is", "duller", ",", "grand"]
    assert prepared.distant == [3]
    text = "the plot is dull ##er , grand"
    assert prepared.masked == {
        1: (ids(tokenizer, f"[CLS] {text.replace('plot', '[MASK]')} [SEP] {text} [SEP]"), 9, 2),
        5: (ids(tokenizer, f"[CLS] {text.replace('grand', '[MASK]')} [SEP] {text} [SEP]"), 9, 7),
    }


def test_stop_words_digits_and_mixed_words_stay(tokenizer, vectors):
    for augmenter in (Augmenter(tokenizer, vectors), Augmenter(None, vectors)):
        prepared = augmenter.prepare("it isn't 3 grand2 dé-jà vu ! Who s The 3rd")
        replaceable = {prepared.words[i] for i in (*prepared.masked, *prepared.distant)}
        assert replaceable == {"de", "ja", "vu", "who"}  # question words are no stop words in the original either


def test_without_a_masked_lm_every_word_goes_to_the_table(vectors):
    augmenter = Augmenter(None, vectors, 2)
    prepared = augmenter.prepare("The Plots are duller than films")
    assert prepared.words == ["the", "plots", "are", "duller", "than", "films"]
    assert augmenter.candidates([prepared], None) == [
        {1: ["films", "tales"], 3: ["dull", "films"], 5: ["plots", "tales"]}
    ]


def test_a_word_of_several_pieces_that_the_table_lacks_keeps_itself(tokenizer, vectors):
    for table in (vectors, None):
        augmenter = Augmenter(tokenizer, table)
        assert augmenter.candidates([augmenter.prepare("uns")], None) == [{0: ["uns"]}]


def test_longer_input_is_cut_and_words_beyond_it_keep_themselves(tokenizer):
    augmenter = Augmenter(tokenizer, None, max_length=5)
    prepared = augmenter.prepare("b plot c e grand")
    text = ids(tokenizer, "[CLS] b plot c e")
    mask = tokenizer.mask_token_id
    assert prepared.masked == {i: ([*text[: i + 1], mask, *text[i + 2 :]], 7, i + 1) for i in range(4)}
    found = augmenter.candidates([prepared], lambda rows: [ids(tokenizer, "dull")] * len(rows))[0]
    assert found == {0: ["dull"], 1: ["dull"], 2: ["dull"], 3: ["dull"], 4: ["grand"]}


def test_the_masked_lm_is_asked_once_for_all_texts_and_answers_come_to_their_words(tokenizer, vectors):
    augmenter = Augmenter(tokenizer, vectors, 1)
    asked = []

    def fill(rows):
        asked.append(len(rows))
        return [[row[0][row[1] - 1 + row[2]]] for row in rows]  # the original word, in the second half

    prepared = [augmenter.prepare(text) for text in ("the plot", "plots grand b", "is")]
    assert augmenter.candidates(prepared, fill) == [{1: ["plot"]}, {0: ["films"], 1: ["grand"], 2: ["b"]}, {}]
    assert asked == [3]


def test_whole_words_alone_may_be_chosen_unless_faithful(tokenizer):
    vocabulary = tokenizer.get_vocab()
    ours = {piece for piece, id in vocabulary.items() if id in Augmenter(tokenizer, None).allowed()}
    left_out = "[PAD] [UNK] [CLS] [SEP] [MASK] ##s ##er . , ? '".split()  # noqa: SIM905
    assert ours == set(vocabulary) - set(left_out)
    assert Augmenter(tokenizer, None, faithful=True).allowed() == set(vocabulary.values())


def test_unused_entries_and_symbols_may_not_be_chosen(tmp_path):
    pieces = "[PAD] [UNK] [CLS] [SEP] [MASK] [unused0] + € ##é é the 3 x² हिन्दी".split()  # noqa: SIM905
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    tokenizer = vocabulary.load_tokenizer(tmp_path / "vocab.txt")
    allowed = Augmenter(tokenizer, None).allowed()
    assert [piece for id, piece in enumerate(pieces) if id in allowed] == ["é", "the", "3", "x²", "हिन्दी"]


def test_continuations_are_dropped_after_the_choice_where_faithful(tokenizer):
    augmenter = Augmenter(tokenizer, None, faithful=True)
    answers = iter([ids(tokenizer, "[SEP] ##s dull"), ids(tokenizer, "##s ##er")])
    found = augmenter.candidates([augmenter.prepare("plot grand")], lambda rows: list(answers))
    assert found == [{0: ["[SEP]", "dull"], 1: ["grand"]}]


def test_a_cased_vocabulary_keeps_its_case_and_title_case_survives_the_table(tmp_path, vectors):
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "The", "Plot", "##s", "dull", "##er", "##ER", "is"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    tokenizer = vocabulary.load_tokenizer(tmp_path)
    augmenter = Augmenter(tokenizer, vectors, 2)
    prepared = augmenter.prepare("The Plots is duller")
    assert prepared.words == ["The", "Plots", "is", "duller"]
    assert augmenter.candidates([prepared], None) == [{1: ["Films", "Tales"], 3: ["dull", "films"]}]
    assert Augmenter(tokenizer, vectors, faithful=True).words("The Plots") == ["the", "plots"]


def test_neither_masked_lm_nor_table_is_refused():
    with pytest.raises(ValueError, match="neither a masked LM nor word vectors"):
        Augmenter(None, None)


def test_groups_keep_order_and_end_when_the_masked_lm_has_enough_to_read(tokenizer):
    augmenter = Augmenter(tokenizer, None)
    texts = ["plot"] * 7 + ["is"] * 5 + ["grand plot dull b"]
    made = list(groups(texts, augmenter, tokens=10, most=4))
    assert [one.words for group in made for one in group] == [augmenter.words(text) for text in texts]
    assert [len(group) for group in made] == [2, 2, 2, 4, 3]  # of [CLS] [MASK] [SEP] plot [SEP]: 5 tokens each


class Scripted:
    """Draws that were written down before: (candidate's number, u)."""

    def __init__(self, *draws):
        self.draws = [value for pair in draws for value in pair]

    def choice(self, seq):
        return seq[self.draws.pop(0)]

    def random(self):
        return self.draws.pop(0)


def test_each_word_draws_a_candidate_first_and_then_whether_it_takes_it():
    rng = Scripted((1, 0.39), (0, 0.4), (0, 0.0), (1, 0.9), (1, 0.1), (1, 0.5))
    texts = draw("A  b c!", ["a", "b", "c", "!"], {0: ["x", "y"], 2: ["z", "w"]}, 3, 0.4, rng)
    assert texts == ["A  b c!", "y b c !", "x b c !"]  # the third attempt gave the first copy again
    assert rng.draws == []


def test_words_are_replaced_at_the_given_rate_by_each_candidate_alike():
    words = [f"w{i}" for i in range(50)]  # so many that no copy comes twice, which would leave it out
    texts = draw("raw", words, {i: ["p", "q", "r"] for i in range(50)}, 500, 0.4, Random(0))
    assert len(texts) == len(set(texts)) == 501
    counts = Counter(word if word in "pqr" else "kept" for text in texts[1:] for word in text.split())
    total = counts.total()
    assert counts["kept"] / total == pytest.approx(0.6, abs=0.015)
    for candidate in "pqr":
        assert counts[candidate] / total == pytest.approx(0.4 / 3, abs=0.01)


def test_a_text_without_candidates_has_one_copy_in_plain_words_at_most():
    assert draw("It is", ["it", "is"], {}, 30, 0.4, Random(0)) == ["It is", "it is"]
    assert draw("it is", ["it", "is"], {}, 30, 0.4, Random(0)) == ["it is"]


def test_a_copy_changes_one_text_and_the_row_itself_comes_first_and_once():
    fields, texts = ["1", "A", "x", "B"], [["A", "a1", "a2"], ["B", "b1"]]
    assert list(row_copies(fields, (1, 3), texts, faithful=False)) == [
        ["1", "A", "x", "B"],
        ["1", "a1", "x", "B"],
        ["1", "a2", "x", "B"],
        ["1", "A", "x", "b1"],
    ]
    assert fields == ["1", "A", "x", "B"]


def test_faithful_copies_of_the_second_text_stand_beside_the_last_copy_of_the_first():
    texts = [["A", "a1", "a2"], ["B", "b1"]]
    assert [(a, b) for _, a, _, b in row_copies(["1", "A", "x", "B"], (1, 3), texts, faithful=True)] == [
        ("A", "B"),
        ("a1", "B"),
        ("a2", "B"),
        ("a2", "B"),
        ("a2", "b1"),
    ]
