"""The page of a study: its numbers follow from the answers, and it is drawn from finished runs alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import f1_score

from compresskit import tracking
from compresskit.evaluation import figures, glue
from compresskit.stages import study
from compresskit.stages.published import PUBLISHED, Comparison, Published

ROWS = 200
TIMED = {"batch_size": 1, "threads": 1, "machine": {"cpu": "a CPU", "torch": "2", "float32_matmul_precision": "high"}}
SIZES = {"score": 0.5, "score_low": 0.4, "score_high": 0.6, "rows": ROWS, "latency_p50_ms": 1, "latency_p95_ms": 1,
         "speedup": 1, "parameters": 2e6, "model_bytes": 8e6, "flops": 1e9, "sparsity": 0}  # fmt: skip


def answers(seed: int, share_right: float) -> tuple[list[int], list[list[float]]]:
    """Labels, the same for every seed, and logits that are right on about that share of them."""
    labels = np.random.default_rng(0).integers(2, size=ROWS)
    right = np.random.default_rng(seed).random(ROWS) < share_right
    said = np.where(right, labels, 1 - labels)
    return labels.tolist(), np.eye(2)[said].tolist()


def pipeline_run(
    task: str,
    seed: int,
    models: dict[str, float],
    params: dict | None = None,
    finished: bool = True,
    sparsity: float = 0,
    pipeline: str = "ablation",
    sparse_ms: float = 0,
) -> str:
    """A pipeline's run with an evaluation of these models, as the stages record them."""
    params = params or {
        "task": task, "seed": seed, "data_dir": "", "student": "nowhere", "max_seq_len": 32, "epochs": 3,
        "max_steps": 5, "epochs_at_once": 6, "max_steps_at_once": 10, "learning_rate": 5e-5, "copies": 1, "threads": 1,
    }  # fmt: skip
    parent = tracking.start("pipeline", f"tinybert/{task}", "ablation", params, tags={"pipeline": pipeline})
    run = tracking.start("evaluate", f"tinybert/{task}", "evaluate", {}, parent_run_id=parent.run_id)
    times = {name: [2.0, 1.0, 3.0] for name in models}
    if sparse_ms:
        times |= {f"{name}, sparse": [sparse_ms] for name in models}
    measured = {**SIZES, "sparsity": sparsity, "sparse_model_bytes": 5e6 if sparse_ms else None}
    run.json("latency.json", [{"name": name, "samples_ms": ms, **TIMED} for name, ms in times.items()])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPRESSKIT_PARENT_RUN", parent.run_id)
        for number, (name, share) in enumerate(models.items()):
            labels, logits = answers(100 * seed + number, share)
            run.json(f"predictions/{name}.json", {"labels": labels, "logits": logits})
            system, _, variant = name.partition("-")
            source = tracking.start("finetune", task, name, {}, parent_run_id=parent.run_id)
            source.finish()
            tracking.leaderboard(
                task, system=system, variant=variant, seed=seed, measured=measured,
                params={"layers": 2, "hidden": 8},
                source=f"runs:/{source.run_id}/model", folder=tracking.project_root() / "params",
                evaluated_by=run.run_id, data_digest="d",
            )  # fmt: skip
    run.finish()
    if finished:
        parent.finish()
    return parent.run_id


MODELS = {"baseline-teacher": 0.9, "baseline-labels-only": 0.6, "tinybert-both": 0.75}


