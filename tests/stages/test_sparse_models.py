"""Sparse models through the stages: exported, timed beside dense ones, reported on, pruned further."""

from __future__ import annotations

import json
import platform

import pytest
import torch
from typer.testing import CliRunner

from compresskit.cli import app
from compresskit.data import bundled
from compresskit.data.vocabulary import load_tokenizer, train_wordpiece
from compresskit.models import CompactBertConfig, CompactBertForSequenceClassification, checkpoints, sparse
from compresskit.pruning.masks import magnitude_mask, prunable
from compresskit.stages import evaluate, latency, prune, sparsity_report
from compresskit.tracking.store import client, experiment_id

SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}


@pytest.fixture
def pruned(store, tmp_path):
    """A folder with a task model for the bundled data, 90 % zeros in its matrices."""
    text = (bundled.write(store / ".cache/bundled") / "corpus.txt").read_text().splitlines()
    tokenizer = train_wordpiece(text, 300)
    torch.manual_seed(0)
    model = CompactBertForSequenceClassification(CompactBertConfig(vocab_size=len(tokenizer), **SHAPE))
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in prunable(parameters):
            parameters[name].mul_(magnitude_mask(parameters[name], 0.9))
    checkpoints.save(model, tmp_path / "pruned", tokenizer)
    return tmp_path / "pruned"


def export(*arguments: str):
    return CliRunner().invoke(app, ["export", *arguments])


