"""SQuAD's windows: where they begin, what they aim at, that they are the official ones, and how they are kept."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import squad_features as race
from benchmarks import squad_original
from compresskit.data import squad_features, vocabulary
from compresskit.data.squad import SquadExample

CONTEXT = "a b c d e f g h i the plot is not dull a b c"
EXAMPLES = [SquadExample("1", "t", "the plot ?", CONTEXT, (("not dull", 30),))]


def test_windows_begin_every_stride_and_the_last_reaches_the_end(tokenizer):
    features = squad_features.encode(EXAMPLES, tokenizer, max_seq_len=14, doc_stride=4, max_query_length=2)
    windows = [tokenizer.convert_ids_to_tokens(ids) for ids in features["input_ids"]]
    pieces = CONTEXT.split()
    assert windows == [["[CLS]", "the", "plot", "[SEP]", *pieces[k : k + 9], "[SEP]"] for k in (0, 4, 8)]
    assert features["token_type_ids"][0] == [0] * 4 + [1] * 10
    assert features["context_start"][:] == [4, 4, 4]


def test_targets_are_positions_inside_the_window_or_zero(tokenizer):
    features = squad_features.encode(EXAMPLES, tokenizer, max_seq_len=14, doc_stride=4, max_query_length=2)
    assert list(zip(features["start_positions"], features["end_positions"], strict=True)) == [(0, 0), (0, 0), (8, 9)]
    ids = features["input_ids"][2]
    assert tokenizer.convert_ids_to_tokens(ids[8:10]) == ["not", "dull"]


def test_each_piece_has_most_context_in_exactly_one_window(tokenizer):
    features = squad_features.encode(EXAMPLES, tokenizer, max_seq_len=14, doc_stride=4, max_query_length=2)
    best = np.zeros((3, 17), dtype=int)
    for k, row in enumerate(features):
        best[k, 4 * k : 4 * k + 9] = row["max_context"]
    assert best.sum(axis=0).tolist() == [1] * 17
    # by hand: piece 6 has 2 pieces to its right in window 0 and 2 to its left in window 1; the first wins ties
    assert best.argmax(axis=0).tolist() == [0] * 7 + [1] * 4 + [2] * 6


def targets(context, answer, begin, tokenizer):
    example = SquadExample("1", "t", "is", context, ((answer, begin),))
    (row,) = squad_features.encode([example], tokenizer, max_seq_len=32, doc_stride=8, max_query_length=4)
    return tokenizer.convert_ids_to_tokens(row["input_ids"][row["start_positions"] : row["end_positions"] + 1])


def test_an_answer_is_shrunk_to_its_own_pieces_where_these_are_in_its_words(tokenizer):
    assert targets("a (plot) b", "plot", 3, tokenizer) == ["plot"]
    assert targets("a plots b", "plot", 2, tokenizer) == ["plot"]


def test_an_answer_that_is_no_run_of_pieces_is_its_whole_words(tokenizer):
    assert targets("a granders b", "rand", 3, tokenizer) == ["grand", "##er", "##s"]


def test_an_answer_without_pieces_is_no_target(tokenizer):
    """The official featuriser aims at whatever comes after it, be it beyond the window."""
    assert targets("a b \u00ad", "\u00ad", 4, tokenizer) == ["[CLS]"]


def test_a_question_whose_answer_is_elsewhere_is_left_out_in_training_only(tokenizer):
    wrong = replace(EXAMPLES[0], id="2", answers=(("plot", 0),))
    without = replace(EXAMPLES[0], id="3", answers=())
    examples = [EXAMPLES[0], wrong, without]
    sizes = {"max_seq_len": 32, "doc_stride": 8, "max_query_length": 4}
    features = squad_features.encode(examples, tokenizer, **sizes)
    assert features["example"][:] == [0, 2]
    assert features["start_positions"][1] == features["end_positions"][1] == 0
    records = squad_features.official_records(features, examples, tokenizer)
    assert [(record["qas_id"], record["example_index"]) for record in records] == [("1", 0), ("3", 1)]
    features = squad_features.encode(examples, tokenizer, **sizes, training=False)
    assert features["example"][:] == [0, 1, 2]
    assert "start_positions" not in features.column_names


# Words that are hard to count: other spaces, accents alone, marks that stand or vanish, Chinese, brackets, long words.
PARTS = [*("the", "plot", "Plots", "unGrander", "a", "I", ".", "?", "''", "(is)", "Café", "e\u0301", "\u0301", "ß"),
         *("\u00ad", "\u200b", "\u4e2d\u6587", "x" * 101, "\u00a0", "\u3000", "\u2019s", "\ufffd", "\x00"),
         "\U0001f600"]  # fmt: skip
GAPS = ["", " ", "  ", "\t", "\n", "\r\n", "\u202f"]
text = st.lists(st.tuples(st.sampled_from(PARTS), st.sampled_from(GAPS)), max_size=25).map(
    lambda pairs: "".join(part + gap for part, gap in pairs)
)


@st.composite
def questions(draw, name):
    context = draw(text)
    answers = ()
    if context and draw(st.integers(0, 3)):
        begin = draw(st.integers(0, len(context) - 1))
        answer = context[begin : draw(st.integers(begin + 1, len(context)))]
        answers = ((answer, begin),) if squad_original.basic(answer) else ()
    return [SquadExample(f"{name} {n}", "t", draw(text), context, answers) for n in range(draw(st.integers(1, 2)))]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_any_texts_have_the_windows_of_the_official_featuriser(tokenizer, data):
    examples = [e for name in range(3) for e in data.draw(questions(name))]
    max_query_length = data.draw(st.integers(0, 6))
    doc_stride = data.draw(st.integers(1, 9))
    max_seq_len = max_query_length + 3 + doc_stride + data.draw(st.integers(0, 5))
    sizes = {"max_seq_len": max_seq_len, "doc_stride": doc_stride, "max_query_length": max_query_length}
    race.require_equal(examples, tokenizer, squad_original.WordPiece(tokenizer.get_vocab()), **sizes)


def test_questions_of_several_parts_are_counted_through(tokenizer, monkeypatch):
    examples = [replace(EXAMPLES[0], id=str(n), context=f"{CONTEXT} {'a b ' * (n % 3)}") for n in range(7)]
    sizes = {"max_seq_len": 14, "doc_stride": 4, "max_query_length": 2}
    whole = squad_features.encode(examples, tokenizer, **sizes)
    monkeypatch.setattr(squad_features, "PART", 2)
    monkeypatch.setattr(squad_features, "LINE", 3)
    assert squad_features.encode(examples, tokenizer, **sizes).to_dict() == whole.to_dict()
    assert whole["example"][-1] == 6


SIZES = {"max_seq_len": 14, "doc_stride": 4, "max_query_length": 2}


def test_kept_features_are_those_that_were_made_and_are_not_made_again(tokenizer, tmp_path, monkeypatch):
    made = squad_features.encode(EXAMPLES, tokenizer, **SIZES)
    assert squad_features.encode_kept(tmp_path, EXAMPLES, tokenizer, **SIZES).to_dict() == made.to_dict()
    monkeypatch.setattr(squad_features, "encode", None)
    kept = squad_features.encode_kept(tmp_path, EXAMPLES, tokenizer, **SIZES)
    assert kept.to_dict() == made.to_dict()
    assert kept.features == made.features
    assert len(list(tmp_path.iterdir())) == 1


def test_whatever_features_follow_from_has_a_place_of_its_own(tokenizer, vocab_file, tmp_path):
    (tmp_path / "vocab.txt").write_text(vocab_file.read_text() + "plots\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    more_words = vocabulary.load_tokenizer(tmp_path / "vocab.txt")
    cased = vocabulary.load_tokenizer(tmp_path)
    example = EXAMPLES[0]
    settings = {**SIZES, "training": True}
    digests = [
        squad_features.digest(EXAMPLES, tokenizer, settings),
        squad_features.digest(EXAMPLES, more_words, settings),
        squad_features.digest(EXAMPLES, cased, settings),
        *(squad_features.digest(EXAMPLES, tokenizer, settings | {name: 3}) for name in SIZES),
        squad_features.digest(EXAMPLES, tokenizer, settings | {"training": False}),
        squad_features.digest([], tokenizer, settings),
        *(
            squad_features.digest([replace(example, **{name: value})], tokenizer, settings)
            for name, value in (("id", "2"), ("question", "the"), ("context", CONTEXT + " d"), ("answers", ()),
                                ("answers", (("not", 30),)))
        ),
    ]  # fmt: skip
    assert len(set(digests)) == len(digests)
    tokenizer("a b c", truncation=True, max_length=2)  # leaves its setting behind
    assert squad_features.digest(EXAMPLES, tokenizer, settings) == digests[0]


def test_features_that_were_not_finished_leave_nothing_behind(tokenizer, tmp_path, monkeypatch):
    def no_space(unfinished, place):
        assert unfinished.stat().st_size > 0
        raise OSError("no space left on device")

    monkeypatch.setattr(squad_features.os, "replace", no_space)
    with pytest.raises(OSError, match="no space left"):
        squad_features.encode_kept(tmp_path, EXAMPLES, tokenizer, **SIZES)
    assert list(tmp_path.iterdir()) == []


def test_sizes_that_leave_no_window_are_refused(tokenizer):
    with pytest.raises(ValueError, match="leaves 0 pieces of context"):
        squad_features.encode(EXAMPLES, tokenizer, max_seq_len=7, doc_stride=1, max_query_length=4)
    with pytest.raises(ValueError, match="doc_stride 10 must lie between 1 and that"):
        squad_features.encode(EXAMPLES, tokenizer, max_seq_len=16, doc_stride=10, max_query_length=4)
