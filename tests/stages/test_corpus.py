"""The stage `corpus`: from sources of every kind to a folder that training takes, in constant memory."""

import bz2
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from random import Random

import pandas as pd
import pytest

from compresskit import tracking
from compresskit.data.batching import Batches
from compresskit.data.corpus import documents, epoch_files, instances, prepared, shards
from compresskit.stages import corpus, pretrain
from compresskit.stages.corpus import CorpusParams
from compresskit.stages.yaml_text import ParamsError

ROOT = Path(__file__).parents[2]
WORDS = ["river", "town", "mill", "bridge", "old", "new", "stone", "tower", "garden", "wall", "hill", "road"]


def prose(seed: int, sentences: int, marker: str = "old") -> list[str]:
    rng = Random(seed)
    return [f"The {marker} {' '.join(rng.choices(WORDS, k=rng.randint(3, 9)))} is here." for _ in range(sentences)]


@pytest.fixture
def sources(tmp_path) -> dict[str, str]:
    """A dump of 6 articles, a text of 8 documents, a folder of 3 books; 5, 4 and 30 sentences each, with its name."""
    articles = "".join(
        f"<page><title>{n}</title><ns>0</ns><revision><text>{' '.join(prose(n, 5, 'wiki'))}</text></revision></page>"
        for n in range(6)
    )
    (tmp_path / "wiki.xml.bz2").write_bytes(bz2.compress(f"<mediawiki>{articles}</mediawiki>".encode()))
    (tmp_path / "text.txt").write_text("\n".join("\n".join([*prose(100 + n, 4, "text"), ""]) for n in range(8)))
    (tmp_path / "books").mkdir()
    for n in range(3):
        (tmp_path / f"books/{n}.txt").write_text("\n".join(prose(200 + n, 30, "books")))
    return {name: str(tmp_path / place) for name, place in
            {"wiki": "wiki.xml.bz2", "text": "text.txt", "books": "books"}.items()}  # fmt: skip


def opened(sources: dict[str, str], **settings) -> corpus.CorpusStage:
    return corpus.open(
        CorpusParams(**{"sources": sources, "vocab_size": 200, "max_seq_len": 32, "epochs": 2} | settings)
    )


def run(stage: corpus.CorpusStage) -> pd.DataFrame:
    stage.read()
    stage.pack()
    return stage.finish()


def test_three_kinds_of_sources_become_one_corpus_with_counts(store, sources):
    stage = opened(sources)
    assert stage.describe()["kind"].to_dict() == {"wiki": "MediaWiki dump", "text": "sentences", "books": "books"}
    counts = stage.read()
    assert counts["documents"].to_dict() == {"wiki": 6, "text": 8, "books": 3, "all": 17}
    assert counts["sentences"].to_dict() == {"wiki": 30, "text": 32, "books": 90, "all": 152}
    table = stage.pack()
    assert table[["epoch", "source"]].values.tolist() == [[e, s] for e in (0, 1) for s in ("wiki", "text", "books")]
    assert len(stage.examples(3)) == 3
    result = stage.finish().iloc[0]

    made = prepared.load(result["corpus"])
    assert len(made.epochs) == 2
    assert [len(rows) for rows in made.epochs] == table.groupby("epoch")["instances"].sum().tolist()
    assert result["instances_per_epoch"] == len(made.epochs[0])
    assert max(map(len, made.epochs[0]["input_ids"])) <= 32
    assert made.epochs[0][:] != made.epochs[1][:]
    assert not list(Path(result["corpus"]).parent.glob(".*"))
    batches = Batches(made.epochs[0], 4, 0, made.tokenizer.pad_token_id)
    assert sum(len(batch["next_sentence_label"]) for batch in batches) == len(made.epochs[0])


def mixed(made: prepared.PreparedCorpus, names: Iterable[str]) -> int:
    """How many instances have text of several sources."""
    texts = [made.tokenizer.decode(ids) for rows in made.epochs for ids in rows["input_ids"]]
    return sum(sum(name in text for name in names) > 1 for text in texts)


