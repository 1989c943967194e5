"""The stage augment on small files: its sources of candidates, what it refuses, and what a kill leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from compresskit import tracking
from compresskit.data import augment_files, glue, vocabulary
from compresskit.models import CompactBertConfig, CompactBertForMaskedLM, CompactBertModel, checkpoints
from compresskit.stages import augment
from compresskit.stages.params import ParamsError

ROOT = Path(__file__).parents[2]
WORDS = "film plot actor scene story joke song grand dull bright slow clever warm cold loud quiet".split()  # noqa: SIM905
TEXTS = [f"the {a} was {b} , {c}s are not" for a in WORDS[:7] for b in WORDS[7:] for c in ("film", "joke", "actor")]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A masked LM, an encoder without a head, word vectors, and tasks of one and two texts."""
    folder = tmp_path_factory.mktemp("inputs")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "was", "are", "not", ",", "##s", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    tokenizer = vocabulary.load_tokenizer(folder / "vocab.txt")
    torch.manual_seed(0)
    config = CompactBertConfig(
        vocab_size=len(pieces), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32, initializer_range=0.5,
    )  # fmt: skip
    checkpoints.save(CompactBertForMaskedLM(config), folder / "masked_lm", tokenizer)
    checkpoints.save(CompactBertModel(config), folder / "encoder", tokenizer)
    table = [f"{word}{s} {' '.join(str(float(x)) for x in torch.randn(4))}" for word in WORDS for s in ("", "s")]
    (folder / "vectors.txt").write_text("\n".join(table) + "\n")
    (folder / "SST-2").mkdir()
    lines = ["sentence\tlabel", *(f"{text}\t{i % 2}" for i, text in enumerate(TEXTS)), f"{TEXTS[3]}\t1"]
    (folder / "SST-2/train.tsv").write_text("\n".join(lines) + "\n")
    (folder / "RTE").mkdir()
    pairs = [f"{i}\t{TEXTS[i]}\t{TEXTS[i // 2]}\tentailment" for i in range(6)]
    (folder / "RTE/train.tsv").write_text("\n".join(["index\tsentence1\tsentence2\tlabel", *pairs]) + "\n")
    return folder


def params(inputs: Path, **changes) -> augment.AugmentParams:
    given = {"data_dir": str(inputs), "masked_lm": str(inputs / "masked_lm"), "embeddings": str(inputs / "vectors.txt")}
    return augment.AugmentParams.checked({**given, "copies": 4, "max_rows": 20, "num_candidates": 5, **changes})


def run(inputs: Path, **changes) -> tuple[dict, bytes]:
    """The stage's result and the file it made."""
    stage = augment.open(params(inputs, **changes))
    stage.propose()
    stage.write()
    row = stage.finish().iloc[0].to_dict()
    folder = tracking.resolve(row["augmented"]) / stage.task.folder
    return row, (folder / "train_aug.tsv").read_bytes()


def test_the_copies_are_read_as_training_rows_and_the_result_names_them(store, inputs):
    row, _ = run(inputs)
    train = glue.read("sst2", inputs, "train").select(range(20))
    learned, selection = glue.selection_split(train, 42)
    rows = augment_files.training_rows("sst2", tracking.resolve(row["augmented"]), learned)
    assert set(rows["idx"]) == set(learned["idx"])
    assert not set(rows["idx"]) & set(selection["idx"])
    by_row = {row["idx"]: row["label"] for row in learned}
    assert all(row["label"] == by_row[row["idx"]] for row in rows)
    assert row["candidates"] == "masked LM and word vectors"
    assert row["train_rows"] == 20
    assert 20 * 3 <= row["augmented_rows"] <= 20 * 5
    assert row["masked_lm_words"] == 20 * 2  # noun and adjective; the plural has two pieces
    assert row["neighbour_words"] == 20
    kept = tracking.read_json(row["augmented"].split("/")[1], "augmented/SST-2/train_aug.json")
    assert kept["rows"] == row["augmented_rows"]
    assert (kept["copies"], kept["probability"], kept["faithful"]) == (4, 0.4, False)


def test_a_step_of_a_pipeline_may_refer_to_the_folder():
    assert "augmented" in augment.AugmentParams.results


def test_word_vectors_alone_replace_every_word_and_are_named(store, inputs):
    row, made = run(inputs, masked_lm="")
    assert row["candidates"] == "word vectors only"
    assert (row["masked_lm_words"], row["neighbour_words"], row["words_without"]) == (0, 60, 0)
    assert b"[MASK]" not in made


def test_a_masked_lm_alone_leaves_words_of_several_pieces(store, inputs):
    row, made = run(inputs, embeddings="")
    assert row["candidates"] == "masked LM only"
    assert (row["neighbour_words"], row["words_without"]) == (0, 20)
    assert all(any(f"{noun}s are" in line for noun in ("film", "joke", "actor"))
               for line in made.decode().splitlines()[1:])  # fmt: skip


def test_each_text_of_a_pair_has_copies_and_the_label_stays(store, inputs):
    _, made = run(inputs, task="rte")
    lines = [line.split("\t") for line in made.decode().splitlines()[1:]]
    of_first = [fields for fields in lines if fields[0] == "0"]
    assert {fields[3] for fields in lines} == {"entailment"}
    assert all(fields[1] == TEXTS[0] or fields[2] == TEXTS[0] for fields in of_first)
    assert of_first[0] == ["0", TEXTS[0], TEXTS[0], "entailment"]
    assert {fields[1] == TEXTS[0] for fields in of_first} == {fields[2] == TEXTS[0] for fields in of_first} == {
        True, False,
    }  # fmt: skip


