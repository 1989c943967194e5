"""Pre-training instances: what TinyBERT's rule promises of each, epochs on disk, and the original's files."""

import json
from random import Random
from types import SimpleNamespace

import pytest

from compresskit.data.batching import Batches
from compresskit.data.corpus import documents, epoch_files, instances, prepared, shards
from compresskit.data.corpus.documents import Articles, Documents, Source
from compresskit.data.corpus.instances import Pieces, Recipe

NUM_DOCUMENTS = 120


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, tokenizer):
    """Documents of 1 to 8 sentences, 1 to 9 pieces each; word number w of document d is unique where it matters."""
    folder, rng = tmp_path_factory.mktemp("corpus"), Random(0)
    words = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "grander", "plots", "dulls"]
    texts = [
        [" ".join(rng.choices(words, k=rng.randint(1, 6))) for _ in range(rng.randint(1, 8))]
        for _ in range(NUM_DOCUMENTS)
    ]
    (folder / "text.txt").write_text("\n".join("\n".join([*text, ""]) for text in texts))
    documents.store(folder / "store", Source("text", folder / "text.txt"), tokenizer)
    found = Documents([folder / "store"])
    return SimpleNamespace(documents=found, tokenizer=tokenizer, pieces=Pieces.of(tokenizer))


def made(corpus, seed: int = 0, **settings) -> list[list[instances.Instance]]:
    """The instances of each document."""
    rng, recipe = Random(seed), Recipe(**{"max_seq_len": 20} | settings)
    return [
        list(instances.document_instances(corpus.documents, number, rng, recipe, corpus.pieces))
        for number in range(len(corpus.documents))
    ]


def segments(row: instances.Instance, corpus) -> tuple[list[int], list[int]]:
    """A and B, after checking the frame around them."""
    cut = row.token_type_ids.index(1)
    assert row.token_type_ids == [0] * cut + [1] * (len(row.input_ids) - cut)
    assert row.input_ids[0] == corpus.pieces.cls
    assert row.input_ids[cut - 1] == row.input_ids[-1] == corpus.pieces.sep
    a, b = row.input_ids[1 : cut - 1], row.input_ids[cut:-1]
    assert a
    assert b
    assert corpus.pieces.sep not in a + b
    return a, b


def contains(text: list[int], part: list[int]) -> bool:
    return any(text[at : at + len(part)] == part for at in range(len(text) - len(part) + 1))


def text_of(corpus, number: int) -> list[int]:
    document = corpus.documents[number]
    return [piece for sentence in range(len(document)) for piece in document[sentence]]


@pytest.mark.parametrize("one_seq", [False, True])
def test_a_is_of_the_document_and_b_follows_it_or_is_of_another(corpus, one_seq):
    texts = [text_of(corpus, number) for number in range(NUM_DOCUMENTS)]
    random_next = total = 0
    for number, rows in enumerate(made(corpus, one_seq=one_seq, short_seq_prob=0.3)):
        for row in rows:
            a, b = segments(row, corpus)
            assert len(row.input_ids) <= 20
            assert contains(texts[number], a)
            if row.next_sentence_label:
                assert any(contains(other, b) for n, other in enumerate(texts) if n != number)
            elif b != [corpus.pieces.full_stop]:
                assert contains(texts[number], b)
            random_next += row.next_sentence_label
            total += 1
    assert random_next == 0 if one_seq else 0.5 < random_next / total < 0.9


def test_without_random_next_every_sentence_of_a_document_is_used_once_and_in_order(corpus):
    for number, rows in enumerate(made(corpus, one_seq=True, max_seq_len=500, short_seq_prob=0.5)):
        parts = [segments(row, corpus) for row in rows]
        used = [piece for a, b in parts for piece in a + (b if b != [corpus.pieces.full_stop] else [])]
        assert used == text_of(corpus, number)


def test_sentences_pushed_aside_by_a_random_b_begin_the_next_instance(corpus):
    """So with long rows the A segments and true B segments together are the whole document, too."""
    for number, rows in enumerate(made(corpus, max_seq_len=2000, short_seq_prob=0.0)):
        used: list[int] = []
        for row in rows:
            a, b = segments(row, corpus)
            used += a if row.next_sentence_label else a + b
        assert used == text_of(corpus, number)


def test_a_target_length_is_shorter_for_the_stated_share_of_documents(corpus):
    def mean(rows: list[list[instances.Instance]]) -> float:
        lengths = [len(row.input_ids) for document in rows for row in document]
        return sum(lengths) / len(lengths)

    assert mean(made(corpus, short_seq_prob=0.0)) > mean(made(corpus, short_seq_prob=1.0)) + 2


def test_the_same_seed_gives_the_same_instances(corpus):
    assert made(corpus, 3) == made(corpus, 3) != made(corpus, 4)


# Masks


def test_probability_zero_masks_nothing_unless_as_released(corpus):
    plain = [row for rows in made(corpus) for row in rows]
    assert all(row.masked_lm_positions == row.masked_lm_ids == [] for row in plain)
    assert not any(corpus.pieces.mask in row.input_ids for row in plain)
    released = [row for rows in made(corpus, faithful=True) for row in rows]
    assert {len(row.masked_lm_positions) for row in released} == {1}