def test_sources_kept_apart_share_a_vocabulary_but_no_instance(store, sources, tmp_path):
    run(opened(sources, joined=False, out=str(tmp_path / "apart")))
    parts = {name: prepared.load(tmp_path / "apart" / name) for name in sources}
    assert len({json.dumps(part.tokenizer.get_vocab(), sort_keys=True) for part in parts.values()}) == 1
    assert [mixed(part, sources) for part in parts.values()] == [0, 0, 0]
    assert all(list(part.manifest["documents"]) == [name] for name, part in parts.items())
    with pytest.raises(ValueError, match=r"several corpora apart; name one of .*wiki.*text.*books"):
        prepared.load(tmp_path / "apart")
    run(opened(sources, out=str(tmp_path / "joined")))
    assert mixed(prepared.load(tmp_path / "joined"), sources) > 10


def test_the_same_parameters_give_the_same_rows_and_a_finished_corpus_is_used_again(store, sources, tmp_path):
    rows = []
    for name in ("a", "b"):
        run(opened(sources, out=str(tmp_path / name)))
        rows.append(prepared.load(tmp_path / name).epochs[1][:])
    assert rows[0] == rows[1]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*") if path.is_file()}
    again = run(opened(sources, out=str(tmp_path / "a")))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*") if path.is_file()} == before
    assert again["corpus"].iloc[0] == str(tmp_path / "a")


def test_a_stopped_run_goes_on_and_ends_with_the_same_rows(store, sources, tmp_path, monkeypatch):
    run(opened(sources, out=str(tmp_path / "straight")))
    monkeypatch.setattr(shards, "SHARD_BYTES", 500)
    monkeypatch.setattr(documents, "SENTENCES_AT_ONCE", 10)
    monkeypatch.setattr(instances, "ROWS_AT_ONCE", 5)

    def stop_in(stage: corpus.CorpusStage, step: str, files: int) -> None:
        """Run a step, interrupted after so many files."""
        commit, left = shards.Writer.commit, [files]

        def counted(writer, note):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            commit(writer, note)

        with monkeypatch.context() as patch:
            patch.setattr(shards.Writer, "commit", counted)
            with pytest.raises(KeyboardInterrupt):
                getattr(stage, step)()

    out = tmp_path / "stopped"
    stop_in(opened(sources, out=str(out)), "read", 2)
    assert not out.exists()
    stage = opened(sources, out=str(out))
    stage.read()
    stop_in(stage, "pack", 3)
    assert not out.exists()
    stage = opened(sources, out=str(out))
    assert stage.session.run._client.get_run(stage.session.run.run_id).data.tags["attempts"] == "3"
    run(stage)
    straight, stopped = prepared.load(tmp_path / "straight"), prepared.load(out)
    for one, other in zip(straight.epochs, stopped.epochs, strict=True):
        assert one[:] == other[:]
    assert stopped.manifest["documents"].keys() == straight.manifest["documents"].keys()
    assert stopped.manifest["instances"] == straight.manifest["instances"]


def test_a_changed_source_is_read_anew(store, sources, tmp_path):
    stage = opened(sources, out=str(tmp_path / "out"))
    stage.read()
    Path(sources["text"]).write_text("\n\n".join(prose(7, 3)))
    assert opened(sources, out=str(tmp_path / "out")).read().loc["text", "documents"] == 3


def test_the_originals_files_are_written_on_request(store, sources, tmp_path):
    run(opened(sources, out=str(tmp_path / "out"), json_lines=True, faithful=True))
    made = prepared.load(tmp_path / "out")
    for epoch in (0, 1):
        read = list(epoch_files.read_epoch(made.folder, epoch, made.tokenizer))
        assert [row._asdict() for row in read] == list(made.epochs[epoch])
        assert all(len(row.masked_lm_positions) == 1 for row in read)


def test_pretraining_takes_the_folder_with_its_vocabulary(store, sources, tmp_path):
    run(opened(sources, out=str(tmp_path / "out")))
    sizes = dict(
        num_hidden_layers=1, hidden_size=8, num_attention_heads=1, intermediate_size=8, max_steps=2, batch_size=4
    )
    stage = pretrain.open(pretrain.PretrainParams(corpus=str(tmp_path / "out"), max_seq_len=32, **sizes))
    made = prepared.load(tmp_path / "out")
    assert stage.tokenizer.get_vocab() == made.tokenizer.get_vocab()
    rows = len(stage.train_batches.lengths) + len(stage.held_out.lengths)
    assert rows == len(made.epochs[0])
    stage.train()
    assert tracking.resolve(stage.finish()["model"].iloc[0]).is_dir()
    with pytest.raises(ValueError, match="rows of up to 32 tokens, max_seq_len is 16; raise it"):
        pretrain.open(pretrain.PretrainParams(corpus=str(tmp_path / "out"), max_seq_len=16, **sizes))
    other = run(opened({"text": sources["text"]}, vocab_size=150, out=str(tmp_path / "other")))["corpus"].iloc[0]
    with pytest.raises(ValueError, match="made with another vocabulary"):
        pretrain.open(
            pretrain.PretrainParams(
                corpus=str(tmp_path / "out"), vocabulary=f"{other}/tokenizer", max_seq_len=32, **sizes
            )
        )


