"""Chunks as AutoTinyBERT packs them: no text is lost, none is too long or too short, and the files come back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compresskit.data import corpora
from compresskit.data.corpus import chunks, shards, token_files, wikitext_dataset
from compresskit.data.corpus.documents import Documents, Source, store

DOCUMENT = st.lists(st.integers(0, 40), min_size=1, max_size=30).map(
    lambda lengths: [list(range(sum(lengths[:n]), sum(lengths[: n + 1]))) for n in range(len(lengths))]
)


@settings(max_examples=200, deadline=None)
@given(document=DOCUMENT, max_seq_len=st.integers(5, 30))
def test_chunks_hold_the_text_in_order_and_all_of_it_but_for_scraps(document, max_seq_len):
    made = list(chunks.document_chunks(document, max_seq_len))
    assert all(chunks.MIN_TOKENS <= len(chunk) <= max_seq_len for chunk in made)
    kept = [token for chunk in made for token in chunk]
    assert kept == sorted(kept)  # the document's tokens are numbered
    scraps = [row for row in corpora.pack(document, max_seq_len) if len(row) < chunks.MIN_TOKENS]
    assert len(kept) + sum(map(len, scraps)) == sum(map(len, document))
    short = [sentence for sentence in document if len(sentence) <= max_seq_len]
    if short == document:  # no sentence is divided
        starts = {sentence[0] for sentence in document if sentence}
        assert {chunk[0] for chunk in made} <= starts
        released = list(chunks.document_chunks(document, max_seq_len, faithful=True))
        assert made == [chunk for chunk in released if len(chunk) >= chunks.MIN_TOKENS]


def test_overlong_sentences_give_overlong_and_empty_chunks_only_where_faithful():
    document = [list(range(9)), [9], list(range(10, 22)), [22, 23]]
    assert list(chunks.document_chunks(document, 5, faithful=True)) == [
        [], list(range(9)), [9], list(range(10, 22)), [22, 23],
    ]  # fmt: skip
    assert list(chunks.document_chunks(document, 5)) == [
        [0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11, 12, 13, 14], [15, 16, 17, 18, 19], [20, 21, 22, 23],
    ]  # fmt: skip
    assert list(chunks.document_chunks([[1, 2]], 5)) == []


def test_a_sentence_of_a_million_tokens_is_packed_in_linear_time():
    assert sum(map(len, corpora.pack([list(range(1_000_000))], 5))) == 1_000_000  # minutes if it were quadratic


def sentences_file(tmp_path, text: str) -> Source:
    (tmp_path / "text.txt").write_text(text)
    return Source("text", tmp_path / "text.txt")


def test_chunks_on_disk_are_counted_and_a_stopped_writing_goes_on(tmp_path, tokenizer, monkeypatch):
    text = "\n\n".join("\n".join(["a b c d"] * (n % 5) + ["e f"]) for n in range(40))
    read = store(tmp_path / "store", sentences_file(tmp_path, text), tokenizer)
    found = Documents([tmp_path / "store"])
    straight = chunks.write(tmp_path / "straight", found, {"text": read.documents}, 6)
    assert straight["text"].tokens + straight["text"].dropped == read.tokens
    assert straight["text"].dropped == 2 * 8  # documents of two tokens

    monkeypatch.setattr(shards, "SHARD_BYTES", 100)
    monkeypatch.setattr(chunks, "ROWS_AT_ONCE", 3)

    def stop(done: int) -> None:
        if done == 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chunks.write(tmp_path / "stopped", found, {"text": read.documents}, 6, advance=stop)
    assert len(shards.files(tmp_path / "stopped")) > 1
    assert chunks.write(tmp_path / "stopped", found, {"text": read.documents}, 6) == straight
    rows = [shards.dataset(tmp_path / name)["input_ids"][:] for name in ("straight", "stopped")]
    assert rows[0] == rows[1]
    assert len(rows[0]) == straight["text"].instances


def test_text_of_too_short_documents_is_refused(tmp_path, tokenizer):
    read = store(tmp_path / "store", sentences_file(tmp_path, "a b\n\nc\n"), tokenizer)
    with pytest.raises(ValueError, match="2 documents have no chunk of at least 3 tokens; give more text"):
        chunks.write(tmp_path / "out", Documents([tmp_path / "store"]), {"text": read.documents}, 16)


def test_files_hold_all_chunks_and_none_is_empty(tmp_path, tokenizer):
    made = [[[5, 6, 7]] * (n % 3 + 1) for n in range(20)]
    token_files.write(tmp_path / "few", made[:2], 3, tokenizer, faithful=False)
    token_files.write(tmp_path / "many", made, 39, tokenizer, faithful=False)
    sizes = {name: [len(path.read_bytes().splitlines()) for path in token_files.files(tmp_path / name)]
             for name in ("few", "many")}  # fmt: skip
    assert sizes == {"few": [1, 1, 1], "many": [2] * 11 + [1] * 17}
    assert json.loads((tmp_path / "few/train_doc_tokens_ngrams_0.json").read_text()) == {"tokens": ["a", "b", "c"]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('["a"]', r'2\.json line 2: expected \{"tokens": \[…\]\}, one JSON object per line'),
        ('{"tokens": ["a"', r"2\.json line 2: expected"),
        ("", r"2\.json line 2: expected"),
        ('{"token": ["a"]}', r"2\.json line 2: expected"),
        ('{"tokens": "a"}', r"2\.json line 2: 'tokens' is no list of tokens"),
        ('{"tokens": [1]}', r"2\.json line 2: 'tokens' is no list of tokens"),
        (
            '{"tokens": ["zebra"]}',
            "source old: .* token 'zebra' is not in the vocabulary; it must be the one the files",
        ),
    ],
)
def test_a_line_that_is_no_token_list_is_named(tmp_path, tokenizer, line, message):
    (tmp_path / "train_doc_tokens_ngrams_10.json").write_text("")
    (tmp_path / "train_doc_tokens_ngrams_2.json").write_text('{"tokens": ["a", "b"]}\n' + line + "\n")
    source = Source("old", tmp_path)
    assert [path.name[-7:] for path in source.files()] == ["_2.json", "10.json"]
    with pytest.raises(ValueError, match=message):
        store(tmp_path / "store", source, tokenizer)


def test_token_lists_are_not_taken_for_sentences(tmp_path):
    (tmp_path / "old.txt").write_text('{"tokens": ["a", "b"]}\n')
    with pytest.raises(ValueError, match=r"old\.txt holds lists of tokens, not text; make a corpus of it"):
        list(corpora.read_documents(tmp_path / "old.txt"))


WIKITEXT = """ \n = Robert Boulter = \n \n Robert is an actor . He had a guest @-@ starring role , in 1 @,@ 000 films .
 He won 3 @.@ 5 times . \n \n = = Career = = \n \n = = = 2000 – 2005 = = = \n \n In 2002 he sang <unk> songs .
 \n = 1941 = \n \n = Empty = \n Mr. Low said so . \n"""


def test_wikitext_articles_are_documents_of_sentences_without_headings(tmp_path):
    path = tmp_path / "wiki.valid.tokens"
    path.write_text(WIKITEXT)
    source = Source("wiki", path)
    assert source.kind == "WikiText"
    read = list(source.documents())
    assert [document.sentences for document in read] == [
        [
            "Robert is an actor .",
            "He had a guest-starring role , in 1,000 films .",
            "He won 3.5 times .",
            "In 2002 he sang [UNK] songs .",
        ],
        [],
        ["Mr. Low said so ."],
    ]
    assert read[-1].end == path.stat().st_size
    assert list(source.documents(1)) == read[1:]


@pytest.mark.parametrize("text", ["= =\na", "a = b =\n", "= = Part = =\n", "It is = so =.\n"])
def test_other_text_is_no_wikitext(tmp_path, text):
    (tmp_path / "text.txt").write_text(text)
    assert not wikitext_dataset.is_wikitext(tmp_path / "text.txt")
    assert Source("text", tmp_path / "text.txt").kind == "sentences"


def test_bytes_that_are_not_utf_8_are_named_in_wikitext_too(tmp_path):
    (tmp_path / "wiki.raw").write_bytes(b" = A = \n caf\xe9 .\n")
    with pytest.raises(ValueError, match=r"wiki\.raw line 2: byte 0xe9 is not UTF-8"):
        list(Source("wiki", tmp_path / "wiki.raw").documents())
