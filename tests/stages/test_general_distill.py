"""The stage general_distill: from text to a student that distill and finetune take, and what it refuses."""

from __future__ import annotations

import logging
from random import Random

import pytest
import torch
import transformers

from compresskit import tracking
from compresskit.data.vocabulary import train_wordpiece
from compresskit.models import (
    CompactBertConfig,
    CompactBertForMaskedLM,
    CompactBertForSequenceClassification,
    CompactBertModel,
    checkpoints,
)
from compresskit.stages import corpus, distill, finetune, general_distill
from compresskit.training.state import TrainingState

WORDS = "river town mill bridge old new stone tower garden wall hill road is the a near".split()  # noqa: SIM905
SHAPE = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
SMALL = {"num_hidden_layers": 2, "hidden_size": 12, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A text of 60 documents, a pre-trained teacher, one fine-tuned for SST-2, and its data."""
    folder = tmp_path_factory.mktemp("inputs")
    rng = Random(0)
    sentences = [" ".join(rng.choices(WORDS, k=rng.randint(4, 9))) for _ in range(300)]
    lines = [line + "\n" * (1 + (n % 5 == 4)) for n, line in enumerate(sentences)]
    (folder / "text.txt").write_text("".join(lines))
    tokenizer = train_wordpiece(sentences, 100)
    torch.manual_seed(0)
    config = CompactBertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=64, initializer_range=0.3, hidden_dropout_prob=0, **SHAPE
    )
    checkpoints.save(CompactBertForMaskedLM(config), folder / "teacher", tokenizer)
    checkpoints.save(CompactBertForSequenceClassification(config.changed(num_labels=2)), folder / "tuned", tokenizer)
    (folder / "SST-2").mkdir()
    rows = ["sentence\tlabel", *(f"{line}\t{n % 2}" for n, line in enumerate(sentences))]
    for name in ("train.tsv", "dev.tsv"):
        (folder / "SST-2" / name).write_text("\n".join(rows) + "\n")
    return folder


def opened(inputs, **changes) -> general_distill.GeneralDistill:
    given = {"corpus": str(inputs / "text.txt"), "teacher": str(inputs / "teacher"), "max_seq_len": 32, "batch_size": 8}
    settings = {**SMALL, "dropout": 0, "learning_rate": 5e-3, **given, **changes}
    return general_distill.open(general_distill.GeneralDistillParams(**settings))


def prepared_corpus(inputs, **changes) -> str:
    settings = {"sources": {"text": str(inputs / "text.txt")}, "vocabulary": str(inputs / "teacher")}
    stage = corpus.open(corpus.CorpusParams(**{**settings, "max_seq_len": 32, "epochs": 2, **changes}))
    stage.read()
    stage.pack()
    return stage.finish().iloc[0]["corpus"]


def run(inputs, **changes) -> dict:
    stage = opened(inputs, **changes)
    stage.train()
    return stage.finish().iloc[0].to_dict()


def test_the_student_of_a_prepared_corpus_is_taken_by_later_stages_with_its_projection(store, inputs, caplog):
    stage = opened(inputs, corpus=prepared_corpus(inputs), num_train_epochs=6)
    assert stage.layers.mapping == [0, 2, 4]
    assert stage.describe().index.tolist() == ["epoch 0", "epoch 1", "held out"]
    history = stage.train()
    assert history["step"].max() == sum(len(stage.train_batches.epochs[epoch % 2]) for epoch in range(6))
    before, after = stage.comparison()["before"], stage.comparison()["after"]
    assert (after < 0.6 * before).all()  # held-out text; both terms
    assert after["loss"] == pytest.approx(after["attention_loss"] + after["hidden_loss"], rel=1e-6)
    result = stage.finish().iloc[0]
    assert result["attention_loss"] == after["attention_loss"]
    assert history[history["key"] == "eval/hidden_loss"]["value"].tolist() == [
        before["hidden_loss"],
        after["hidden_loss"],
    ]

    folder = tracking.resolve(result["model"])
    kept = checkpoints.read(folder).training_only
    assert {name: tuple(t.shape) for name, t in kept.items()} == {"fit_dense.weight": (16, 12), "fit_dense.bias": (16,)}
    with caplog.at_level(logging.WARNING):
        loaded = transformers.AutoModel.from_pretrained(folder)
    assert not caplog.records  # of making it neither
    assert torch.equal(
        loaded.encoder.layer[1].output.dense.weight, stage.layers.student.encoder.layer[1].output.dense.weight
    )
    task = {"data_dir": str(inputs), "max_seq_len": 16, "max_steps": 1}
    student = distill.open(distill.DistillParams(teacher=str(inputs / "tuned"), student=result["model"], **task))
    assert torch.equal(student.layers.project.weight.cpu(), kept["fit_dense.weight"])
    assert torch.equal(student.student.bert.pooler.dense.weight, loaded.pooler.dense.weight)
    assert finetune.open(finetune.FinetuneParams(model=result["model"], **task)).model.config.hidden_size == 12


@pytest.mark.parametrize("projection", ["shared", "per_layer"])
def test_a_continued_run_begins_where_the_first_one_ended(store, inputs, projection):
    first = run(inputs, projection=projection, max_steps=10)
    second = opened(inputs, projection=projection, student=first["model"], max_steps=10)
    second.train()
    for name in ("loss", "attention_loss", "hidden_loss"):
        assert second.losses["before"][name] == pytest.approx(first[name], rel=1e-5)
    assert second.losses["after"]["loss"] < first["loss"] < first["loss_before"]


def test_a_student_can_begin_as_layers_of_its_teacher(store, inputs):
    stage = opened(inputs, student_layers=[2, 4], max_steps=3)
    teacher, student = stage.layers.teacher, stage.layers.student
    for ours, theirs in ((0, 1), (1, 3)):
        pairs = zip(student.encoder.layer[ours].parameters(), teacher.encoder.layer[theirs].parameters(), strict=True)
        assert all(torch.equal(mine, other) for mine, other in pairs)
    assert torch.equal(student.embeddings.word_embeddings.weight, teacher.embeddings.word_embeddings.weight)
    assert stage.layers.project is None  # widths are equal
    stage.train()
    assert stage.losses["after"]["loss"] < stage.losses["before"]["loss"]


def test_a_stopped_run_goes_on_to_the_same_student(store, inputs, monkeypatch):
    whole = opened(inputs, max_steps=12, dropout=0.1)
    whole.train()
    monkeypatch.setattr(TrainingState, "save_when_due", TrainingState.save)
    stopped = opened(inputs, max_steps=12, dropout=0.1, register_as="again")  # another task, in a folder of its own
    observe = stopped.session.observe
    monkeypatch.setattr(stopped.session, "observe", lambda step, numbers: 1 / (step != 7) and observe(step, numbers))
    with pytest.raises(ZeroDivisionError):
        stopped.train()
    again = opened(inputs, max_steps=12, dropout=0.1, register_as="again")
    again.train()
    for ours, theirs in zip(again.layers.student.parameters(), whole.layers.student.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    torch.testing.assert_close(again.layers.project.weight, whole.layers.project.weight, rtol=0, atol=1e-6)
    assert again.losses == whole.losses


def test_a_step_of_the_task_distillation_hands_its_projection_on_to_the_next(store, inputs):
    general = run(inputs, max_steps=2)["model"]
    shared = {"teacher": str(inputs / "tuned"), "data_dir": str(inputs), "max_seq_len": 16, "max_steps": 2}
    models = [general]
    for epochs in ({"prediction_epochs": 0}, {"intermediate_epochs": 0}):
        stage = distill.open(distill.DistillParams(student=models[-1], **shared, **epochs))
        stage.train()
        models.append(stage.finish()["model"].item())
    start, first, second = (checkpoints.read(tracking.resolve(model)).training_only for model in models)
    assert not torch.equal(start["fit_dense.weight"], first["fit_dense.weight"])
    assert torch.equal(first["fit_dense.weight"], second["fit_dense.weight"])


def test_faithful_has_no_dropout_before_the_classifier_and_a_teacher_in_float32_on_any_machine(
    store, inputs, monkeypatch
):
    half = object()
    monkeypatch.setattr("compresskit.stages.distilling.has_fast_bfloat16", lambda: True)
    monkeypatch.setattr("compresskit.stages.distilling.in_bfloat16", lambda *given: (half, 0.0))
    student = run(inputs, max_steps=1, dropout=0.1, teacher_dtype="float32")["model"]
    given = {"teacher": str(inputs / "tuned"), "student": student, "data_dir": str(inputs), "max_seq_len": 16}
    for faithful, rate in ((True, 0.0), (False, 0.1)):
        stage = distill.open(distill.DistillParams(**given, faithful=faithful))
        assert stage.student.dropout.p == rate
        assert stage.student.bert.encoder.layer[0].output.dropout.p == 0.1
        assert stage.layers.teacher_for(stage.session, stage.batches(), 1) is (stage.teacher if faithful else half)


def test_the_teacher_is_as_it_was_and_sees_no_dropout(store, inputs):
    stage = opened(inputs, max_steps=3)
    before = {name: tensor.clone() for name, tensor in stage.layers.teacher.state_dict().items()}
    stage.train()
    assert not stage.layers.teacher.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in stage.layers.teacher.state_dict().items())


def test_faithful_is_as_the_original_program_trains(store, inputs):
    stage = opened(inputs, corpus=prepared_corpus(inputs), faithful=True, num_train_epochs=2, hidden_size=16)
    rows = [len(epoch.lengths) for epoch in stage.train_batches.epochs]
    num_steps = stage.train_batches.num_steps(2)
    assert num_steps == sum(count // 8 for count in rows)  # incomplete batches are left out
    assert stage.schedule_steps(num_steps) == sum(rows) // 8
    assert {tuple(batch["input_ids"].shape) for batch in stage.train_batches.from_step(0, num_steps)} == {(8, 32)}
    assert stage.layers.project.weight.shape == (16, 16)  # between equal widths too
    history = stage.train()
    rates = history[history["key"] == "train/learning_rate"]["value"].to_numpy()
    warm = 0.1 * (sum(rows) // 8)
    assert rates[0] == 0
    assert rates[1] == pytest.approx(5e-3 / warm)
    assert rates[-1] == pytest.approx(5e-3 * (1 - (num_steps - 1) / (sum(rows) // 8)) / 0.9)


# ---- what is refused


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_attention_heads": 3}, r"student layer 1 has 3 attention heads, teacher layer 2 has 2"),
        ({"num_hidden_layers": 3}, r"4 teacher layers are no multiple of 3 student layers; give layer_mapping"),
        ({"layer_mapping": [4]}, r"layer mapping \[0, 4\] for 2 student and 4 teacher layers; expected 3 numbers"),
        ({"layer_mapping": [1, 5]}, r"then one from 1 to 4 per student layer"),
        ({"max_seq_len": 65}, r"max_seq_len is 65, the teacher takes 64 tokens"),
        ({"hidden_size": 13}, r"13"),
        ({"student_layers": [2, 5]}, r"layers \[2, 5\] of a model of 4 layers"),
        ({"student_layers": [2], "student": "elsewhere"}, r"start is named twice; give student, or student_layers"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused_before_training(store, inputs, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        opened(inputs, **changes)


def test_a_missing_corpus_and_a_missing_teacher_are_named(store, inputs, tmp_path):
    with pytest.raises(FileNotFoundError, match="and there is neither"):
        opened(inputs, corpus=str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match="nothing"):
        opened(inputs, teacher=str(tmp_path / "nothing"))


def test_another_vocabulary_is_refused_in_the_corpus_and_in_the_student(store, inputs, tmp_path):
    (tmp_path / "text.txt").write_text("other words\naltogether\n\nin another text\n")
    other = prepared_corpus(inputs, vocabulary="", vocab_size=100, sources={"text": str(tmp_path / "text.txt")})
    with pytest.raises(ValueError, match=r"was made with another vocabulary; .*that of the model"):
        opened(inputs, corpus=other)
    tokenizer = train_wordpiece(["other words altogether"] * 3, 60)
    config = CompactBertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **SMALL)
    checkpoints.save(CompactBertModel(config), tmp_path / "student", tokenizer)
    with pytest.raises(ValueError, match="student and teacher have other vocabularies"):
        opened(inputs, student=str(tmp_path / "student"))
    with pytest.raises(ValueError, match="student and teacher have other vocabularies"):
        distill.open(
            distill.DistillParams(
                teacher=str(inputs / "tuned"), student=str(tmp_path / "student"), data_dir=str(inputs), max_seq_len=16
            )
        )


def test_a_teacher_that_a_task_has_changed_is_noticed(store, inputs, caplog):
    with caplog.at_level(logging.WARNING, "compresskit.stages.general_distill"):
        opened(inputs, teacher=str(inputs / "tuned"))
    assert "was fine-tuned on a task" in caplog.records[0].getMessage()
