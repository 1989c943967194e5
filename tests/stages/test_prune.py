"""The stage prune: what its parameters ask for is what the weights of the kept model show."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel

from compresskit.data.vocabulary import train_wordpiece
from compresskit.models import CompactBertForSequenceClassification, checkpoints
from compresskit.pruning.masks import KINDS, MagnitudePruner, prunable
from compresskit.stages import evaluate, prune
from compresskit.stages.session import model_folder

WORDS = "film plot actor scene story joke song tale part shot cast role line mood tone view".split()  # noqa: SIM905
ROWS = [f"a {a} and a {b} {i % 2}" for i, (a, b) in enumerate((a, b) for a in WORDS for b in WORDS)][:240]
STEPS = 8


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """SST-2 of 240 rows, 120 of them to train on; a task model, half of whose matrices' weights are zero in another."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "SST-2").mkdir()
    for name in ("train.tsv", "dev.tsv"):
        lines = ["sentence\tlabel", *(f"{text}\t{i % 2}" for i, text in enumerate(ROWS))]
        (folder / "SST-2" / name).write_text("\n".join(lines) + "\n")
    tokenizer = train_wordpiece(ROWS * 3, 200)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=24, max_position_embeddings=32)  # fmt: skip
    torch.manual_seed(0)
    model = BertForSequenceClassification(config)
    model.save_pretrained(folder / "teacher")
    MagnitudePruner(model, 0.5, 0, 1).step(1)
    model.save_pretrained(folder / "half")
    BertModel(config).save_pretrained(folder / "encoder")
    for name in ("teacher", "half", "encoder"):
        tokenizer.save_pretrained(folder / name)
    return folder


def opened(inputs, model: str = "teacher", **changes) -> prune.Prune:
    given = {"data_dir": str(inputs), "max_seq_len": 32, "max_steps": STEPS, "learning_rate": 1e-2}
    return prune.open(prune.PruneParams(model=str(inputs / model), **{**given, **changes}))


def trained(inputs, model: str = "teacher", **changes) -> CompactBertForSequenceClassification:
    """The model as it was kept."""
    stage = opened(inputs, model, **changes)
    stage.train()
    kept = stage.finish()["model"].item()
    return checkpoints.load(CompactBertForSequenceClassification, model_folder(kept))


def zeros(model) -> dict[str, torch.Tensor]:
    weights = dict(model.named_parameters())
    return {name: weights[name].detach() == 0 for name in prunable(weights)}


# ---- what goes


def test_a_short_run_keeps_exactly_the_share_of_each_matrix_that_was_asked_for(store, inputs):
    for name, zero in zeros(trained(inputs, sparsity=0.9)).items():
        assert zero.numel() - int(zero.sum()) == math.floor(zero.numel() * 0.1 + 1e-6), name


def test_only_the_named_kinds_lose_weights(store, inputs):
    found = zeros(trained(inputs, sparsity=0.75, matrices=["value", "output"]))
    chosen = prunable(found, ["value", "output"])
    assert len(chosen) == 4
    assert {name: float(zero.float().mean()) for name, zero in found.items()} == {
        name: 0.75 if name in chosen else 0.0 for name in found
    }


def test_groups_of_weights_go_together_under_one_threshold(store, inputs):
    found = zeros(trained(inputs, sparsity=0.75, pattern="8x1", threshold="global"))
    groups = torch.cat([zero.unflatten(0, (-1, 8)).float().mean(1).flatten() for zero in found.values()])
    assert set(groups.tolist()) == {0.0, 1.0}
    assert float(groups.mean()) == 0.75
    assert len({float(zero.float().mean()) for zero in found.values()}) > 2


def test_two_of_every_four_inputs_are_left(store, inputs):
    for zero in zeros(trained(inputs, sparsity=0.5, pattern="2:4")).values():
        assert bool((zero.unflatten(1, (-1, 4)).sum(-1) == 2).all())


# ---- where it starts


def test_a_pretrained_model_is_pruned_while_it_learns_from_a_teacher_and_needs_one(store, inputs):
    model = trained(inputs, "encoder", teacher=str(inputs / "teacher"), sparsity=0.8)
    assert model.classifier.weight.shape == (2, 16)
    assert min(float(zero.float().mean()) for zero in zeros(model).values()) >= 0.8
    with pytest.raises(ValueError, match="fine-tune it on sst2 first"):
        opened(inputs, "encoder")


def test_labels_alone_are_learned_from_without_a_teacher(store, inputs):
    stage = opened(inputs, "encoder", teacher="no/such/folder", learn_from="labels", sparsity=0.8)
    assert stage.teacher is None
    keys = set(stage.train()["key"])
    assert "train/loss" in keys
    assert not keys & {"train/hidden_loss", "train/attention_loss", "train/prediction_loss"}


def test_pruning_goes_on_from_the_zeros_there_are(store, inputs):
    before = zeros(checkpoints.load(CompactBertForSequenceClassification, inputs / "half"))
    stage = opened(inputs, "half", sparsity=0.75, restore_sparsity=True)
    shares = stage.train().query("key == 'train/sparsity'")["value"].tolist()
    assert shares[0] >= 0.5
    assert shares == sorted(shares)
    for name, zero in zeros(stage.model).items():
        assert bool(zero[before[name]].all())
        assert float(zero.float().mean()) == 0.75


