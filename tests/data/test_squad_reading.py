"""SQuAD: what the reader refuses, and which questions choose a checkpoint."""

import json
from dataclasses import replace

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


def test_an_answer_at_another_place_is_taken_as_it_is_where_the_reader_is_not_strict(tmp_path):
    path = tmp_path / "train-v1.1.json"
    path.write_text(json.dumps(content(answers=[{"text": "dull", "answer_start": 30}])))
    assert squad.read(path, strict=False)[0].answers == (("dull", 30),)


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
