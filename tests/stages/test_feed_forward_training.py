"""Networks of feed-forward formulas through the training stages: pre-training, several tasks at once, one task."""

from __future__ import annotations

from random import Random

import pytest
import torch

from compresskit import tracking
from compresskit.data import glue
from compresskit.data.vocabulary import train_wordpiece
from compresskit.models import (
    CompactBertConfig,
    CompactBertForMaskedLM,
    CompactBertForMultitask,
    CompactBertForQuestionAnswering,
    CompactBertForSequenceClassification,
    checkpoints,
)
from compresskit.stages import distill, distilling, general_distill, multitask
from compresskit.training.state import TrainingState

WORDS = "river town mill bridge old new stone tower garden wall hill road is the a near".split()  # noqa: SIM905
PLAIN = "linear4_1(gelu(linear4_1(x,wb1)),wb2)"
WINNER = ["tanh(linear2_1(gelu(linear2_1(x,wb1)),wb2))", "linear1_2(relu(mul(linear1_2(x,wb1),x)),wb2)"]
TASKS = {"sst2": 2, "qnli": 2}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A text, a pre-trained teacher, teachers of two tasks with their rows, and the config of a searched network."""
    folder = tmp_path_factory.mktemp("inputs")
    rng = Random(0)
    sentences = [" ".join(rng.choices(WORDS, k=rng.randint(4, 9))) for _ in range(300)]
    (folder / "text.txt").write_text("".join(line + "\n" * (1 + (n % 5 == 4)) for n, line in enumerate(sentences)))
    tokenizer = train_wordpiece(sentences, 100)
    config = CompactBertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=64, initializer_range=0.3, hidden_dropout_prob=0,
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32,
    )  # fmt: skip
    torch.manual_seed(0)
    checkpoints.save(CompactBertForMaskedLM(config), folder / "teacher", tokenizer)
    for task, labels in TASKS.items():
        names = dict(enumerate(glue.TASKS[task].labels))
        tuned = config.changed(num_labels=labels, id2label=names, label2id={n: i for i, n in names.items()})
        checkpoints.save(CompactBertForSequenceClassification(tuned), folder / f"teacher-{task}", tokenizer)
    shape = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    wide = {"vocab_size": len(tokenizer), "max_position_embeddings": 64, "embedding": "trigram", "embedding_size": 6}
    checkpoints.save(CompactBertConfig(**shape, **wide, feed_forward=[PLAIN] * 2), folder / "supernet")
    checkpoints.save(CompactBertConfig(**shape, **wide, feed_forward=WINNER), folder / "winner")
    (folder / "SST-2").mkdir()
    (folder / "QNLI").mkdir()
    single = ["sentence\tlabel", *(f"{line}\t{n % 2}" for n, line in enumerate(sentences))]
    pairs = ["index\tquestion\tsentence\tlabel"]
    labels = glue.TASKS["qnli"].labels
    pairs += [f"{n}\t{line}\t{sentences[n - 1]}\t{labels[n % 2]}" for n, line in enumerate(sentences)]
    for name in ("train.tsv", "dev.tsv"):
        (folder / "SST-2" / name).write_text("\n".join(single) + "\n")
        (folder / "QNLI" / name).write_text("\n".join(pairs) + "\n")
    return folder


def pretrained(inputs, **changes) -> general_distill.GeneralDistill:
    given = {"corpus": str(inputs / "text.txt"), "teacher": str(inputs / "teacher"), "max_seq_len": 32, "batch_size": 8}
    settings = {"dropout": 0, "learning_rate": 5e-3, "max_steps": 12, **given, **changes}
    stage = general_distill.open(general_distill.GeneralDistillParams(**settings))
    stage.train()
    return stage


def together(inputs, **changes) -> multitask.Multitask:
    teachers = {task: str(inputs / f"teacher-{task}") for task in TASKS}
    settings = {"teachers": teachers, "data_dir": str(inputs), "max_seq_len": 24, "batch_size": 8, "max_steps": 10}
    return multitask.open(multitask.MultitaskParams(**{**settings, **changes}))


def model_of(stage) -> str:
    return stage.finish()["model"].item()


def test_a_supernet_is_trained_for_sizes_that_change_from_step_to_step_and_gives_a_network_that_is_no_larger(
    store, inputs
):
    plain = pretrained(inputs, architecture=str(inputs / "supernet"))
    assert plain.layers.student.config.feed_forward == [PLAIN] * 2
    assert plain.comparison().loc["loss", "after"] < plain.comparison().loc["loss", "before"]
    supernet = model_of(plain)

    sizes = pretrained(inputs, student=supernet, architecture=str(inputs / "winner"), random_sizes=True)
    kept = sizes.layers.student.config.feed_forward
    assert kept == [formula.replace("2_1", "4_1").replace("1_2", "4_1") for formula in WINNER]
    drawn = [tuple(sizes.layers.network(step).feed_forward) for step in range(1, 101)]
    assert len(set(drawn)) > 60
    per_layer = [[formulas[layer] for formulas in drawn] for layer in range(2)]
    assert [len(set(formulas)) for formulas in per_layer] == [16, 16]
    assert drawn == [tuple(sizes.layers.network(step).feed_forward) for step in range(1, 101)]  # by seed and step alone
    assert sizes.comparison().loc["loss", "after"] < sizes.comparison().loc["loss", "before"]

    source = model_of(sizes)
    found = pretrained(inputs, student=source, architecture=str(inputs / "winner"))
    assert found.layers.student.config.feed_forward == WINNER
    whole, part = (checkpoints.read(tracking.resolve(model)) for model in (source, model_of(found)))
    own = found.layers.student
    assert sum(t.numel() for t in part.weights.values()) == own.num_parameters()
    assert own.num_parameters() < sum(t.numel() for t in whole.weights.values())
    assert set(part.training_only) == {"fit_dense.weight", "fit_dense.bias"}


def test_a_network_with_sizes_to_draw_needs_formulas(store, inputs):
    with pytest.raises(ValueError, match="random_sizes: the student has no feed-forward formulas"):
        pretrained(inputs, random_sizes=True, hidden_size=12, num_attention_heads=2)


def test_a_student_that_is_cut_has_the_shape_already(store, inputs):
    supernet = model_of(pretrained(inputs, architecture=str(inputs / "supernet"), max_steps=1))
    with pytest.raises(
        ValueError, match="architecture: num_hidden_layers is 4, the student's 2; take a student of that"
    ):
        together(inputs, student=supernet, architecture=str(inputs / "teacher"))


def test_several_tasks_learn_in_one_model_whose_heads_later_stages_take(store, inputs):
    supernet = model_of(pretrained(inputs, architecture=str(inputs / "supernet"), max_steps=1))
    stage = together(inputs, student=supernet, architecture=str(inputs / "winner"), random_sizes=True, max_steps=16)
    assert len(stage.batches()) == sum(len(data.batches()) for data in stage.data.values())
    before = {name: tensor.clone() for name, tensor in stage.student.state_dict().items()}
    history = stage.train()
    changed = [name for name, tensor in stage.student.state_dict().items() if not torch.equal(tensor, before[name])]
    assert {"classifiers.sst2.weight", "classifiers.qnli.weight", "bert.pooler.dense.weight"} <= set(changed)
    assert set(stage.table().index) == set(TASKS)
    losses = history[history["key"] == "train/loss"]["value"]
    assert losses.tail(4).mean() < losses.head(4).mean()
    model = model_of(stage)

    folder = tracking.resolve(model)
    again = checkpoints.load(CompactBertForMultitask, folder)
    assert again.config.tasks == TASKS
    for task, head in (("qnli", "qnli"), ("wnli", "qnli"), ("sst2", "sst2")):  # WNLI takes QNLI's head
        single = checkpoints.read(folder).for_task(task).model(CompactBertForSequenceClassification)
        assert torch.equal(single.classifier.weight, again.classifiers[head].weight)
        assert single.config.tasks is None
    ids = torch.tensor([[2, 5, 6, 3]])
    task = checkpoints.read(folder).for_task("qnli").model(CompactBertForSequenceClassification)
    torch.testing.assert_close(task(ids).logits, again.eval().for_task("qnli")(ids).logits)
    questions = checkpoints.read(folder).for_task("squad1").model(CompactBertForQuestionAnswering)
    assert torch.equal(questions.bert.embeddings.word_embeddings.weight, again.bert.embeddings.word_embeddings.weight)

    one = {"task": "qnli", "teacher": str(inputs / "teacher-qnli"), "data_dir": str(inputs), "max_seq_len": 24}
    steps = {"intermediate_epochs": 0, "prediction_epochs": 0, "joint_epochs": 2, "max_steps": 6}
    params = distill.DistillParams(student=model, architecture=str(inputs / "winner"), **one, **steps)
    plus = distill.open(params)
    assert plus.student.config.feed_forward == WINNER
    assert torch.equal(plus.student.classifier.weight.cpu(), again.classifiers["qnli"].weight)
    history = plus.train()
    assert {"train/attention_loss", "train/hidden_loss", "train/prediction_loss", "select/score"} <= set(history["key"])
    parts = {key: history[history["key"] == f"train/{key}_loss"]["value"].to_numpy() for key in
             ("attention", "hidden", "prediction")}  # fmt: skip
    assert history[history["key"] == "train/loss"]["value"].to_numpy() == pytest.approx(sum(parts.values()), rel=1e-5)
    result = plus.finish()
    kept = checkpoints.read(tracking.resolve(result["model"].item()))
    assert sum(t.numel() for t in kept.weights.values()) == result["parameters"].item()


def test_a_stopped_run_of_several_tasks_ends_as_one_that_was_not_stopped(store, inputs, monkeypatch):
    supernet = model_of(pretrained(inputs, architecture=str(inputs / "supernet"), max_steps=1))
    settings = {"student": supernet, "architecture": str(inputs / "winner"), "random_sizes": True}
    whole = together(inputs, **settings, learning_rate=3e-3)
    whole.train()
    weights = {name: tensor.clone() for name, tensor in whole.student.state_dict().items()}
    whole.finish()

    class Stopped(Exception):
        pass

    save = TrainingState.save_when_due

    def stop_at(self, step, parts):
        self.every_seconds = 0
        save(self, step, parts)
        if step == 5:
            raise Stopped

    monkeypatch.setattr(TrainingState, "save_when_due", stop_at)
    with pytest.raises(Stopped):
        together(inputs, **settings, learning_rate=3e-3).train()
    monkeypatch.setattr(TrainingState, "save_when_due", save)
    resumed = together(inputs, **settings, learning_rate=3e-3)
    resumed.train()
    for name, tensor in resumed.student.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


def test_teachers_are_of_glue_tasks_and_of_one_width(store, inputs):
    with pytest.raises(ValueError, match="should name a teacher for GLUE tasks"):
        multitask.MultitaskParams(teachers={"squad1": "somewhere"})
    with pytest.raises(ValueError, match="should name a teacher for GLUE tasks"):
        multitask.MultitaskParams(teachers={})


def test_faithful_chooses_by_the_mean_over_batches_and_starts_with_a_rate_of_zero(store, inputs):
    stage = distill.open(
        distill.DistillParams(
            teacher=str(inputs / "teacher-sst2"), data_dir=str(inputs), max_seq_len=24, intermediate_epochs=0,
            prediction_epochs=0, joint_epochs=1, max_steps=3, faithful=True,
        )
    )  # fmt: skip
    history = stage.train()
    assert history[history["key"] == "train/learning_rate"]["value"].iloc[0] in (0.0, 5e-5)
    assert distilling.max_grad_norm(stage.params, "efficientbert") == 1.0


@pytest.mark.parametrize(("copies", "width"), [(1, 8), (2, 8)])
def test_a_supernet_is_cut_to_a_narrower_network_and_to_a_deeper_one(store, inputs, copies, width):
    supernet = model_of(pretrained(inputs, architecture=str(inputs / "supernet"), max_steps=1))
    given = checkpoints.read(tracking.resolve(supernet))
    formulas = [formula for formula in WINNER for _ in range(copies)]
    sizes = {"hidden_size": width, "intermediate_size": width, "qkv_size": width, "num_hidden_layers": 2 * copies}
    checkpoints.save(given.architecture(**sizes, feed_forward=formulas), inputs / f"narrow-{copies}")
    stage = pretrained(inputs, student=supernet, architecture=str(inputs / f"narrow-{copies}"), max_steps=1)
    assert stage.layers.mapping == [0, 2, 4] if copies == 1 else [0, 1, 2, 3, 4]
    opened = general_distill.open(stage.params)  # before its step
    own = dict(opened.layers.student.named_parameters())
    name = "encoder.layer.{}.feed_forward.0.output.dense.weight"
    for layer, inner in ((0, 8), (copies, 4)):  # 1/1 and 1/2 of the width
        theirs = given.weights[name.format(layer // copies)]
        torch.testing.assert_close(own[name.format(layer)].cpu(), theirs[:width, :inner])
    torch.testing.assert_close(opened.layers.project.weight.cpu(), given.training_only["fit_dense.weight"][:, :width])