# Bad input: one sentence, and no corpus in its place


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("wiki.xml.bz2", b"BZh9 no bz2 at all", r"wiki\.xml\.bz2: damaged or cut short"),
        ("wiki.xml.bz2", bz2.compress(b"<html></html>"), "begins with <mediawiki>"),
        ("wiki.xml.bz2", bz2.compress(b"<mediawiki></mediawiki>"), r"source x: .* has no sentence; expected MediaWiki"),
        ("text.txt", b"caf\xe9 is old.\n\nIt is.\n", r"text\.txt line 1: byte 0xe9 is not UTF-8"),
        ("text.txt", b"\n\n", r"text\.txt has no text"),
        ("text.txt", b"It is so.\nIt was so.\n", "1 document in all, at least 2 are needed"),
        ("books/a.txt", b"It is caf\xe9.", r"a\.txt line 1: byte 0xe9 is not UTF-8"),
        ("books/a.txt", b"It is so.", "1 document in all, at least 2 are needed"),
    ],
)
def test_bad_input_is_named_and_leaves_no_corpus(store, tmp_path, name, content, message):
    path = tmp_path / "in" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    source = path.parent if name.startswith("books") else path
    with pytest.raises(ValueError, match=message):
        run(opened({"x": str(source)}, vocabulary=str(vocab_file(tmp_path)), out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def vocab_file(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "it", "is", "was", "so", "the", *WORDS])
    )
    return path


