"""Documents on disk: what was read, found again by number, and drawn in proportion to their sentences."""

from collections import Counter
from random import Random

import pytest

from compresskit.data.corpus import documents, shards
from compresskit.data.corpus.documents import Documents, Source

WORDS = "a b c d e f g h i".split()  # noqa: SIM905


def corpus(count: int) -> list[list[str]]:
    """Documents of 1 to 7 sentences of 1 to 5 words."""
    rng = Random(0)
    return [[" ".join(rng.choices(WORDS, k=rng.randint(1, 5))) for _ in range(rng.randint(1, 7))] for _ in range(count)]


def source(tmp_path, texts: list[list[str]], name: str = "text") -> Source:
    path = tmp_path / f"{name}.txt"
    path.write_text("\n".join("\n".join([*text, ""]) for text in texts))
    return Source(name, path)


def read_back(found: Documents, tokenizer) -> list[list[str]]:
    return [
        [" ".join(tokenizer.convert_ids_to_tokens(found[n][s])) for s in range(len(found[n]))]
        for n in range(len(found))
    ]


@pytest.fixture
def small(monkeypatch):
    """Everything in tiny pieces: groups of sentences, record batches, files."""
    monkeypatch.setattr(documents, "SENTENCES_AT_ONCE", 7)
    monkeypatch.setattr(shards, "BATCH_BYTES", 300)
    monkeypatch.setattr(shards, "SHARD_BYTES", 1000)


def test_documents_come_back_as_they_were_read(tmp_path, tokenizer, small):
    texts = corpus(100)
    progress = documents.store(tmp_path / "store", source(tmp_path, texts), tokenizer)
    assert len(shards.files(tmp_path / "store")) > 5
    found = Documents([tmp_path / "store"])
    assert read_back(found, tokenizer) == texts
    sentences = [sentence for text in texts for sentence in text]
    assert (progress.documents, progress.sentences, progress.whole) == (100, len(sentences), True)
    assert progress.tokens == sum(len(sentence.split()) for sentence in sentences)
    assert found.num_sentences == progress.sentences


def test_several_folders_are_one_sequence(tmp_path, tokenizer, small):
    texts = corpus(60)
    for number, part in enumerate((texts[:5], texts[5:50], texts[50:])):
        documents.store(tmp_path / str(number), source(tmp_path, part), tokenizer)
    assert read_back(Documents(tmp_path / str(number) for number in range(3)), tokenizer) == texts


def test_a_stopped_reading_goes_on_at_the_last_whole_file(tmp_path, tokenizer, small):
    texts = corpus(100)

    class Stopped(Exception):
        pass

    def stop(end: int) -> None:
        if end > 900:
            raise Stopped

    place = source(tmp_path, texts)
    with pytest.raises(Stopped):
        documents.store(tmp_path / "store", place, tokenizer, stop)
    before = {path: path.stat().st_mtime_ns for path in shards.files(tmp_path / "store")}
    assert before
    assert not list((tmp_path / "store").glob("*.part"))
    progress = documents.store(tmp_path / "store", place, tokenizer)
    assert progress == documents.store(tmp_path / "whole", place, tokenizer)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert read_back(Documents([tmp_path / "store"]), tokenizer) == texts


def test_a_finished_reading_is_not_done_again(tmp_path, tokenizer):
    place = source(tmp_path, corpus(5))
    progress = documents.store(tmp_path / "store", place, tokenizer)
    place.path.unlink()
    assert documents.store(tmp_path / "store", place, tokenizer) == progress


def test_another_document_is_drawn_in_proportion_to_its_sentences(tmp_path, tokenizer, small):
    texts = corpus(12)
    documents.store(tmp_path / "store", source(tmp_path, texts), tokenizer)
    found, rng, draws = Documents([tmp_path / "store"]), Random(1), 20_000
    keys = {tuple(tuple(found[n][s]) for s in range(len(found[n]))): n for n in range(len(found))}
    for number in (0, 5, 11):
        drawn: Counter[int] = Counter()
        for _ in range(draws):
            other = found.draw_other(number, rng)
            drawn[keys[tuple(tuple(other[s]) for s in range(len(other)))]] += 1
        assert number not in drawn
        others = sum(len(text) for text in texts) - len(texts[number])
        for other, count in drawn.items():
            expected = draws * len(texts[other]) / others
            assert abs(count - expected) < 5 * expected**0.5


def test_a_source_is_known_by_what_its_path_is(tmp_path):
    (tmp_path / "books").mkdir()
    kinds = [Source("x", tmp_path / name).kind for name in ("books", "a.xml.bz2", "a.XML", "a.txt", "corpus")]
    assert kinds == ["books", "MediaWiki dump", "MediaWiki dump", "sentences", "sentences"]


def test_a_source_without_sentences_is_refused(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("CHAPTER I.")
    with pytest.raises(ValueError, match=r"source x: .* has no sentence; expected books"):
        documents.store(tmp_path / "store", Source("x", tmp_path), tokenizer)
    with pytest.raises(FileNotFoundError, match=r"source x: .*none\.txt: no such file or folder"):
        Source("x", tmp_path / "none.txt").files()
