"""The stage lengthdrop: what it is asked for is what the kept model learns; and the choices of distill beside it."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from compresskit.data import bundled
from compresskit.data.vocabulary import train_wordpiece
from compresskit.models import (
    CompactBertConfig,
    CompactBertForQuestionAnswering,
    CompactBertForSequenceClassification,
    checkpoints,
)
from compresskit.stages import distill, lengthdrop
from compresskit.stages.session import model_folder

WORDS = "film plot actor scene story joke song tale part shot cast role line mood tone view".split()  # noqa: SIM905
ROWS = [f"a {a} and a {b} {i % 2}" for i, (a, b) in enumerate((a, b) for a in WORDS for b in WORDS)][:240]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """SST-2 of 240 rows, 120 of them to train on, and a task model of 3 layers."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "SST-2").mkdir()
    for name in ("train.tsv", "dev.tsv"):
        lines = ["sentence\tlabel", *(f"{text}\t{i % 2}" for i, text in enumerate(ROWS))]
        (folder / "SST-2" / name).write_text("\n".join(lines) + "\n")
    tokenizer = train_wordpiece(ROWS * 3, 200)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
                        intermediate_size=24, max_position_embeddings=32)  # fmt: skip
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder


def opened(inputs, **changes) -> lengthdrop.Lengthdrop:
    given = {"data_dir": str(inputs), "model": str(inputs / "model"), "max_seq_len": 32, "max_steps": 8,
             "learning_rate": 1e-2}  # fmt: skip
    return lengthdrop.open(lengthdrop.LengthdropParams(**{**given, **changes}))


@pytest.mark.parametrize("taught", [False, True])
def test_the_model_that_is_kept_has_learned_and_runs_at_any_length(store, inputs, taught):
    stage = opened(inputs, teacher=str(inputs / "model") if taught else "")
    before = {name: tensor.clone() for name, tensor in stage.model.state_dict().items()}
    history = stage.train()
    assert stage.smallest() == [26, 21, 17]
    for key in ("train/full_loss", "train/divergence", "select/score"):
        values = history.loc[history["key"] == key, "value"]
        assert len(values) > 0
        assert values.map(math.isfinite).all()
    kept = checkpoints.load(CompactBertForSequenceClassification, model_folder(stage.finish()["model"].item()))
    assert kept.config.length_config is None
    changed = [name for name, tensor in kept.state_dict().items() if not torch.equal(tensor, before[name])]
    assert any("layer.2" in name for name in changed)
    ids = torch.randint(1, 60, (2, 20))
    assert kept(ids, length_config=(9, 5, 2)).logits.isfinite().all()


def test_the_same_seed_gives_the_same_model(store, inputs):
    found = []
    for _ in range(2):
        stage = opened(inputs, max_steps=3, layer_probability=0.5)
        stage.train()
        found.append(stage.model.state_dict())
        stage.session.run.finish({})
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_layers_are_left_out_in_one_way_only(store, inputs):
    with pytest.raises(ValueError, match="by layer_probability or by layer_bound, not by both; set one of them to 0"):
        opened(inputs, layer_bound=1)


@pytest.fixture
def questions(store):
    """Bundled SQuAD's folder, and models of 4 and 2 layers for it, with a projection beside the smaller one."""
    folder = bundled.write(store / ".cache/bundled")
    tokenizer = train_wordpiece((folder / "corpus.txt").read_text().splitlines(), 500)
    for name, layers, width in (("teacher", 4, 24), ("student", 2, 16)):
        torch.manual_seed(layers)
        config = CompactBertConfig(
            vocab_size=len(tokenizer), hidden_size=width, num_hidden_layers=layers, num_attention_heads=2,
            intermediate_size=24, max_position_embeddings=96,
        )  # fmt: skip
        extra = {"fit_dense.weight": torch.ones(24, 16), "fit_dense.bias": torch.ones(24)} if layers == 2 else None
        checkpoints.save(CompactBertForQuestionAnswering(config), store / name, tokenizer, extra)
    return store


QUESTIONS = {"task": "squad1", "data_dir": "bundled", "max_seq_len": 96, "doc_stride": 24, "max_query_length": 24,
             "max_rows": 120, "max_steps": 2, "batch_size": 4}  # fmt: skip


@pytest.mark.parametrize("faithful", [False, True])
def test_a_student_learns_layers_then_answers_then_lengths(questions, faithful):
    given = {**QUESTIONS, "teacher": str(questions / "teacher"), "faithful": faithful}
    first = distill.open(
        distill.DistillParams(
            **given, student=str(questions / "student"), attention="probabilities", prediction_epochs=0
        )
    )
    start = first.layers.project.weight.clone()
    assert torch.equal(start, torch.ones(24, 16))  # what came with the student
    first.train()
    head = {name: tensor.clone() for name, tensor in first.student.qa_outputs.state_dict().items()}
    layers = first.finish()["model"].item()
    kept = checkpoints.read(model_folder(layers))
    assert torch.equal(kept.weights["qa_outputs.weight"], head["weight"])
    assert not torch.equal(kept.training_only["fit_dense.weight"], start)

    second = distill.open(distill.DistillParams(**given, student=layers, intermediate_epochs=0))
    assert torch.equal(second.student.qa_outputs.weight, head["weight"])
    second.train()
    assert not torch.equal(second.student.qa_outputs.weight, head["weight"])
    answers = second.finish()["model"].item()
    assert checkpoints.read(model_folder(answers)).training_only.keys() == {"fit_dense.weight", "fit_dense.bias"}

    third = lengthdrop.open(lengthdrop.LengthdropParams(**given, model=answers))
    third.train()
    row = third.finish()
    assert row["task"].item() == "squad1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_distance": "cosine"}, "need attention: probabilities"),
        ({"partial_states": True}, "need attention: probabilities"),
        ({"attention": "probabilities", "state_ratio": 0, "attention_ratio": 0}, "are both 0; set one of them above 0"),
    ],
)
def test_distances_that_would_not_be_used_are_refused(store, inputs, changes, message):
    model = str(inputs / "model")
    params = distill.DistillParams(data_dir=str(inputs), max_seq_len=32, teacher=model, student=model, **changes)
    with pytest.raises(ValueError, match=message):
        distill.open(params)
