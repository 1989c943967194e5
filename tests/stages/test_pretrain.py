"""The stage pretrain: supernets by masked words and by a teacher, found networks trained on, and what it refuses."""

from __future__ import annotations

import logging
from random import Random

import pytest
import torch

from compresskit import tracking
from compresskit.data.vocabulary import train_wordpiece
from compresskit.models import CompactBertConfig, CompactBertForMaskedLM, CompactBertModel, checkpoints, elastic
from compresskit.search.spaces import space_of
from compresskit.stages import extract, pretrain
from compresskit.training import distributed
from compresskit.training.optim import BertAdam
from compresskit.training.state import TrainingState

WORDS = "river town mill bridge old new stone tower garden wall hill road is the a near".split()  # noqa: SIM905
SHAPE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 32}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A text of 60 documents, and a pre-trained teacher that is wider than the models."""
    folder = tmp_path_factory.mktemp("inputs")
    rng = Random(0)
    sentences = [" ".join(rng.choices(WORDS, k=rng.randint(4, 9))) for _ in range(300)]
    lines = [line + "\n" * (1 + (n % 5 == 4)) for n, line in enumerate(sentences)]
    (folder / "text.txt").write_text("".join(lines))
    tokenizer = train_wordpiece(sentences, 100)
    torch.manual_seed(0)
    shape = {**SHAPE, "hidden_size": 24, "max_position_embeddings": 64, "initializer_range": 0.3}
    checkpoints.save(
        CompactBertForMaskedLM(CompactBertConfig(vocab_size=len(tokenizer), **shape)), folder / "teacher", tokenizer
    )
    return folder


def opened(inputs, **changes) -> pretrain.Pretrain:
    given = {"corpus": str(inputs / "text.txt"), "vocab_size": 100, "max_seq_len": 32, "batch_size": 8}
    settings = {**SHAPE, **given, "dropout": 0, "learning_rate": 5e-3, "num_train_epochs": 9, "max_steps": 6, **changes}
    return pretrain.open(pretrain.PretrainParams(**settings))


def run(inputs, **changes) -> tuple[pretrain.Pretrain, str]:
    """The trained stage, and the folder of what it kept."""
    stage = opened(inputs, **changes)
    stage.train()
    return stage, tracking.resolve(stage.finish()["model"].item())


def column(stage, name: str) -> list[float]:
    history = stage.session.run.history()
    return history[history["key"] == name]["value"].tolist()


# ---- what is learned


def test_a_supernet_learns_its_teachers_last_layer_and_keeps_the_projection_beside_it(store, inputs):
    teacher = str(inputs / "teacher")
    stage = opened(inputs, teacher=teacher, supernet="kd", subnets_per_step=2, max_steps=60)
    before = stage.judged()
    frozen = {name: tensor.clone() for name, tensor in stage.teacher.state_dict().items()}
    history = stage.train()
    after = stage.held_out_losses
    assert after.keys() == {"loss", "attention_loss", "hidden_loss"}
    assert all(after[name] < 0.7 * before[name] for name in after)
    assert {"train/loss_whole", "train/loss_subnets", "train/attention_loss"} <= set(history["key"])
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in stage.teacher.state_dict().items())
    kept = checkpoints.read(tracking.resolve(stage.finish()["model"].item())).training_only
    assert {name: tuple(t.shape) for name, t in kept.items()} == {"dense_fit.weight": (24, 16), "dense_fit.bias": (24,)}
    assert torch.equal(kept["dense_fit.weight"], stage.project.weight.cpu())


@pytest.mark.parametrize("flavour", ["mlm", "kd"])
def test_a_network_cut_out_of_its_supernet_is_trained_further_with_its_head_and_says_when_it_has_none(
    store, inputs, tmp_path, caplog, flavour
):
    taught = {"teacher": str(inputs / "teacher")} if flavour == "kd" else {}
    stage, folder = run(inputs, supernet=flavour, **taught)
    sizes = {"num_hidden_layers": 2, "hidden_size": 12, "intermediate_size": 20}
    for name, heads in (("with", True), ("without", False)):
        extract.extract(str(folder), tmp_path / name, "", "", sizes, heads)
    beside = checkpoints.read(tmp_path / "with").training_only
    with caplog.at_level(logging.WARNING):
        further = opened(inputs, model=str(tmp_path / "with"), **taught)
        assert not caplog.records
        fresh = opened(inputs, model=str(tmp_path / "without"), **taught)
    assert "start" in caplog.records[-1].getMessage()
    assert "at random" in caplog.records[-1].getMessage()
    label = "dense_fit" if taught else "masked-word head"
    starts = [s.describe().loc[label].item() for s in (further, fresh)]
    assert starts == ["came with the model", "starts at random"]
    if flavour == "mlm":
        transform = stage.model.cls.predictions.transform.dense.weight[:12, :12]
        assert torch.equal(further.model.cls.predictions.transform.dense.weight, transform)
    else:
        assert torch.equal(further.project.weight, stage.project.weight[:, :12])
        assert torch.equal(further.project.bias, stage.project.bias)
    further.train()
    kept = tracking.resolve(further.finish()["model"].item())
    assert checkpoints.read(kept).training_only.keys() == beside.keys()
    assert checkpoints.read(kept).architecture().hidden_size == 12


def test_a_found_network_goes_on_with_the_loss_it_had_inside_the_supernet(store, inputs, tmp_path):
    stage, _ = run(inputs, supernet="mlm", max_steps=20)
    subnet = stage.model.config.changed(num_hidden_layers=2, hidden_size=12, num_attention_heads=2, qkv_size=8)
    inside = pretrain.masked_lm_loss(stage.model, stage.held_out, stage.mask, subnet)
    checkpoints.save(elastic.extract(stage.model, subnet), tmp_path / "found", stage.tokenizer)
    further = opened(inputs, model=str(tmp_path / "found"), max_steps=30)
    assert further.judged()["loss"] == pytest.approx(inside, rel=1e-5)
    further.train()
    assert further.held_out_losses["loss"] < inside


# ---- how


def test_subnets_follow_from_seed_and_step_and_the_whole_network_only_where_asked(store, inputs, monkeypatch):
    stage = opened(inputs, supernet="mlm", subnets_per_step=3)
    drawn = [stage.subnets(step) for step in (1, 2, 1)]
    assert all(shapes[0] is None and len(shapes) == 4 for shapes in drawn)
    keys = [[shape.key() for shape in shapes[1:]] for shapes in drawn]
    assert keys[0] == keys[2]
    assert len({key for step in keys[:2] for key in step}) > 3
    alone = opened(inputs, supernet="mlm", sandwich=False)
    assert [shape.key() for shape in alone.subnets(1)] == [drawn[0][1].key()]
    assert None not in alone.subnets(5)
    other = opened(inputs, supernet="mlm", seed=7)
    first, second = ([one.subnets(step)[-1].key() for step in range(1, 9)] for one in (alone, other))
    assert first != second

    released = opened(inputs, supernet="mlm", faithful=True, sandwich=False, subnets_per_step=2)
    monkeypatch.setattr(distributed, "size", lambda: 4)
    config = released.model.config
    expected = [space_of("mlm", config).sample(config, Random(2 * 4 + k)).key() for k in (0, 1)]
    assert [shape.key() for shape in released.subnets(3)] == expected


@pytest.mark.parametrize(
    ("changes", "rule", "steps"),
    [
        ({"warmup_steps": 3}, "warmup_steps 3 of 6", 3),
        ({"warmup_steps": 6}, "warmup_steps 6 of 6", 6),
        (
            {"warmup_steps": 10000, "warmup_ratio": 0.5},
            "warmup_ratio 0.5, for warmup_steps 10000 exceeds the run's 6 steps",
            3,
        ),
        ({"warmup_ratio": 0.5}, "warmup_ratio 0.5", 3),
    ],
)
@pytest.mark.parametrize("faithful", [False, True])
def test_the_rule_of_the_warmup_is_told_and_kept(store, inputs, capsys, changes, rule, steps, faithful):
    stage = opened(inputs, **changes, faithful=faithful)
    assert stage.describe().loc["warm-up by"].item() == rule
    stage.train()
    assert f"warm-up by {rule}: ratio {steps / 6:.4g}, {steps} steps\n" in capsys.readouterr().out
    rates = column(stage, "train/learning_rate")
    top = rates.index(max(rates))
    assert top == (steps - 1 if faithful else min(steps, 5))
    assert rates[: top + 1] == sorted(rates[: top + 1])


def test_parts_of_a_batch_and_another_order_of_work_change_nothing(store, inputs):
    taught = {"teacher": str(inputs / "teacher"), "supernet": "kd", "teacher_dtype": "float32"}
    for given in ({"supernet": "mlm"}, taught):
        whole, parts = (run(inputs, **given, gradient_accumulation_steps=n)[0] for n in (1, 4))
        assert column(parts, "train/loss") == pytest.approx(column(whole, "train/loss"), rel=1e-4)
        for ours, theirs in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)  # Adam turns rounding into steps


@pytest.mark.parametrize(("precision", "taught"), [("bfloat16", False), ("float16", True)])
def test_half_precision_learns_as_float32_does(store, inputs, precision, taught):
    given = {"teacher": str(inputs / "teacher")} if taught else {}
    settings = {**given, "supernet": "kd", "max_steps": 25, "learning_rate": 2e-3}
    exact, half = (run(inputs, **settings, precision=p)[0] for p in ("float32", precision))
    begin, end = column(exact, "train/loss")[0], exact.held_out_losses["loss"]
    assert column(half, "train/loss")[0] == pytest.approx(begin, rel=0.01)
    assert half.held_out_losses["loss"] == pytest.approx(end, rel=0.05)
    assert half.model.dtype == torch.float32


@pytest.mark.parametrize("taught", [False, True])
def test_a_stopped_run_goes_on_to_the_same_model(store, inputs, monkeypatch, taught):
    given = {"teacher": str(inputs / "teacher")} if taught else {}
    settings = {**given, "supernet": "kd", "dropout": 0.1, "gradient_accumulation_steps": 2, "max_steps": 9}
    whole = opened(inputs, **settings)
    whole.train()
    monkeypatch.setattr(TrainingState, "save_when_due", TrainingState.save)
    stopped = opened(inputs, **settings, register_as="again")  # another task, in a folder of its own
    observe = stopped.session.observe
    monkeypatch.setattr(stopped.session, "observe", lambda step, numbers: 1 / (step != 5) and observe(step, numbers))
    with pytest.raises(ZeroDivisionError):
        stopped.train()
    again = opened(inputs, **settings, register_as="again")
    again.train()
    for ours, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    if taught:
        torch.testing.assert_close(again.project.weight, whole.project.weight, rtol=0, atol=1e-6)
    assert again.held_out_losses == pytest.approx(whole.held_out_losses, rel=1e-5)


def test_faithful_is_as_the_original_program_trains(store, inputs):
    stage = opened(inputs, faithful=True, teacher=str(inputs / "teacher"), supernet="kd", warmup_steps=3)
    optimizer, _ = stage.optimizer(6, 0.5)
    assert isinstance(optimizer, BertAdam)
    assert optimizer.defaults["eps"] == 1e-8
    batches = list(stage.batches().from_step(0, stage.num_steps()))
    assert {tuple(batch["input_ids"].shape) for batch in batches} == {(8, 32)}  # whole ones, padded in full
    masked = [(batch["labels"] != -100).sum(1).tolist() for batch in batches]
    assert masked == [[1] * 8] * len(masked)  # though nothing is to be predicted
    ours = opened(inputs, teacher=str(inputs / "teacher"), supernet="kd")
    assert "labels" not in next(iter(ours.batches().from_step(0, 1)))
    stage.train()
    assert column(stage, "train/learning_rate") == pytest.approx([5e-3 * f for f in (1 / 3, 2 / 3, 1, 2 / 3, 1 / 3, 0)])


# ---- what is refused


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"teacher": "teacher", "supernet": "mlm"}, r"mlm have fewer heads than the teacher; take supernet kd"),
        ({"teacher": "teacher", "num_attention_heads": 2}, r"the last layer has 2 attention heads, the teacher's 4"),
        ({"teacher": "teacher", "max_seq_len": 65}, r"max_seq_len is 65, the teacher takes 64 tokens; lower"),
        ({"model": "teacher", "max_seq_len": 65}, r"max_seq_len is 65, the model takes 64 tokens; lower"),
        ({"corpus": "one"}, r"one.txt gives 1 sequence of up to 32 tokens; at least 2 are needed"),
        ({"faithful": True, "batch_size": 4096}, r"rows do not fill one batch of 4096; lower batch_size"),
        ({"warmup_ratio": 1.0}, r"warmup_ratio"),
    ],
)
def test_what_does_not_go_together_is_refused_before_a_run_is_opened(store, inputs, changes, sentence):
    (inputs / "one.txt").write_text("the old mill\n")
    named = {name: str(inputs / value) for name, value in changes.items() if name in ("teacher", "model")}
    if "corpus" in changes:
        named["corpus"] = str(inputs / "one.txt")
        changes = {**changes, "vocabulary": str(inputs / "teacher")}
    with pytest.raises(ValueError, match=sentence):
        opened(inputs, **{**changes, **named})
    if "batch_size" not in changes:
        assert [e.name for e in tracking.store.client().search_experiments()] == ["Default"]


def test_a_teacher_with_another_vocabulary_is_refused(store, inputs, tmp_path):
    tokenizer = train_wordpiece(["other words altogether"] * 3, 60)
    config = CompactBertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **SHAPE)
    checkpoints.save(CompactBertModel(config), tmp_path / "model", tokenizer)
    with pytest.raises(ValueError, match="student and teacher have other vocabularies"):
        opened(inputs, model=str(tmp_path / "model"), teacher=str(inputs / "teacher"))
