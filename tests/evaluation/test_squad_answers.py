"""Answers from made logits: which spans may be one, what they read like, what the official files say."""

import json

import numpy as np
import pytest

from compresskit.data import squad_features, vocabulary
from compresskit.data.squad import SquadExample
from compresskit.evaluation import squad_answers

VOCABULARY = "[PAD] [UNK] [CLS] [SEP] [MASK] a b c d e f g h i the plot is not dull ##s ? cafe . ,".split()  # noqa: SIM905
CONTEXT = "a b c d e f g h i the plot is not dull a b c"
SHORT = {"max_seq_len": 14, "doc_stride": 4, "max_query_length": 2}
LONG = {"max_seq_len": 32, "doc_stride": 8, "max_query_length": 4}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return vocabulary.load_tokenizer(path)


@pytest.fixture
def asked(tokenizer):
    """Features of one question about a context, and what `answers` makes of logits."""

    def ask(context=CONTEXT, sizes=LONG, answers=()):
        examples = [SquadExample("1", "t", "the plot ?", context, answers)]
        features = squad_features.encode(examples, tokenizer, **sizes)

        def answer(start, end, null=False, **limits):
            return squad_answers.answers(examples, features, start, end, tokenizer, null=null, **limits)

        return features, answer

    return ask


def texts(found):
    return [candidate["text"] for candidate in found.n_best["1"]]


def test_right_positions_give_back_the_answer(asked):
    features, answer = asked(sizes=SHORT, answers=(("not dull", 30),))
    start, end = (10.0 * np.eye(14)[features[name][:]] for name in ("start_positions", "end_positions"))
    assert answer(start, end).predictions() == {"1": "not dull"}


def test_spans_are_ordered_short_and_inside_the_context(asked):
    features, answer = asked("the plots is dull")
    begin = features["context_start"][0]  # [CLS] the plot ? [SEP] | the plot ##s is dull
    start, end = np.zeros((2, 1, 32))
    start[0, 1] = end[0, 1] = 9  # in the question
    start[0, begin + 2], end[0, begin + 2] = 5, 4  # ##s: no word by itself, so the whole one
    end[0, begin + 4], end[0, begin] = 4.5, 6  # too far where max_answer_length is 2; before the start
    assert texts(answer(start, end, max_answer_length=2))[0] == "plots"
    assert texts(answer(start, end))[0] == "plots is dull"
    assert texts(answer(start, end, n_best_size=1)) == ["empty"]  # the highest positions are in the question


def test_a_span_counts_only_in_the_window_that_shows_its_start_with_most_context(asked):
    _, answer = asked(sizes=SHORT)
    start, end = np.zeros((2, 3, 14))
    start[1, 4] = end[1, 5] = 9  # e f: window 0 shows them with more context
    start[0, 9], end[0, 10] = 3, 3  # f g
    assert texts(answer(start, end))[0] == "f g"


def test_candidates_are_different_texts_with_the_softmax_of_their_scores(asked):
    features, answer = asked("the plots dull")
    begin = features["context_start"][0]
    start, end = np.full((2, 1, 32), -9.0)
    start[0, begin + 1], start[0, begin + 2] = 2, 1.5
    end[0, begin + 2], end[0, begin + 3] = 3, 1
    found = answer(start, end, n_best_size=2).n_best["1"]
    assert [c["text"] for c in found] == ["plots", "plots dull"]  # ##s alone reads plots too, and is passed over
    assert [(c["start_logit"], c["end_logit"]) for c in found] == [(2, 3), (2, 1)]
    odds = np.exp(2.0)
    assert [c["probability"] for c in found] == pytest.approx([odds / (1 + odds), 1 / (1 + odds)])


def test_equal_scores_keep_the_order_of_positions(asked):
    _, answer = asked("a b c")
    assert texts(answer(np.zeros((1, 32)), np.zeros((1, 32)), n_best_size=32)) == ["a", "a b", "a b c", "b", "b c", "c"]


def test_without_an_answer_the_threshold_decides(asked):
    features, answer = asked()
    start, end = np.zeros((2, 1, 32))
    start[0, 0] = end[0, 0] = 3.0
    start[0, 10] = end[0, 10] = 2.5  # one point below
    found = answer(start, end, null=True)
    text = squad_features.words(CONTEXT)[10 - features["context_start"][0]]
    assert found.null_odds == {"1": 1.0}
    assert texts(found)[:2] == ["", text]
    assert found.predictions(0.9) == {"1": ""}
    assert found.predictions(1.0) == found.predictions(1.1) == found.best_texts() == {"1": text}
    assert answer(start, end).null_odds is None
    assert "" not in texts(answer(start, end))


def test_the_null_score_is_the_lowest_of_the_windows_and_stands_in_the_list_whatever_its_place(asked):
    _, answer = asked(sizes=SHORT)
    start, end = np.ones((2, 3, 14))
    start[:, 1:4] = end[:, 1:4] = 0  # the question
    start[:, 0], end[:, 0] = (5, -3, 4), (5, -4, 4)
    found = answer(start, end, null=True, n_best_size=4)
    assert found.null_odds == {"1": -9.0}
    assert len(texts(found)) == 5
    assert found.n_best["1"][-1] | {"probability": 0} == {
        "text": "",
        "probability": 0,
        "start_logit": -3,
        "end_logit": -4,
    }


def test_a_question_without_windows_or_spans_is_answered_empty(asked):
    features, answer = asked(" ")
    assert len(features) == 0
    found = answer(np.zeros((0, 32)), np.zeros((0, 32)), null=True)
    assert texts(found) == ["empty", ""]
    assert found.null_odds == {"1": 1_000_000.0}
    assert found.predictions() == {"1": ""}


@pytest.mark.parametrize(
    ("said", "original", "aligned"),
    [
        ("cafe", "Café.", "Café"),
        ("a b", "(A  b)", "A  b"),
        ("is not", "Is,  not", "Is,  not"),  # the comma stands between them: not found
        ("c", "a b C d", "C"),
        ("", "a b", "a b"),
        ("cafe", "Cafe\u0301 a", "Cafe\u0301 a"),  # an accent of its own: as many characters are not left
    ],
)
def test_predicted_pieces_are_found_in_the_original_text(said, original, aligned, tokenizer):
    assert squad_answers.align(said, original, squad_answers.basic_tokens(tokenizer)(original)) == aligned


def test_files_are_written_with_four_spaces_each_whole(tmp_path):
    squad_answers.write_files(tmp_path / "new", {"predictions.json": {"1": "é"}})
    text = (tmp_path / "new" / "predictions.json").read_text()
    assert text == '{\n    "1": "\\u00e9"\n}\n'
    assert json.loads(text) == {"1": "é"}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["predictions.json"]


def test_logits_of_other_windows_are_refused(asked):
    _, answer = asked()
    with pytest.raises(ValueError, match="1 windows, but 0 start and 0 end logits"):
        answer([], [])