def test_exporting_by_nonzero_weights_makes_a_smaller_folder_with_the_same_numbers(pruned, tmp_path, monkeypatch):
    monkeypatch.setattr(sparse, "speedup", lambda weight, stored: 2.0)
    done = export(str(pruned), str(tmp_path / "sparse"), "--format", "sparse")
    assert done.exit_code == 0, done.output
    dense, fast = (
        checkpoints.load(CompactBertForSequenceClassification, path) for path in (pruned, tmp_path / "sparse")
    )
    assert len(fast.config.sparse) == 12
    ids = torch.randint(5, 100, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(fast(ids).logits, dense(ids).logits, rtol=0, atol=1e-5)
    files = [(path / "model.safetensors").stat().st_size for path in (pruned, tmp_path / "sparse")]
    encoder = sum(dense.get_parameter(name).numel() for name in prunable(dict(dense.named_parameters()))) * 4
    assert files[0] - files[1] > 0.7 * encoder
    again = export(str(tmp_path / "sparse"), str(tmp_path / "bert"))
    assert again.exit_code == 0, again.output
    assert json.loads((tmp_path / "bert/config.json").read_text())["model_type"] == "bert"
    weights = checkpoints.read(tmp_path / "bert").weights
    assert torch.equal(
        weights["encoder.layer.0.intermediate.dense.weight"], dense.bert.encoder.layer[0].intermediate.dense.weight
    )


def test_a_model_without_zeros_is_not_exported_as_sparse(pruned, tmp_path):
    model = checkpoints.load(CompactBertForSequenceClassification, pruned)
    with torch.no_grad():
        for name in prunable(dict(model.named_parameters())):
            model.get_parameter(name).fill_(1.0)
    checkpoints.save(model, tmp_path / "full", load_tokenizer(pruned))
    done = export(str(tmp_path / "full"), str(tmp_path / "out"), "--format", "sparse")
    assert done.exit_code != 0
    assert "no layer of the encoder would be smaller and faster sparse (0.0% zeros" in done.output
    assert not (tmp_path / "out").exists()


def test_a_model_is_timed_in_several_engines_and_each_is_a_run_of_its_own(pruned, monkeypatch):
    monkeypatch.setattr(sparse, "speedup", lambda weight, stored: 2.0)
    engines = ["torch", "torch-default", "torch-sparse"]
    params = latency.LatencyParams(
        models={"sparsebert-pruned": str(pruned)}, engines=engines, batch_sizes=[2], seq_lens=[8], rounds=10
    )
    stage = latency.open(params)
    forms = stage._forms()
    assert [bool(forms[f"sparsebert-pruned, {engine}"].config.sparse) for engine in engines] == [False, False, True]
    table = stage.measure()
    assert sorted(table["name"]) == sorted(f"sparsebert-pruned, {engine}" for engine in engines)
    assert (table["latency_p50_ms"] > 0).all()
    stage.finish()
    found = client().search_runs([experiment_id(f"latency/{platform.node() or 'localhost'}")])
    assert {run.data.params["engine"] for run in found} == set(engines)
    assert {run.data.params["model"] for run in found} == {"sparsebert-pruned"}


def test_the_leaderboard_tells_how_fast_and_small_a_pruned_model_is_by_its_nonzero_weights(pruned, monkeypatch):
    monkeypatch.setattr(sparse, "speedup", lambda weight, stored: 2.0)
    dense = checkpoints.load(CompactBertForSequenceClassification, pruned)
    with torch.no_grad():
        for name in prunable(dict(dense.named_parameters())):
            dense.get_parameter(name).fill_(0.5)
    checkpoints.save(dense, pruned.parent / "dense", load_tokenizer(pruned))
    params = evaluate.EvaluateParams(
        models={"baseline-dense": str(pruned.parent / "dense"), "sparsebert-pruned": str(pruned)},
        max_rows=20, latency_seq_len=8, latency_rounds=10,
    )  # fmt: skip
    stage = evaluate.open(params)
    stage.score()
    timed = stage.time().set_index("name")["latency_p50_ms"]
    assert set(timed.index) == {"baseline-dense", "sparsebert-pruned", "sparsebert-pruned, sparse"}
    labels = {text.get_text() for text in stage.pareto().axes[0].texts}
    assert labels == set(timed.index)
    stage.finish()
    found = client().search_runs([experiment_id("leaderboard/sst2-bundled")])
    rows = {run.data.tags["variant"]: run.data.metrics for run in found}
    assert "sparse_latency_p50_ms" not in rows["dense"]
    assert rows["pruned"]["sparse_latency_p50_ms"] == pytest.approx(timed["sparsebert-pruned, sparse"], abs=1e-3)
    assert rows["pruned"]["disk_mb"] == rows["dense"]["disk_mb"]
    made = sparse.to_sparse(checkpoints.load(CompactBertForSequenceClassification, pruned))
    checkpoints.save(made, pruned.parent / "sparse")
    size = (pruned.parent / "sparse/model.safetensors").stat().st_size
    assert rows["pruned"]["sparse_disk_mb"] == pytest.approx(size / 1e6, abs=1e-3)


def test_no_engine_is_refused(store):
    with pytest.raises(ValueError, match="no engines named; engines lists where the models run"):
        latency.open(latency.LatencyParams(models={"a": "b"}, engines=[]))


def test_the_sparsity_report_counts_a_sparse_models_zeros(pruned, tmp_path):
    fast = sparse.to_sparse(checkpoints.load(CompactBertForSequenceClassification, pruned), min_sparsity=0.5)
    checkpoints.save(fast, tmp_path / "sparse")
    reports = [
        sparsity_report.open(sparsity_report.SparsityReportParams(model=str(path))).totals()
        for path in (pruned, tmp_path / "sparse")
    ]
    assert reports[0].loc["sparsity", "sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert reports[1][["size", "zeros"]].equals(reports[0][["size", "zeros"]])


def test_pruning_goes_on_from_a_sparse_model(pruned, tmp_path):
    fast = sparse.to_sparse(checkpoints.load(CompactBertForSequenceClassification, pruned), min_sparsity=0.5)
    checkpoints.save(fast, tmp_path / "sparse", load_tokenizer(pruned))
    params = prune.PruneParams(
        model=str(tmp_path / "sparse"), sparsity=0.95, max_steps=4, max_rows=250, max_seq_len=16, evals_per_epoch=1
    )
    stage = prune.open(params)
    stage.train()
    row = stage.finish()
    assert row is not None
    weight = stage.model.bert.encoder.layer[0].intermediate.dense.weight
    assert int((weight == 0).sum()) == weight.numel() - int(weight.numel() * 0.05 + 1e-6)