def test_a_sparse_model_is_fine_tuned_with_its_zeros_fixed(store, inputs):
    before = zeros(checkpoints.load(CompactBertForSequenceClassification, inputs / "half"))
    stage = opened(inputs, "half", teacher=str(inputs / "teacher"), fix_sparsity=True)
    history = stage.train()
    assert set(history.query("key == 'train/sparsity'")["value"]) == {0.5}
    assert all(torch.equal(zero, before[name]) for name, zero in zeros(stage.model).items())
    assert history.query("key == 'select/score'")["step"].min() < STEPS  # every checkpoint competes
    with pytest.raises(ValueError, match=r"fix_sparsity keeps the zeros of .*teacher, which has none; prune it first"):
        opened(inputs, fix_sparsity=True).train()


# ---- when


def test_the_sparsity_rises_between_its_shares_of_the_run_and_only_final_checkpoints_compete(store, inputs):
    stage = opened(inputs, sparsity=0.75, begin_share=0.25, pruning_share=0.5, evals_per_epoch=4)
    history = stage.train().pivot_table(index="step", columns="key", values="value")
    assert history["train/sparsity"].loc[[1, 2, 6, 7, 8]].tolist() == [0, 0, 0.75, 0.75, 0.75]
    assert 0 < history["train/sparsity"].loc[3] < history["train/sparsity"].loc[5] < 0.75
    assert history["select/score"].dropna().index.tolist() == [6, 7, 8]


def test_all_at_once_is_at_the_first_step(store, inputs):
    history = opened(inputs, sparsity=0.75, pruning_share=0).train()
    assert set(history.query("key == 'train/sparsity'")["value"]) == {0.75}


def test_the_last_checkpoint_stands_where_it_is_asked_for(store, inputs):
    history = opened(inputs, checkpoint="last", evals_per_epoch=4).train()
    assert history.query("key == 'select/score'")["step"].tolist() == [STEPS]


def test_faithful_trains_as_the_original_and_falls_short_of_the_target(store, inputs):
    stage = opened(inputs, sparsity=0.8, faithful=True, frequency=2, num_train_epochs=4)
    batches = stage.data.batches(**prune.distilling.batch_order(stage.params))
    assert len(batches) == 3  # 120 rows of which 24 fill no batch
    assert {batch["input_ids"].shape for batch in batches} == {(32, 32)}
    assert stage.model.dropout.p == 0
    history = stage.train().pivot_table(index="step", columns="key", values="value")
    assert set(history["train/learning_rate"]) == {1e-2}
    shares = history["train/sparsity"]
    assert shares.loc[1] == 0
    for step in range(2, STEPS):
        assert shares.loc[step] == pytest.approx(0.8 - 0.8 * (1 - step // 2 / 4) ** 3, abs=4e-3)
    assert shares.loc[STEPS] == shares.loc[STEPS - 1] < 0.8
    for name, zero in zeros(stage.model).items():
        kept = math.floor(zero.numel() * (1 - (0.8 - 0.8 / 4**3)))
        assert zero.numel() - int(zero.sum()) == kept, name


# ---- what does not go together


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"begin_share": 0.5}, r"begin_share 0\.5 and pruning_share 0\.7 are more than the whole run; lower one"),
        ({"pattern": "2:4"}, r"pattern 2:4 leaves 2 of every 4 weights, not a sparsity of 0\.95; set it to 0\.5"),
        ({"teacher": "other"}, "other vocabularies"),
    ],
    ids=str,
)
def test_parameters_that_contradict_each_other_are_refused_in_one_sentence(store, inputs, tmp_path, changes, message):
    if "teacher" in changes:
        tokenizer = train_wordpiece(["other words"], 60)
        model = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2,
                                                         num_attention_heads=2, intermediate_size=24))  # fmt: skip
        model.save_pretrained(tmp_path / "other")
        tokenizer.save_pretrained(tmp_path / "other")
        changes = {"teacher": str(tmp_path / "other")}
    with pytest.raises(ValueError, match=message) as error:
        opened(inputs, **changes)
    assert "\n" not in str(error.value)


def test_a_pattern_that_does_not_divide_a_matrix_is_refused_by_its_name(store, inputs):
    with pytest.raises(ValueError, match=r"layer\.0\.intermediate\.dense\.weight has 24 rows, no multiple of 16"):
        opened(inputs, pattern="16x1").train()
    kinds = [kind for kind in KINDS if kind != "intermediate"]
    assert opened(inputs, pattern="16x1", matrices=kinds).train()["step"].max() == STEPS


def test_a_model_without_a_source_is_left_out_of_an_evaluation(store, inputs):
    models = {"baseline-teacher": str(inputs / "teacher"), "sparsebert-given": ""}
    params = {"data_dir": str(inputs), "max_seq_len": 32}
    assert list(evaluate.open(evaluate.EvaluateParams(models=models, **params)).models) == ["baseline-teacher"]
    with pytest.raises(ValueError, match="no models named"):
        evaluate.open(evaluate.EvaluateParams(models={"sparsebert-given": ""}, **params))