def test_a_study_gathers_the_newest_run_of_each_task_and_seed(store):
    pipeline_run("sst2", 1, {name: 0.1 for name in MODELS})  # replaced by the next
    for seed in (1, 2):
        pipeline_run("sst2", seed, MODELS)
    pipeline_run("cola", 1, MODELS)
    pipeline_run("rte", 1, MODELS, finished=False)
    out = store / "docs" / "page.md"
    study.study("ablation", ["baseline-labels-only"], out, "first\nsecond", "By hand.")
    data = json.loads(out.with_suffix(".json").read_text())
    assert list(data["tasks"]) == ["cola", "sst2"]
    found = data["tasks"]["sst2"]
    assert set(found["seconds"]) == {"1", "2"}
    assert all(len(runs) == 3 for runs in found["seconds"].values())
    assert study.variants(data) == ["baseline-labels-only", "tinybert-both", "baseline-teacher"]
    for number, name in enumerate(MODELS):
        expected = [100 * glue.score("sst2", answers(100 * seed + number, MODELS[name])[1], found["labels"]).value
                    for seed in (2, 1)]  # fmt: skip
        assert study.scores("sst2", found, name) == expected
        assert f"{np.mean(expected):.1f} (" in study.scores_table(data)
    page = out.read_text()
    assert page == study.page(data, "page")
    assert "    first\n    second\n" in page
    assert "students' start included. By hand.\n" in page
    assert "2.0 (1.00x)" in page
    assert "Published" not in page  # nothing is, of this pipeline
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_study_shows_the_settings_that_its_pipeline_has_and_the_zeros_of_pruned_models(store):
    settings = {"task": "sst2", "seed": 1, "data_dir": "", "student": "nowhere", "max_seq_len": 32, "epochs": 3,
                "max_steps": 5, "learning_rate": 5e-5, "threads": 1}  # fmt: skip
    pipeline_run("sst2", 1, MODELS, settings, sparsity=0.8)
    data = study.collect("ablation", ["baseline-labels-only"], "")
    names = ["max_seq_len", "epochs", "max_steps", "learning_rate", "threads"]
    assert list(data["tasks"]["sst2"]["settings"]) == names
    assert f"| task | seeds | dev rows | {' | '.join(names)} | minutes of training |" in study.training_table(data)
    page = study.page(data, "page")
    assert (
        "\nEach step of a training stops after `epochs` or `max_steps`, whichever comes first (0: no limit). All "
        in page
    )
    assert "| parameters, M | zeros, % | MB | MB sparse | sst2, 32 tokens, ms | sparse, ms |" in page
    assert "| tinybert-both | 2 | 8 | 2.0 | 80.0 | 8.0 |  | 2.0 (1.00x) |  |" in page


def test_another_pipeline_adds_seeds_and_tasks_for_some_of_the_models(store):
    settings = {"data_dir": "", "student": "nowhere", "max_seq_len": 32, "epochs": 3}
    some = {name: MODELS[name] for name in ("baseline-teacher", "tinybert-both")}
    pipeline_run("mrpc", 1, MODELS, {"task": "mrpc", "seed": 1, **settings}, sparse_ms=0.5, sparsity=0.9)
    for task, seed in (("mrpc", 2), ("qnli", 1)):
        pipeline_run(task, seed, some, {"task": task, "seed": seed, **settings}, pipeline="fewer")
    assert list(study.collect("ablation", ["baseline-teacher"], "")["tasks"]) == ["mrpc"]
    data = study.collect("ablation", ["baseline-teacher"], "", also=["fewer"])
    assert {name: list(of_seed) for name, of_seed in data["tasks"]["mrpc"]["logits"].items()} == {
        "baseline-teacher": ["1", "2"], "baseline-labels-only": ["1"], "tinybert-both": ["1", "2"]
    }  # fmt: skip
    assert study.variants(data) == ["baseline-labels-only", "tinybert-both", "baseline-teacher"]
    tables = study.scores_table(data), study.gains_table(data, "baseline-teacher"), study.sizes_table(data)
    rows = [next(line for line in table.splitlines() if "| baseline-labels-only |" in line) for table in tables]
    assert all(row.endswith("|  |") for row in rows[:2])  # it was not made for the second task
    assert rows[2].endswith("| 90.0 | 8.0 | 5.0 | 2.0 (1.00x) | 0.5 (4.00x) |  |  |")
    study.study("ablation", ["baseline-teacher", "tinybert-both"], store / "page.md", "", also=["fewer"])
    page = (store / "page.md").read_text()
    assert all(study.gains_table(data, name) in page for name in ("baseline-teacher", "tinybert-both"))
    panels = figures.scores_plot(study.score_rows(data)).axes
    assert [len([line for line in ax.lines if line.get_marker() == "o"]) for ax in panels] == [3, 2]


