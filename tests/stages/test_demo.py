"""The command `demo`: one random input 20 times, logits printed, equality bit for bit stated."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from compresskit.cli import app
from compresskit.models import CompactBertConfig, CompactBertForSequenceClassification, CompactBertModel, checkpoints
from compresskit.stages import demo

SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A task model of 50 words with much dropout."""
    torch.manual_seed(0)
    config = CompactBertConfig(
        vocab_size=50, max_position_embeddings=64, hidden_dropout_prob=0.5, initializer_range=0.5, **SHAPE
    )
    folder = tmp_path_factory.mktemp("model")
    CompactBertForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


def invoke(*arguments: str):
    return CliRunner().invoke(app, ["demo", *arguments])


def test_twenty_runs_print_the_models_logits_and_agree_bit_for_bit(store, model):
    done = invoke(model, "--seed", "3")
    assert done.exit_code == 0, done.stderr
    loaded = checkpoints.load(CompactBertForSequenceClassification, model).to(demo.DEVICE)
    with torch.inference_mode():
        logits = loaded(**demo.random_input(loaded.config, 3)).logits[0].tolist()
    first, *lines, last = done.stdout.splitlines()
    assert first.startswith(f"{model} on {demo.DEVICE}: one random input of 64 tokens, ")
    shown = lines[0].removeprefix("run  1: ")
    assert [float(number) for number in shown.split(", ")] == pytest.approx(logits, abs=1e-5)
    assert lines[1:] == [f"run {number:2}: {shown}  equal to the run before" for number in range(2, 21)]
    assert last == "20 runs: all equal, bit for bit"


def test_another_seed_is_another_input(store, model):
    assert invoke(model, "--seed", "1").stdout.splitlines()[1] != invoke(model, "--seed", "2").stdout.splitlines()[1]


def test_a_model_that_answers_differently_is_told_and_the_command_fails(store, model, monkeypatch):
    monkeypatch.setattr(CompactBertForSequenceClassification, "eval", lambda self: self.train())
    done = invoke(model)
    assert done.exit_code == 1
    assert done.stdout.count("  NOT equal to the run before") >= 18
    assert done.stdout.splitlines()[-1].endswith(" differ")


@pytest.mark.parametrize("seed", range(5))
def test_ids_lie_in_the_vocabulary_and_types_in_their_table_and_a_token_is_real(seed):
    config = CompactBertConfig(vocab_size=7, type_vocab_size=1, **SHAPE)
    batch = demo.random_input(config, seed)
    assert {tensor.shape for tensor in batch.values()} == {(1, 64)}
    assert (batch["input_ids"].min(), batch["input_ids"].max()) == (0, 6)
    assert not batch["token_type_ids"].any()
    assert set(batch["attention_mask"].flatten().tolist()) == {0, 1}
    assert batch["attention_mask"][0, 0] == 1


@pytest.mark.parametrize(
    ("first", "second", "equal"),
    [([1.0, float("nan")], [1.0, float("nan")], True), ([0.0], [-0.0], False), ([1.0], [1.0 + 2e-7], False)],
)
def test_equality_is_of_bits(first, second, equal):
    assert demo.same_bits(torch.tensor(first), torch.tensor(second)) is equal


def test_a_model_without_labels_and_one_for_short_texts_are_refused(store, tmp_path):
    bare = CompactBertModel(CompactBertConfig(vocab_size=50, max_position_embeddings=64, **SHAPE))
    bare.save_pretrained(tmp_path / "bare")
    short = CompactBertForSequenceClassification(CompactBertConfig(vocab_size=50, max_position_embeddings=32, **SHAPE))
    short.save_pretrained(tmp_path / "short")
    for folder, sentence in (("bare", "has no classifier"), ("short", "the model takes 32 tokens")):
        done = invoke(str(tmp_path / folder))
        assert (done.exit_code, done.stdout) == (1, "")
        assert sentence in done.stderr
        assert done.stderr.count("\n") == 1
