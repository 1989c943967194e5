"""The stages of the search for formulas as calls: what they try, keep and hand on; stopped or shared, the same."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from compresskit import tracking
from compresskit.data import bundled, vocabulary
from compresskit.models import (
    CompactBertConfig,
    CompactBertForSequenceClassification,
    CompactBertModel,
    checkpoints,
    elastic,
)
from compresskit.models.feed_forward import parse, plain, refusal
from compresskit.search import classifier_tree
from compresskit.stages import formula_search, formula_trials
from compresskit.stages.formula_search import FormulaSearchParams

SHORT = {"max_trials": 7, "initial_trials": 4, "refit_every": 3, "max_rejections": 4, "corpus_seq_len": 24,
         "corpus_share": 0.3, "max_distill_steps": 1, "max_steps": 2, "eval_every": 1, "max_rows": 300,
         "max_seq_len": 24, "batch_size": 16, "train_share": 0.5, "threads": 1}  # fmt: skip


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """On disk: a supernet of 2 layers, one of the task, an encoder and a task model to learn from, and a short text."""
    folder = tmp_path_factory.mktemp("given")
    data = bundled.write(folder / "data")
    lines = (data / "corpus.txt").read_text().splitlines()[:2000]
    (folder / "corpus.txt").write_text("\n".join(lines[:120]) + "\n")
    tokenizer = vocabulary.train_wordpiece(lines, 600)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 32}
    sizes["vocab_size"] = len(tokenizer)
    config = CompactBertConfig(
        **sizes, hidden_size=16, intermediate_size=16, feed_forward=[str(plain(4))] * 2,
        embedding="trigram", embedding_size=8,
    )  # fmt: skip
    wide = CompactBertConfig(**sizes, hidden_size=24, intermediate_size=48)
    labelled = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    torch.manual_seed(0)
    supernet = CompactBertModel(config).eval()
    models = {
        "supernet": supernet,
        "task_supernet": CompactBertForSequenceClassification(config.changed(**labelled)),
        "encoder": CompactBertModel(wide, add_pooling_layer=False),
        "teacher": CompactBertForSequenceClassification(wide.changed(**labelled)),
    }
    for name, model in models.items():
        checkpoints.save(model.eval(), folder / name, tokenizer)
    own = {name: str(folder / name) for name in ("supernet", "encoder", "teacher")}
    own |= {"corpus": str(folder / "corpus.txt"), "data_dir": str(data)}
    return SimpleNamespace(own=own, config=config, supernet=supernet, folder=folder)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier_tree, "ROUNDS", 5)
    monkeypatch.setattr(classifier_tree, "TUNING_TRIALS", 2)
    monkeypatch.setattr(formula_search, "WAIT_SECONDS", 0.05)


def run(given, **changes) -> tuple[formula_search.FormulaSearch, pd.DataFrame, pd.Series]:
    stage = formula_search.open(FormulaSearchParams(**{**given.own, **SHORT, **changes}))
    table = stage.run()
    return stage, table, stage.finish().iloc[0]


def told(table: pd.DataFrame) -> pd.DataFrame:
    """What two runs of the same search must agree in."""
    return table.drop(columns=["seconds", "host"])


def test_three_stages_hand_on_what_they_found(given, store):
    stage, table, first = run(given, comparisons=True)
    assert len(table) == 7
    assert table["formulas"].nunique() == 7
    assert table["score"].is_monotonic_decreasing
    assert table["chosen"].tolist() == [True] + [False] * 6
    assert sorted(table["round"]) == [0, 0, 0, 0, 1, 1, 1]
    assert (table["reason"] == "").all()
    for line in table["formulas"]:
        assert all(refusal(parse(text)) is None for text in line.split(", "))
    written = json.loads((tracking.resolve(first["found"]) / "found.json").read_text())
    assert ", ".join(written["formulas"]) == table["formulas"][0]
    assert [c["score"] for c in written["candidates"]] == table["score"].tolist()
    winner = checkpoints.load(CompactBertModel, tracking.resolve(first["model"]))
    expected = elastic.extract(given.supernet, given.config.changed(feed_forward=first["formulas"]))
    assert all(tensor.equal(winner.state_dict()[name]) for name, tensor in expected.state_dict().items())
    counts = {}
    for name in ("plain", "random", "uniform"):
        model = CompactBertModel(checkpoints.load(CompactBertModel, tracking.resolve(first[name])).config, False)
        counts[name] = model.num_parameters()
        assert (set(model.config.feed_forward) <= {str(plain(s, r)) for s in range(1, 5) for r in range(1, 5)}) == (
            name != "random"
        )
    assert counts["plain"] == counts["random"] == first["parameters"] == table["parameters"][0]
    assert not stage.session.folder.exists()

    _, table, second = run(given, search_stage=2, previous=first["found"])
    assert table["parameters"].nunique() == 1
    assert ", ".join(first["formulas"]) in set(table["formulas"])
    low, high = int(0.9 * second["parameters"]), int(1.1 * second["parameters"])
    own = {"supernet": str(given.folder / "task_supernet"), "min_parameters": low, "max_parameters": high}
    stage, table, third = run(given, search_stage=3, previous=second["found"], **own)
    assert table["parameters"].between(low, high).all()
    unsized = {tuple(str(parse(t).resized(None)) for t in line.split(", ")) for line in table["formulas"]}
    assert unsized == {tuple(str(parse(t).resized(None)) for t in second["formulas"])}
    found = checkpoints.load(CompactBertForSequenceClassification, tracking.resolve(third["model"]))
    assert found.config.feed_forward == third["formulas"]
    assert tracking.status(stage.session.run.run_id) == "FINISHED"


def test_a_stopped_search_goes_on_to_the_same_result_and_trains_nothing_twice(given, store, monkeypatch):
    _, straight, whole = run(given)
    work, done, stops = formula_trials.Trained.__call__, [], {2, 5}

    def counted(self, job):
        if len(done) in stops:
            stops.remove(len(done))
            raise KeyboardInterrupt
        done.append(job.formulas)
        return work(self, job)

    monkeypatch.setattr(formula_trials.Trained, "__call__", counted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(given, register_as="another-task")
    _, table, result = run(given, register_as="another-task")
    assert len(done) == len(set(done)) == 7
    pd.testing.assert_frame_equal(told(table), told(straight))
    assert result["formulas"] == whole["formulas"]


def test_machines_that_share_a_file_do_each_trial_once_and_end_alike(given, store, tmp_path):
    own = {"storage": str(tmp_path / "shared" / "trials.log"), "search_stage": 3, "max_trials": 8,
           "supernet": str(given.folder / "task_supernet"), "previous": str(tmp_path / "found.json")}  # fmt: skip
    formulas = ["tanh(linear2_2(gelu(linear2_2(x,wb1)),wb2))", "linear1_3(relu(mul(linear1_3(x,wb1),x)),wb2)"]
    (tmp_path / "found.json").write_text(json.dumps({"formulas": formulas}))
    stage = formula_search.open(FormulaSearchParams(**{**given.own, **SHORT, **own, "max_trials": 3}))
    stage.run()
    stage.finish()
    stage, table, _ = run(given, **own)  # a larger budget goes on with what is there
    assert len(table) == 8
    again = formula_search.open(FormulaSearchParams(**{**given.own, **SHORT, **own, "workers": 2}))
    again.workers.results = lambda jobs: (pytest.fail(f"{name} was done already") for name, _ in jobs)
    pd.testing.assert_frame_equal(again.run(), table)
    other = formula_search.open(FormulaSearchParams(**{**given.own, **SHORT, **own, "seed": 7}))
    assert len(other.trials.finished()) == 0


def test_a_loss_that_is_no_number_scores_0_and_says_why(given, store, monkeypatch):
    fit = formula_trials.fit

    def diverging(model, *rest, **settings):
        if "tanh" in str(model.config.feed_forward):
            raise FloatingPointError("the loss is nan at step 1")
        return fit(model, *rest, **settings)

    monkeypatch.setattr(formula_trials, "fit", diverging)
    stage, table, _ = run(given, max_trials=12, initial_trials=12, max_distill_steps=0, distill_epochs=0, max_steps=1)
    failed = table[table["reason"] != ""]
    assert len(failed) == table["formulas"].str.contains("tanh").sum() > 0
    assert (failed["score"] == 0).all()
    assert (failed["reason"] == "the loss is nan at step 1").all()
    assert stage.counts()["count"]["failed"] == len(failed)


def test_a_budget_in_time_ends_the_search_between_two_trials(given, store, monkeypatch):
    monkeypatch.setattr(
        formula_trials.Trained, "__call__", lambda self, job: {"score": 0.5, "steps": 0, "reason": "", "seconds": 61.0}
    )
    stage, table, _ = run(given, max_minutes=3.0)
    assert len(table) == 3
    assert stage.minutes() >= 3


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"search_stage": 2}, "search_stage 2 begins with what stage 1 has found; set previous"),
        ({"min_parameters": 9, "max_parameters": 8}, "min_parameters 9 exceeds max_parameters 8"),
        ({"task": "sst3"}, "unknown task 'sst3'; did you mean 'sst2'"),
        ({"search_stage": 2, "previous": "nowhere.json"}, "nowhere.json: no such file"),
        ({"supernet": "encoder"}, "has no formulas; take a supernet whose config names its feed_forward"),
        ({"min_parameters": 10**8}, "none of 10000 drawn networks has 100,000,000 to inf parameters"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_sentence(given, store, changes, sentence, monkeypatch):
    if changes.get("supernet"):
        changes = {"supernet": str(given.folder / changes["supernet"])}
    if "min_parameters" in changes:
        from compresskit.search import progressive

        monkeypatch.setattr(progressive.formulas, "draw", lambda *_: plain())
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        run(given, **changes)


def test_trials_of_other_weights_are_another_study(given, store):
    params = FormulaSearchParams(**given.own, **SHORT)
    names = {
        formula_search.study_name(p, Path(folder), None)
        for p in (params, params.model_copy(update={"max_trials": 99, "workers": 3}))
        for folder in (given.folder / "supernet", given.folder / "task_supernet")
    }
    assert len(names) == 2