def test_a_model_that_only_a_later_run_has_is_named(store):
    settings = {"data_dir": "", "student": "nowhere", "max_seq_len": 32, "epochs": 3}
    pipeline_run("mrpc", 1, MODELS, {"task": "mrpc", "seed": 1, **settings})
    pipeline_run("mrpc", 2, {"baseline-teacher": 0.9, "tinybert-new": 0.7}, {"task": "mrpc", "seed": 2, **settings},
                 pipeline="more")  # fmt: skip
    with pytest.raises(ValueError, match=r"mrpc: run .* has models that a run before it lacks: tinybert-new"):
        study.collect("ablation", ["baseline-teacher"], "", also=["more"])


def test_published_figures_stand_beside_ours_in_the_same_measure(store, monkeypatch):
    pipeline_run("mrpc", 1, MODELS)
    data = study.collect("ablation", ["baseline-teacher"], "")
    line = Published("theirs", "dev", {"mrpc": 90.5}, verified=True)
    comparison = Comparison((line,), "Compare with care.", {"mrpc": "f1"}, ("tinybert-both",))
    monkeypatch.setitem(PUBLISHED, "ablation", comparison)
    found = data["tasks"]["mrpc"]
    predicted = np.argmax(found["logits"]["tinybert-both"]["1"], axis=1)
    f1 = 100 * f1_score(found["labels"], predicted)
    page = study.page(data, "page")
    assert "| published | measured on | mrpc, f1 |  |\n" in page
    assert f"| theirs | dev | 90.5 |  |\n| ours: tinybert-both | dev | {f1:.2f} |  |\n\nCompare with care.\n" in page


def test_the_interval_of_a_difference_is_of_the_same_rows(store):
    pipeline_run("sst2", 1, MODELS)
    data = study.collect("ablation", ["baseline-labels-only"], "")
    found = data["tasks"]["sst2"]
    assert study.interval("sst2", found, "tinybert-both", "tinybert-both") == (0, 0)
    low, high = study.interval("sst2", found, "baseline-teacher", "baseline-labels-only")
    gain = study.scores("sst2", found, "baseline-teacher")[0] - study.scores("sst2", found, "baseline-labels-only")[0]
    assert 0 < low < gain < high
    assert f"**{gain:+.1f}** ({low:+.1f} – {high:+.1f})" in study.gains_table(data, "baseline-labels-only")
    assert "| baseline-labels-only |" not in study.gains_table(data, "baseline-labels-only")


def test_what_is_missing_is_named(store):
    with pytest.raises(ValueError, match="no finished run of the pipeline 'ablation'; run params/pipelines/ablation"):
        study.collect("ablation", ["baseline-labels-only"], "")
    tracking.start("pipeline", "x", "other", {"task": "sst2"}, tags={"pipeline": "other"}).finish()
    with pytest.raises(ValueError, match=r"max_seq_len; run .* has no seed, data_dir, student, max_seq_len"):
        study.collect("other", ["x"], "")
    pipeline_run("sst2", 1, MODELS)
    with pytest.raises(ValueError, match=r"no run of ablation has a model 'x'; there are .*tinybert-both"):
        study.collect("ablation", ["x"], "")
    pipeline_run("sst2", 2, MODELS)
    before = tracking.read_json
    with pytest.MonkeyPatch.context() as patch:
        other = iter(range(100))
        patch.setattr(
            tracking, "read_json",
            lambda run, path: {**before(run, path), "labels": [next(other)]} if "pred" in path else before(run, path),
        )  # fmt: skip
        with pytest.raises(ValueError, match="scored on other dev rows"):
            study.collect("ablation", ["baseline-labels-only"], "")