def test_missing_sources_and_occupied_places_are_named_before_anything_is_written(store, sources, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty: no \.txt file in it"):
        opened({"x": str(tmp_path / "empty")})
    with pytest.raises(FileNotFoundError, match=r"source x: .*none\.txt: no such file or folder"):
        opened({"x": str(tmp_path / "none.txt")})
    with pytest.raises(ValueError, match="books exists and is no corpus; name another folder or remove it"):
        opened(sources, out=sources["books"])
    run(opened(sources, out=str(tmp_path / "out")))
    with pytest.raises(ValueError, match="out holds a corpus of other sources or settings"):
        opened(sources, out=str(tmp_path / "out"), seed=1)
    for wrong in ({}, {"a b": "x"}, {"documents": "x"}, {"epoch_0": "x"}, {"../x": "x"}):
        with pytest.raises(ParamsError, match="'sources' should"):
            CorpusParams.checked({"sources": wrong})


# Memory

PEAKS = """
import json, sys, tracemalloc
from pathlib import Path
from random import Random
import pyarrow as pa
from compresskit.data import vocabulary
from compresskit.data.corpus import chunks, documents, instances, mediawiki, shards

shards.BATCH_BYTES, shards.SHARD_BYTES = 1 << 14, 1 << 18
documents.SENTENCES_AT_ONCE, instances.ROWS_AT_ONCE, mediawiki.BLOCK_BYTES = 50, 50, 1 << 12
chunks.ROWS_AT_ONCE = 50
tokenizer = vocabulary.load_tokenizer(Path(sys.argv[1]) / "vocab.txt")
pieces = instances.Pieces.of(tokenizer)

def make(folder):
    sizes = {}
    for name in ("wiki.xml.bz2", "text.txt", "articles.raw", "files", "books"):
        source = documents.Source(name, folder / name)
        sizes[name] = documents.store(folder / "store" / name, source, tokenizer).documents
    found = documents.Documents(folder / "store" / name for name in sizes)
    counts = instances.write(folder / "epoch", found, sizes, Random(0), instances.Recipe(max_seq_len=64), pieces)
    chunks.write(folder / "chunks", found, sizes, 64)
    return sum(count.tokens for count in counts.values())

tracemalloc.start()
for folder in sys.argv[1:]:
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    tokens = make(Path(folder))
    python = tracemalloc.get_traced_memory()[1] - before
    print(json.dumps({"tokens": tokens, "python": python, "arrow": pa.default_memory_pool().max_memory()}))
"""


def test_peak_memory_does_not_grow_with_the_corpus(tmp_path):
    def corpus_of(times: int) -> Path:
        folder = tmp_path / str(times)
        (folder / "books").mkdir(parents=True)
        vocab_file(folder)
        text = " ".join(prose(0, 10))
        page = f"<page><title>a</title><ns>0</ns><revision><text>{text}</text></revision></page>"
        (folder / "wiki.xml.bz2").write_bytes(bz2.compress(f"<mediawiki>{page * 40 * times}</mediawiki>".encode()))
        (folder / "text.txt").write_text("\n\n".join(prose(1, 400 * times)))
        (folder / "articles.raw").write_text(f" = Mill = \n {text} \n" * 40 * times)
        (folder / "files").mkdir()
        (folder / "files/train_doc_tokens_ngrams_0.json").write_text(
            '{"tokens": ["the", "mill", "is"]}\n' * 400 * times
        )
        for n in range(4 * times):
            (folder / f"books/{n}.txt").write_text("\n".join(prose(n, 100)))
        return folder

    folders = [str(corpus_of(times)) for times in (1, 10)]
    done = subprocess.run(
        [sys.executable, "-c", PEAKS, *folders],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    small, large = (json.loads(line) for line in done.stdout.splitlines())
    assert large["tokens"] > 9 * small["tokens"]
    held = 8 * (large["tokens"] - small["tokens"])  # what the additional rows would take as lists of ids
    assert large["python"] - small["python"] < held / 10
    assert large["arrow"] - small["arrow"] < held / 10


# Chunks, as AutoTinyBERT reads them


def test_chunks_become_a_corpus_of_one_epoch_and_its_files_a_source_again(store, sources, tmp_path):
    stage = opened(sources, packing="chunks", json_lines=True, out=str(tmp_path / "out"))
    counts = stage.read()
    table = stage.pack()
    assert table["epoch"].unique().tolist() == [0]
    assert table["tokens"].sum() + table["dropped"].sum() == counts.loc["all", "tokens"]
    assert list(stage.examples(2).columns) == ["text"]
    stage.finish()

    made = prepared.load(tmp_path / "out")
    assert len(made.epochs) == 1
    rows = made.epochs[0]["input_ids"][:]
    assert made.epochs[0].column_names == ["input_ids"]
    assert {token for row in rows for token in row}.isdisjoint(made.tokenizer.all_special_ids)
    assert all(3 <= len(row) <= 32 for row in rows)
    batch = next(iter(Batches(made.epochs[0], 4, 0, made.tokenizer.pad_token_id)))
    assert not batch["token_type_ids"].any()

    files = {"old": str(tmp_path / "out" / "token_files")}
    again = opened(files, packing="chunks", vocabulary=f"{made.folder}/tokenizer", out=str(tmp_path / "again"))
    assert again.describe()["kind"].to_dict() == {"old": "token lists"}
    run(again)
    assert sorted(prepared.load(tmp_path / "again").epochs[0]["input_ids"][:]) == sorted(rows)
    for settings in ({"packing": "chunks"}, {"vocabulary": f"{made.folder}/tokenizer"}):
        with pytest.raises(ValueError, match=r"source old: .* holds lists of tokens; set `packing: chunks`, and"):
            opened(files, **settings)


def test_chunks_of_a_sentence_longer_than_a_row_train_and_released_ones_are_refused_before(store, tmp_path):
    (tmp_path / "text.txt").write_text(" ".join(WORDS * 9) + ".\n" + "\n".join(prose(0, 60)))
    sizes = dict(num_hidden_layers=1, hidden_size=8, num_attention_heads=1, intermediate_size=8, max_steps=2)
    for faithful, longest in ((False, 32), (True, 109)):
        out = tmp_path / f"out-{faithful}"
        settings = {"packing": "chunks", "faithful": faithful, "vocabulary": str(vocab_file(tmp_path))}
        run(opened({"text": str(tmp_path / "text.txt")}, out=str(out), **settings))
        assert max(map(len, prepared.load(out).epochs[0]["input_ids"])) == longest
        params = pretrain.PretrainParams(corpus=str(out), max_seq_len=32, batch_size=4, **sizes)
        if faithful:
            with pytest.raises(ValueError, match="rows of up to 109 tokens, max_seq_len is 32; raise it, or make"):
                pretrain.open(params)
        else:
            pretrain.open(params).train()