def test_the_file_depends_on_the_seed_but_not_on_batches_or_on_later_rows(store, inputs):
    _, made = run(inputs)
    assert run(inputs, batch_tokens=40)[1] == made
    assert run(inputs, seed=1)[1] != made
    assert run(inputs, max_rows=30)[1].startswith(made)


def test_faithful_files_have_the_originals_line_ends_and_its_row_once_per_text(store, inputs):
    _, made = run(inputs, task="rte", faithful=True, max_rows=0)
    lines = made.decode().split("\r\n")
    assert b"\n" not in made.replace(b"\r\n", b"")
    assert lines[1] == f"0\t{TEXTS[0]}\t{TEXTS[0]}\tentailment"
    second = next(fields for line in lines[2:] if (fields := line.split("\t"))[2] != TEXTS[0])
    assert second[1] != TEXTS[0]  # the first text was not put back


def test_the_original_number_of_copies_is_the_tasks_own(store, inputs):
    stage = augment.open(params(inputs, task="rte", copies=0))
    assert stage.copies == 30
    assert stage.describe().loc["copies per text, at most"].item() == 30
    stage.session.run.fail("not run")


def test_examples_show_words_with_their_candidates(store, inputs):
    stage = augment.open(params(inputs, max_rows=2))
    stage.propose()
    table = stage.examples(1)
    assert list(table["word"]) == ["film", "grand", "films"]
    assert all(len(candidates.split(", ")) == 5 for candidates in table["candidates"])
    stage.session.run.fail("not finished")


@pytest.mark.parametrize(
    ("changes", "error", "complaint"),
    [
        ({"masked_lm": "", "embeddings": ""}, ValueError, "masked_lm and embeddings are both empty"),
        ({"masked_lm": "encoder"}, ValueError, r"encoder has no masked-LM head; train one with .* pretrain"),
        ({"embeddings": "none.txt"}, FileNotFoundError, "none.txt is no file"),
        ({"embeddings": "SST-2/train.tsv"}, ValueError, r"train.tsv line 1: 'label' is no number"),
        ({"task": "sst"}, ValueError, "did you mean 'sst2'"),
        ({"task": "mrpc"}, FileNotFoundError, "neither MRPC/train.tsv"),
        ({"probability": 0}, ParamsError, "probability"),
    ],
)
def test_what_cannot_be_augmented_is_refused_in_one_sentence(store, inputs, changes, error, complaint):
    paths = {n: str(inputs / v) for n, v in changes.items() if n in ("masked_lm", "embeddings") and v}
    with pytest.raises(error, match=complaint):
        augment.open(params(inputs, **{**changes, **paths}))
    assert not list((store / "mlruns").glob("unfinished/*/augmented"))


def test_an_interrupted_run_goes_on_where_it_was(store, inputs, monkeypatch):
    monkeypatch.setattr(augment, "KEPT_EVERY", 200)
    stage = augment.open(params(inputs))
    append, asked = augment_files.CandidateFile.append, []

    def interrupted(self, found):
        append(self, found)
        if len(self) > 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(augment_files.CandidateFile, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stage.propose()
    stage.session.run.fail("interrupted", "KILLED")
    monkeypatch.setattr(augment_files.CandidateFile, "append", append)
    again = augment.open(params(inputs))
    assert again.session.run.run_id == stage.session.run.run_id
    assert 5 < again.describe().loc["texts done before"].item() < 20
    prepare = again.augmenter.prepare
    monkeypatch.setattr(again.augmenter, "prepare", lambda text: asked.append(text) or prepare(text))
    again.propose()
    assert asked == TEXTS[20 - len(asked) : 20]
    again.write()
    made = (again.folder / "SST-2/train_aug.tsv").read_bytes()
    again.finish()
    assert made == run(inputs)[1]


SCRIPT = """
import os, signal, sys, json
from compresskit.data.augment_files import CandidateFile
from compresskit.stages import augment

augment.KEPT_EVERY = 200  # tokens: some texts at a time
append, appended = CandidateFile.append, []

def stop_at(self, found):
    print("FROM", len(self), flush=True)
    append(self, found)
    appended.append(1)
    if len(appended) == int(os.environ.get("STOP_AT", 0)):
        self._file.write(b'[[0, ["cut')  # the kill comes in the middle of a line
        self._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

CandidateFile.append = stop_at
stage = augment.open(augment.AugmentParams(**json.loads(sys.argv[1])))
stage.propose()
stage.write()
print("RESULT", stage.finish()["augmented"].iloc[0], flush=True)
"""


@pytest.mark.long
def test_a_killed_run_goes_on_where_it_was_and_writes_the_same_file(store, inputs, tmp_path):
    (tmp_path / "go.py").write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COMPRESSKIT_HEADLESS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "go.py"), json.dumps(params(inputs).model_dump())]

    def go(**settings: str) -> subprocess.CompletedProcess:
        return subprocess.run(command, env=environment | settings, capture_output=True, text=True)

    killed = go(STOP_AT="2")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = go()
    assert again.returncode == 0, again.stderr
    starts = [[int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("FROM")]
              for done in (killed, again)]  # fmt: skip
    assert starts[0] == [0, *starts[0][1:]]
    assert 0 < starts[0][-1] < starts[1][0] < 20
    folder = tracking.resolve(again.stdout.split("RESULT ")[1].strip())
    assert (folder / "SST-2/train_aug.tsv").read_bytes() == run(inputs)[1]