@pytest.mark.parametrize("whole_word_mask", [False, True])
def test_masked_tokens_are_counted_kept_and_replaced_in_the_stated_shares(corpus, whole_word_mask):
    kept = replaced = hidden = 0
    for seed in range(5):
        for row in (
            row for rows in made(corpus, seed, masked_lm_prob=0.3, max_predictions_per_seq=5,
                                 whole_word_mask=whole_word_mask) for row in rows
        ):  # fmt: skip
            wanted = min(5, max(1, round(0.3 * len(row.input_ids))))
            assert len(row.masked_lm_positions) <= wanted
            assert whole_word_mask or len(row.masked_lm_positions) == wanted
            assert row.masked_lm_positions == sorted(set(row.masked_lm_positions))
            for position, before in zip(row.masked_lm_positions, row.masked_lm_ids, strict=True):
                assert before not in (corpus.pieces.cls, corpus.pieces.sep, corpus.pieces.mask)
                now = row.input_ids[position]
                hidden += now == corpus.pieces.mask
                kept += now == before
                replaced += now not in (before, corpus.pieces.mask)
            if whole_word_mask:
                chosen = dict(zip(row.masked_lm_positions, row.masked_lm_ids, strict=True))
                for position, piece in chosen.items():
                    assert not corpus.pieces.continues[piece] or position - 1 in chosen or whole_begins(row, position)
    total = kept + replaced + hidden
    assert abs(hidden / total - 0.8) < 0.03
    assert abs(kept / total - 0.1) < 0.03
    assert abs(replaced / total - 0.1) < 0.03


def whole_begins(row: instances.Instance, position: int) -> bool:
    """A segment was cut inside a word, so its first piece goes on with nothing."""
    return position == 1 or row.token_type_ids[position] != row.token_type_ids[position - 1]


# On disk


def write(corpus, folder, seed: int = 0, advance=lambda done: None, **settings):
    recipe = Recipe(**{"max_seq_len": 20} | settings)
    sizes = {"one": 50, "two": NUM_DOCUMENTS - 50}
    return instances.write(folder, corpus.documents, sizes, Random(seed), recipe, corpus.pieces, advance)


def test_an_epoch_on_disk_has_the_instances_in_order_and_counts_them_by_source(corpus, tmp_path):
    counts = write(corpus, tmp_path, masked_lm_prob=0.15)
    expected = made(corpus, masked_lm_prob=0.15)
    assert list(shards.dataset(tmp_path)) == [row._asdict() for rows in expected for row in rows]
    assert counts["one"].instances == sum(map(len, expected[:50]))
    assert counts["two"].instances == sum(map(len, expected[50:]))
    assert counts["two"].tokens == sum(len(row.input_ids) for rows in expected[50:] for row in rows)
    assert counts["one"].random_next == sum(row.next_sentence_label for rows in expected[:50] for row in rows)


def test_columns_of_masks_are_there_only_where_something_is_masked(corpus, tmp_path):
    write(corpus, tmp_path)
    assert shards.dataset(tmp_path).column_names == ["input_ids", "token_type_ids", "next_sentence_label"]


@pytest.mark.parametrize("stop_at", [1, 37, 50, 51, 119])
def test_an_epoch_stopped_anywhere_ends_as_if_it_had_not_been(corpus, tmp_path, monkeypatch, stop_at):
    monkeypatch.setattr(shards, "SHARD_BYTES", 1500)
    monkeypatch.setattr(instances, "ROWS_AT_ONCE", 5)

    class Stopped(Exception):
        pass

    def stop(done: int) -> None:
        if done == stop_at:
            raise Stopped

    with pytest.raises(Stopped):
        write(corpus, tmp_path / "stopped", advance=stop, masked_lm_prob=0.15)
    counts = write(corpus, tmp_path / "stopped", masked_lm_prob=0.15)
    assert counts == write(corpus, tmp_path / "straight", masked_lm_prob=0.15)
    assert list(shards.dataset(tmp_path / "stopped")) == list(shards.dataset(tmp_path / "straight"))
    assert counts == write(corpus, tmp_path / "stopped", advance=stop, masked_lm_prob=0.15)


def test_batches_take_an_epoch_as_it_is(corpus, tmp_path):
    write(corpus, tmp_path, masked_lm_prob=0.15)
    rows = shards.dataset(tmp_path)
    batch = next(iter(Batches(rows, 8, 0, corpus.tokenizer.pad_token_id, shuffle=False, length_buckets=False)))
    assert set(batch) == {"input_ids", "token_type_ids", "attention_mask", "next_sentence_label"}
    for number in range(8):
        length = int(batch["attention_mask"][number].sum())
        assert batch["input_ids"][number, :length].tolist() == rows[number]["input_ids"]
        assert batch["token_type_ids"][number, :length].tolist() == rows[number]["token_type_ids"]
        assert int(batch["next_sentence_label"][number]) == rows[number]["next_sentence_label"]


