"""SQuAD: what the reader refuses, where windows begin, and answers that come back from their positions."""

import json
from dataclasses import replace

import numpy as np
import pytest

from compresskit.data import squad

CONTEXT = "a b c d e f g h i the plot is not dull a b c"


def content(context=CONTEXT, **question):
    entry = {"id": "1", "question": "the plot ?", "answers": [{"text": "not dull", "answer_start": 30}], **question}
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": [entry]}]}]}


@pytest.fixture
def read(tmp_path):
    def write_and_read(data):
        path = tmp_path / "train-v1.1.json"
        path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
        return squad.read(path)

    return write_and_read


def test_an_official_file_is_read(read):
    (example,) = read(content())
    assert example == squad.SquadExample("1", "t", "the plot ?", CONTEXT, (("not dull", 30),))
    assert read(content(is_impossible=True))[0].answers == ()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('{"data": [\n}', "line 2 column 1: broken JSON"),
        ('{"articles": []}', "field 'data' is missing, expected list"),
        ('{"data": []}', "has no questions"),
        ('{"data": [{"title": "t"}]}', "article 0: field 'paragraphs' is missing"),
        ('{"data": [{"paragraphs": [{"qas": []}]}]}', "article 0 paragraph 0: field 'context' is missing"),
        (content(question=None), "article 0 paragraph 0 question 0: field 'question' is missing"),
        (content(id=7), "question 0: field 'id' is int, expected str"),
        (content(answers=[{"text": "dull"}]), "field 'answer_start' is missing"),
        (content(answers=[{"text": "dull", "answer_start": 30}]), "30 the context reads 'not ', not 'dull'"),
        (content(answers=[{"text": "a", "answer_start": -1}]), "at answer_start -1 the context reads nothing, not 'a'"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_named_with_the_place_inside(data, message, read):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        read(data)
    assert message in str(error.value)
    assert "train-v1.1.json" in str(error.value)


def test_an_id_used_twice_is_refused(read):
    data = content()
    data["data"] *= 2
    with pytest.raises(ValueError, match="id '1' was used before"):
        read(data)


def test_windows_begin_every_stride_and_the_last_reaches_the_end(read, tokenizer):
    features = squad.encode(read(content()), tokenizer, max_seq_len=14, doc_stride=4, max_query_length=2)
    windows = [tokenizer.convert_ids_to_tokens(ids) for ids in features["input_ids"]]
    pieces = CONTEXT.split()
    assert windows == [["[CLS]", "the", "plot", "[SEP]", *pieces[k : k + 9], "[SEP]"] for k in (0, 4, 8)]
    assert features["token_type_ids"][0] == [0] * 4 + [1] * 10
    assert features["context_start"][:] == [4, 4, 4]


def test_targets_are_positions_inside_the_window_or_zero(read, tokenizer):
    features = squad.encode(read(content()), tokenizer, max_seq_len=14, doc_stride=4, max_query_length=2)
    assert list(zip(features["start_positions"], features["end_positions"], strict=True)) == [(0, 0), (0, 0), (8, 9)]
    ids = features["input_ids"][2]
    assert tokenizer.convert_ids_to_tokens(ids[8:10]) == ["not", "dull"]


def test_each_piece_has_most_context_in_exactly_one_window(read, tokenizer):
    features = squad.encode(read(content()), tokenizer, max_seq_len=14, doc_stride=4, max_query_length=2)
    best = np.zeros((3, 17), dtype=int)
    for k, row in enumerate(features):
        best[k, 4 * k : 4 * k + 9] = row["max_context"]
    assert best.sum(axis=0).tolist() == [1] * 17
    # by hand: piece 6 has 2 pieces to its right in window 0 and 2 to its left in window 1; the first wins ties
    assert best.argmax(axis=0).tolist() == [0] * 7 + [1] * 4 + [2] * 6


def answers(examples, features, starts, ends, null_threshold=None, **limits):
    return squad.predictions(squad.best_spans(examples, features, starts, ends, **limits), null_threshold)


def one_hot(features, position_of, size=16):
    return [10.0 * np.eye(size)[position_of(k)] for k in range(len(features))]


def test_right_positions_give_back_the_answer(read, tokenizer):
    examples = read(content())
    features = squad.encode(examples, tokenizer, max_seq_len=14, doc_stride=4, max_query_length=2)
    starts, ends = (one_hot(features, features[name].__getitem__) for name in ("start_positions", "end_positions"))
    assert answers(examples, features, starts, ends) == {"1": "not dull"}


def test_spans_are_ordered_short_inside_the_context_and_whole_words(read, tokenizer):
    examples = read(content("the plots is dull", answers=[{"text": "dull", "answer_start": 13}]))
    features = squad.encode(examples, tokenizer, max_seq_len=16, doc_stride=4, max_query_length=4)
    begin = features["context_start"][0]  # [CLS] the plot ? [SEP] | the plot ##s is dull
    scores = np.zeros((2, 16))
    scores[0, 1], scores[1, 1] = 9, 9  # in the question: not allowed
    scores[0, begin + 2], scores[1, begin + 2] = 5, 4  # ##s: the whole word is the answer
    scores[1, begin + 4], scores[1, begin] = 4.5, 6  # too far where max_answer_length is 2; before the start
    assert answers(examples, features, scores[:1], scores[1:], max_answer_length=2) == {"1": "plots"}
    assert answers(examples, features, scores[:1], scores[1:]) == {"1": "plots is dull"}
    assert answers(examples, features, scores[:1], scores[1:], n_best_size=1) == {"1": ""}


def test_without_an_answer_the_threshold_decides(read, tokenizer):
    examples = read(content())
    features = squad.encode(examples, tokenizer, max_seq_len=32, doc_stride=8, max_query_length=4)
    start, end = np.zeros((1, 32)), np.zeros((1, 32))
    start[0, 0], end[0, 0] = 3.0, 3.0
    start[0, 10], end[0, 10] = 2.5, 2.5  # one point below
    answer = answers(examples, features, start, end)["1"]
    assert answer != ""
    assert answers(examples, features, start, end, null_threshold=0.9)["1"] == ""
    assert answers(examples, features, start, end, null_threshold=1.1)["1"] == answer


def many(articles, paragraphs, questions):
    return [
        squad.SquadExample(f"{a}-{p}-{q}", f"article {a}", "the plot ?", f"paragraph {p} of {a}", ())
        for a in range(articles)
        for p in range(paragraphs)
        for q in range(questions)
    ]


def parts_of(examples, seed=0):
    train, selection = squad.selection_split(examples, seed)
    assert {e.id for e in train} | {e.id for e in selection} == {e.id for e in examples}
    assert [e.id for e in examples if e in train] == [e.id for e in train]
    return train, selection


def test_selection_questions_are_whole_articles_and_5_percent():
    train, selection = parts_of(many(100, 10, 6))  # 5 % of 6000 questions are 5 articles of 60
    assert len(selection) == 300
    assert {e.title for e in train}.isdisjoint(e.title for e in selection)


def test_of_few_articles_whole_paragraphs_are_selected_and_at_least_200_questions():
    train, selection = parts_of(many(3, 40, 7))
    assert 200 <= len(selection) < 207
    assert {e.context for e in train}.isdisjoint(e.context for e in selection)


def test_a_paragraph_that_stands_in_two_articles_is_in_one_part():
    examples = many(40, 2, 10)
    twice = [replace(e, id=f"again {e.id}", title="another article") for e in examples if e.context.startswith("p")]
    train, selection = parts_of(examples + twice)
    assert {e.context for e in train}.isdisjoint(e.context for e in selection)


def test_the_selection_follows_the_seed_and_leaves_something_to_train_on():
    examples = many(30, 2, 10)
    assert parts_of(examples, 1) == parts_of(examples, 1)
    assert parts_of(examples, 1) != parts_of(examples, 2)
    assert [len(part) for part in parts_of(many(1, 2, 1))] == [1, 1]
    with pytest.raises(ValueError, match="3 questions about one paragraph cannot be divided"):
        squad.selection_split(many(1, 1, 3), 0)


def test_sizes_that_leave_no_window_are_refused(read, tokenizer):
    with pytest.raises(ValueError, match="leaves 0 pieces of context"):
        squad.encode(read(content()), tokenizer, max_seq_len=7, doc_stride=1, max_query_length=4)
    with pytest.raises(ValueError, match="doc_stride 10 must lie between 1 and that"):
        squad.encode(read(content()), tokenizer, max_seq_len=16, doc_stride=10, max_query_length=4)
    examples = read(content())
    with pytest.raises(ValueError, match="1 windows, but 0 start and 0 end logits"):
        squad.best_spans(examples, squad.encode(examples, tokenizer, 32, 8, 4), [], [])
