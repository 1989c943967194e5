"""A candidate's score: what fine-tuning its slice gives, the same for every process and after every stop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from compresskit.data import bundled, vocabulary
from compresskit.models import CompactBertConfig, CompactBertForMaskedLM, checkpoints, elastic
from compresskit.stages import candidates
from compresskit.stages.candidates import PUBLISHED, Evaluator, Job, recipe
from compresskit.stages.finetune import FinetuneParams
from compresskit.stages.params import ParamsError
from compresskit.stages.tasks import TASKS, task_data
from compresskit.training.finetune import supervised
from compresskit.training.loop import fit
from compresskit.training.optim import adamw, linear_schedule

SHORT = {"max_rows": 260, "max_steps": 12, "max_seq_len": 32, "eval_every": 3, "learning_rate": 1e-3}


@pytest.fixture
def made(store: Path) -> SimpleNamespace:
    """A supernet of 2 layers on disk, its config, and a folder for jobs."""
    corpus = bundled.write(store / ".cache" / "bundled") / "corpus.txt"
    tokenizer = vocabulary.train_wordpiece(corpus.read_text().splitlines()[:2000], 800)
    config = CompactBertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    torch.manual_seed(0)
    checkpoints.save(CompactBertForMaskedLM(config), store / "supernet", tokenizer)
    return SimpleNamespace(supernet=store / "supernet", config=config, folder=store / "jobs")


def job(made, name: str = "a", share: float = 1.0, task: str = "sst2", **sizes) -> Job:
    sizes = sizes or {"num_hidden_layers": 1, "hidden_size": 20, "qkv_size": 16, "intermediate_size": 40}
    return Job(made.config.changed(**sizes), task, 42, share, made.folder / name)


def test_the_recipes_are_those_of_the_released_program():
    table = """
        cola 10 64 1e-5 50 | mnli 4 128 3e-5 500 | mrpc 10 128 2e-5 10 | sst2 4 64 2e-5 100 | stsb 10 128 3e-5 10 |
        qqp 5 128 2e-5 500 | qnli 10 128 2e-5 500 | rte 10 128 2e-5 10 | squad1 4 384 3e-5 500"""
    for line in table.split("|"):
        task, *numbers = line.split()
        found = recipe(task, {})
        names = ("num_train_epochs", "max_seq_len", "learning_rate", "eval_every")
        assert [getattr(found, name) for name in names] == [float(number) for number in numbers]
        assert (found.batch_size, found.warmup_ratio) == (16 if task == "squad1" else 32, 0.1)
        assert (found.doc_stride, found.max_query_length, found.select_on) == (128, 64, "selection")
    assert PUBLISHED.keys() == TASKS.keys()


def test_what_a_recipe_changes_is_checked_by_name():
    settings = {"max_steps": 5, "max_rows": 0, "seed": 0, "data_dir": ""}
    changed = recipe("mnli", {"num_train_epochs": "1", "eval_every": 100.0}, **settings)
    assert {name: getattr(changed, name) for name in settings} == settings
    assert (changed.num_train_epochs, changed.eval_every, changed.max_steps, changed.max_rows) == (1, 100, 5, 0)
    with pytest.raises(ParamsError, match=r"^recipes.mnli: 'epochs' is no parameter of recipe"):
        recipe("mnli", {"epochs": 1})
    with pytest.raises(ParamsError, match=r"recipes.mnli: 'batch_size' .* \(it is 0\)"):
        recipe("mnli", {"batch_size": 0})
    with pytest.raises(ValueError, match=r"unknown task 'mnly'; did you mean 'mnli'"):
        recipe("mnly", {})


@pytest.mark.parametrize("sizes", [
    {"hidden_size": 20, "qkv_size": 16},  # kd: all heads, each narrower
    {"hidden_size": 20, "num_attention_heads": 3, "qkv_size": 24},  # mlm: fewer heads
], ids=["kd", "mlm"])  # fmt: skip
def test_the_score_is_that_of_the_slice_with_the_raw_last_state_fine_tuned_on_rows_of_train(made, sizes):
    found = Evaluator(made.supernet, {"sst2": recipe("sst2", SHORT)})(job(made, **sizes))

    torch.manual_seed(42)
    params = FinetuneParams(model=str(made.supernet), max_rows=260, max_seq_len=32)
    task = TASKS["sst2"]
    whole, tokenizer = task.open_model(params.model)
    model = elastic.extract(whole, whole.config.changed(**sizes))
    data = task_data(task, params, tokenizer, batch_size=32)
    optimizer, scores = adamw([model], 1e-3), []

    def evaluate() -> float:
        scores.append(data.score(model, "selection").value)
        return scores[-1]

    fit(model, data.batches(drop_last=True), supervised(model), optimizer, linear_schedule(optimizer, 12, 0.1), 12,
        evaluate=evaluate, eval_every=3)  # fmt: skip
    assert len(scores) == 4
    assert found == {"score": max(scores), "step": 3 * (scores.index(max(scores)) + 1), "error": ""}


def test_a_larger_share_goes_on_and_ends_where_an_uncut_job_ends(made):
    evaluator = Evaluator(made.supernet, {"sst2": recipe("sst2", SHORT)})
    evaluator(job(made, "cut", share=0.5))
    assert torch.load(made.folder / "cut" / "state.pt")["step"] == 6
    assert evaluator(job(made, "cut")) == evaluator(job(made, "whole"))
    states = [torch.load(made.folder / name / "state.pt") for name in ("cut", "whole")]
    assert states[0]["step"] == 12
    weights = [state["parts"]["model"] for state in states]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[1])


def test_a_job_depends_on_nothing_that_was_evaluated_before(made):
    evaluator = Evaluator(made.supernet, {"sst2": recipe("sst2", SHORT | {"max_steps": 3})})
    first = evaluator(job(made, "first"))
    evaluator(job(made, "other", hidden_size=8))
    assert evaluator(job(made, "again")) == first
    evaluator(replace(job(made, "seed"), seed=43))
    weights = {
        name: torch.load(made.folder / name / "state.pt")["parts"]["model"] for name in ("first", "again", "seed")
    }
    for name, tensor in weights["first"].items():
        assert tensor.equal(weights["again"][name]), name
    assert not weights["seed"]["classifier.weight"].equal(weights["first"]["classifier.weight"])


def test_dev_rows_choose_only_where_asked(made, monkeypatch):
    asked = []
    score = candidates.TaskData.score
    monkeypatch.setattr(
        candidates.TaskData, "score", lambda self, model, split: asked.append(split) or score(self, model, split)
    )
    for select_on in ("selection", "dev"):
        rows = recipe("sst2", {**SHORT, "max_steps": 1}, select_on=select_on)
        Evaluator(made.supernet, {"sst2": rows})(job(made, select_on))
    assert asked == ["selection", "dev"]


def test_a_candidate_that_diverges_scores_nothing_and_says_so(made):
    steep = recipe("sst2", {**SHORT, "learning_rate": 1e30})
    found = Evaluator(made.supernet, {"sst2": steep})(job(made))
    assert (found["score"], found["step"]) == (0.0, 0)
    assert found["error"].startswith("the ")


def test_questions_are_answered_too(made):
    spans = recipe(
        "squad1", {"max_rows": 300, "max_steps": 2, "max_seq_len": 64, "max_query_length": 24, "doc_stride": 24}
    )
    found = Evaluator(made.supernet, {"squad1": spans})(job(made, task="squad1"))
    assert 0 <= found["score"] <= 1
    assert (found["step"], found["error"]) == (2, "")