def test_one_document_is_refused(tmp_path, tokenizer):
    (tmp_path / "text.txt").write_text("a b\nc d\n")
    documents.store(tmp_path / "store", Source("text", tmp_path / "text.txt"), tokenizer)
    found = Documents([tmp_path / "store"])
    with pytest.raises(ValueError, match=r"1 document in all, at least 2 are needed: .* a blank line, an article"):
        instances.write(tmp_path / "epoch", found, {"text": 1}, Random(0), Recipe(), Pieces.of(tokenizer))
    assert not (tmp_path / "epoch").exists()


def test_too_short_rows_are_refused():
    with pytest.raises(ValueError, match="max_seq_len 4 leaves no room for two segments; give at least 5"):
        Recipe(max_seq_len=4)


# The original's files


def test_what_is_written_as_json_lines_is_read_back(corpus, tmp_path):
    write(corpus, tmp_path / "rows", masked_lm_prob=0.15)
    rows = shards.dataset(tmp_path / "rows")
    epoch_files.write_epoch(tmp_path, 3, rows, corpus.tokenizer, 20)
    assert [row._asdict() for row in epoch_files.read_epoch(tmp_path, 3, corpus.tokenizer)] == list(rows)
    metrics = json.loads((tmp_path / "epoch_3_metrics.json").read_text())
    assert metrics == {"num_training_examples": len(rows), "max_seq_len": 20}


GOOD = {
    "tokens": ["[CLS]", "a", "[SEP]", "b", "[SEP]"],
    "segment_ids": [0, 0, 0, 1, 1],
    "is_random_next": True,
    "masked_lm_positions": [1],
    "masked_lm_labels": ["c"],
}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"tokens": [', "line 2: not an instance"),
        ("[1, 2]", "line 2: not an instance"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "segment_ids"}), "line 2: no field 'segment_ids'"),
        (json.dumps(GOOD | {"tokens": ["[CLS]", "zebra"]}), "line 2: no entry of the vocabulary 'zebra'"),
        (json.dumps(GOOD | {"segment_ids": [0]}), "line 2: .*do not fit together"),
        (json.dumps(GOOD | {"masked_lm_positions": [7]}), "line 2: .*do not fit together"),
        (None, r"epoch_0\.json has 1 lines, epoch_0_metrics\.json says 2; the file was cut short"),
    ],
)
def test_damaged_json_lines_are_named_with_their_line(tmp_path, tokenizer, line, message):
    lines = [json.dumps(GOOD)] + ([line] if line else [])
    (tmp_path / "epoch_0.json").write_text("\n".join(lines) + "\n")
    (tmp_path / "epoch_0_metrics.json").write_text('{"num_training_examples": 2, "max_seq_len": 8}')
    with pytest.raises(ValueError, match=message):
        list(epoch_files.read_epoch(tmp_path, 0, tokenizer))
    with pytest.raises(FileNotFoundError, match=r"epoch_1\.json: no such file"):
        list(epoch_files.read_epoch(tmp_path, 1, tokenizer))


# A finished folder


def test_what_is_no_finished_corpus_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is no finished corpus, it has no corpus\.json"):
        prepared.load(tmp_path)
    for content, message in (
        ("{", "not written by the stage corpus"),
        ("{}", "not written by the stage corpus"),
        ('{"format": 99, "parts": [], "settings": {"max_seq_len": 8}}', "format 99, this version reads 1"),
        (
            '{"format": 1, "parts": ["a", "b"], "settings": {"max_seq_len": 8}}',
            "several corpora apart; name one of .*/a",
        ),
    ):
        (tmp_path / "corpus.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            prepared.load(tmp_path)


def test_an_article_is_one_pair_of_its_own_middle_and_another_article(corpus):
    """EfficientBERT's corpus: sentences run together, B is always random."""
    sizes = {"wiki": 70, "books": 50}
    articles = Articles(corpus.documents, sizes, ["books"])
    assert len(articles) == sum(articles.sizes.values())
    assert articles.sizes["wiki"] == 70
    rng, recipe, texts = Random(0), Recipe(max_seq_len=20), [articles[number][0] for number in range(len(articles))]
    assert texts[:70] == [text_of(corpus, number) for number in range(70)]
    for number, text in enumerate(texts):
        (row,) = instances.document_instances(articles, number, rng, recipe, corpus.pieces)
        a, b = segments(row, corpus)
        assert row.next_sentence_label == 1
        assert contains(text, a)
        assert any(contains(other, b) for place, other in enumerate(texts) if place != number)


def test_a_book_is_cut_into_articles_of_twenty_sentences(tmp_path, tokenizer):
    (tmp_path / "text.txt").write_text("\n".join("abcdefghi"[i % 9] for i in range(45)) + "\n\na\n")
    documents.store(tmp_path / "store", Source("text", tmp_path / "text.txt"), tokenizer)
    articles = Articles(Documents([tmp_path / "store"]), {"books": 2}, ["books"])
    assert [len(articles[number][0]) for number in range(len(articles))] == [20, 20, 5, 1]
    assert {tuple(articles.draw_other(1, Random(seed))[0]) for seed in range(50)} == {
        tuple(articles[number][0]) for number in (0, 2, 3)
    }
