"""The store, runs and their histories, models by name, the leaderboard and its view."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pandas as pd
import pytest
import torch

from compresskit import tracking
from compresskit.tracking import lookup, machine, runs
from compresskit.tracking.store import client, experiment_id
from compresskit.tracking.view import TAG

DEAD = f"{machine.process().split('/')[0]}/999999/1.00"  # a process of this machine that is gone
FAR = "another-machine/1/1.00"


def begin(key: str | None = "k", **settings) -> tracking.Run:
    return tracking.start("toy", "toy/sst2", "a run", {"seed": 1}, task_key=key, **settings)


def put(run: tracking.Run, status: str, process: str) -> None:
    """As if another process had left the run like this."""
    run.tag({"process": process})
    client().update_run(run.run_id, status=status)
    runs._open.clear()


def test_the_store_lies_in_the_project_and_is_absolute(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tracking.store_uri() == f"sqlite:///{store}/mlruns/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///here.db")
    assert tracking.store_uri() == f"sqlite:///{tmp_path}/here.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking.initialise() == "http://127.0.0.1:5000"


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns"])
def test_a_folder_as_store_is_refused_with_the_remedy(store, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(
        ValueError, match=r"is a folder, .* name a database, for instance sqlite:///.*/mlruns/mlflow.db"
    ):
        tracking.store_uri()


def test_the_project_is_found_from_a_folder_below_it(store, monkeypatch):
    monkeypatch.delenv("COMPRESSKIT_HOME")
    below = store / "notebooks" / "deep"
    below.mkdir()
    monkeypatch.chdir(below)
    assert tracking.project_root() == store


def test_a_run_keeps_typed_parameters_tags_and_machine(store):
    run = tracking.start(
        "toy", "toy/sst2", "named", {"a": 1, "b": {"c": [1, 2], "d": None}, "e": "text"}, tags={"rows": 7, "none": None}
    )
    data = client().get_run(run.run_id).data
    assert data.params == {"a": "1", "b.c": "[1, 2]", "b.d": "None", "e": "text"}
    assert data.tags["rows"] == "7"
    assert "none" not in data.tags
    assert data.tags["process"] == machine.process()
    assert data.tags["stage"] == "toy"
    assert data.tags["torch"].startswith("2.")
    assert {"git.commit", "dirty", "hardware", "python", "host"} <= set(data.tags)
    assert "mlflow==" in tracking.resolve(f"runs:/{run.run_id}/environment.txt").read_text()
    assert json.loads(tracking.resolve(f"runs:/{run.run_id}/params.json").read_text())["b"]["c"] == [1, 2]


def test_numbers_are_written_in_batches_and_come_back_as_a_history(store, monkeypatch):
    run = begin()
    calls = []
    write = run._client.log_batch
    monkeypatch.setattr(run._client, "log_batch", lambda *a, **k: (calls.append(1), write(*a, **k)))
    for step in range(300):
        run.log(step, {"train/loss": torch.tensor(float(step)), "train/learning_rate": 0.5})
    history = run.history()
    assert len(calls) <= 4
    assert list(history.columns) == ["step", "key", "value"]
    losses = history[history["key"] == "train/loss"]
    assert losses["value"].tolist() == [float(step) for step in range(300)]
    assert len(history) == 600

    run.log(299, {"train/loss": -1.0})  # a resumed loop logs its last steps again
    time.sleep(0.01)
    run.log(299, {"train/loss": -2.0})
    assert run.history().query("key == 'train/loss'")["value"].tolist()[-1] == -2.0


def test_tables_figures_values_and_inputs_are_kept(store):
    from datasets import Dataset
    from matplotlib.figure import Figure

    run = begin()
    run.table("scores", pd.DataFrame({"name": ["a", "b"], "score": [0.5, 0.25]}))
    run.table("scores", pd.DataFrame({"name": ["a"], "score": [1.0]}))
    run.figure("curve", Figure())
    run.json("predictions/a.json", {"logits": torch.ones(2), "path": Path("x")})
    run.input("sst2", store / "data", Dataset.from_dict({"input_ids": [[1, 2], [3]], "labels": [0, 1]}))
    run.input("corpus", "synthetic://made", "abc")
    kept = tracking.resolve(f"runs:/{run.run_id}/tables")
    table = json.loads((kept / "scores.json").read_text())
    assert table == {"columns": ["name", "score"], "data": [["a", 1.0]]}  # replaced, not appended to
    assert (kept.parent / "figures" / "curve.png").is_file()
    assert json.loads((kept.parent / "predictions" / "a.json").read_text()) == {"logits": [1.0, 1.0], "path": "x"}
    inputs = {entry.dataset.name: entry.dataset for entry in client().get_run(run.run_id).inputs.dataset_inputs}
    assert len(inputs["sst2"].digest) == 16
    assert json.loads(inputs["corpus"].source) == {"uri": "synthetic://made"}


def test_a_digest_depends_on_the_rows_alone():
    from datasets import Dataset

    rows = Dataset.from_dict({"input_ids": [[1, 2], [3], [4]], "labels": [0, 1, 0]})
    assert tracking.digest(rows) == tracking.digest(Dataset.from_dict(rows.to_dict()))
    assert tracking.digest(rows.select([2, 0, 1]).select([1, 2, 0])) == tracking.digest(rows)
    assert tracking.digest(rows.select([0, 1])) != tracking.digest(rows)


@pytest.mark.parametrize(
    ("status", "process"), [("RUNNING", DEAD), ("FAILED", DEAD), ("KILLED", DEAD), ("FAILED", FAR)]
)
def test_a_task_that_stopped_goes_on_in_its_run(store, status, process):
    before = begin()
    before.log(0, {"train/loss": 1.0})
    before.flush()
    put(before, status, process)
    after = begin()
    assert after.run_id == before.run_id
    after.log(1, {"train/loss": 0.5})
    after.finish()
    assert tracking.history(after.run_id)["value"].tolist() == [1.0, 0.5]
    tags = client().get_run(after.run_id).data.tags
    assert (tags["attempts"], tags["process"]) == ("2", machine.process())


@pytest.mark.parametrize(("status", "process"), [("FINISHED", DEAD), ("RUNNING", FAR)])
def test_a_finished_task_and_one_of_another_machine_get_a_new_run(store, status, process):
    before = begin()
    put(before, status, process)
    assert begin().run_id != before.run_id
    assert tracking.status(before.run_id) == status


def test_a_run_of_another_pipeline_is_left_and_closed(store):
    before = begin(parent_run_id="parent one")
    put(before, "RUNNING", DEAD)
    assert begin(parent_run_id="parent two").run_id != before.run_id
    assert tracking.status(before.run_id) == "KILLED"


def test_a_task_that_runs_in_another_process_is_refused(store, monkeypatch):
    monkeypatch.setattr(lookup, "ORPHAN_SECONDS", 0.1)
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        put(begin(), "RUNNING", machine.process(sleeper.pid))
        with pytest.raises(
            ValueError, match=rf"already running \(run .*, process {sleeper.pid}\); wait for it, stop it"
        ):
            begin()
    finally:
        sleeper.kill()
        sleeper.wait()
    begin()


def test_a_process_with_the_number_of_a_dead_one_is_another():
    host, pid, began = machine.process().split("/")
    assert machine.alive(f"{host}/{pid}/{began}") is True
    assert machine.alive(f"{host}/{pid}/{float(began) - 100}") is False
    assert machine.alive(DEAD) is False
    assert machine.alive(FAR) is None


def test_reap_closes_runs_of_dead_processes_only(store):
    dead, far, own = begin("a"), begin("b"), begin("c")
    put(dead, "RUNNING", DEAD)
    put(far, "RUNNING", FAR)
    assert tracking.reap() == [dead.run_id]
    assert [tracking.status(run.run_id) for run in (dead, far, own)] == ["KILLED", "RUNNING", "RUNNING"]
    assert tracking.reap(host="another-machine") == [far.run_id]


def test_the_error_of_a_failed_cell_is_kept_and_a_corrected_one_forgotten(store):
    run = begin()
    try:
        raise FileNotFoundError("no corpus.txt")
    except FileNotFoundError as error:
        run.fail(error)
    assert client().get_run(run.run_id).data.tags["error"] == "FileNotFoundError: no corpus.txt"
    assert tracking.status(run.run_id) == "FAILED"
    assert "test_tracking.py" in tracking.resolve(f"runs:/{run.run_id}/error.txt").read_text()
    run.finish()
    assert tracking.status(run.run_id) == "FINISHED"
    assert "error" not in client().get_run(run.run_id).data.tags


def test_the_first_run_of_a_stage_hands_its_result_to_the_runner(store, monkeypatch):
    report = store / "result.json"
    monkeypatch.setenv("COMPRESSKIT_RESULT", str(report))
    monkeypatch.setenv("COMPRESSKIT_EXPERIMENT", "pipeline/sst2")
    monkeypatch.setenv("COMPRESSKIT_PARENT_RUN", "the parent")
    first, second = begin("a"), begin("b")
    assert json.loads(report.read_text()) == {
        "run_id": first.run_id,
        "status": "RUNNING",
        "result": {"run_id": first.run_id},
    }
    second.finish({"score": 0})
    first.finish({"score": torch.tensor(0.5)})
    result = {"run_id": first.run_id, "score": 0.5}
    assert json.loads(report.read_text()) == {"run_id": first.run_id, "status": "FINISHED", "result": result}
    run = client().get_run(first.run_id)
    assert run.data.tags["mlflow.parentRunId"] == "the parent"
    assert client().get_experiment(run.info.experiment_id).name == "pipeline/sst2"


@pytest.fixture
def saved(store) -> Path:
    folder = store / "saved"
    folder.mkdir()
    (folder / "config.json").write_text('{"hidden_size": 4}')
    (folder / "model.safetensors").write_bytes(bytes(1000))
    return folder


def test_a_model_is_found_by_run_registry_and_folder(saved, tmp_path, monkeypatch):
    run = begin()
    uri = run.model(saved, card={"score": 0.5}, register="teacher-sst2", alias="best")
    other = begin("other")
    other.model(saved, register="teacher-sst2")
    monkeypatch.chdir(tmp_path)
    kept = tracking.resolve(uri)
    assert isinstance(kept, Path)
    assert (kept / "model.safetensors").read_bytes() == bytes(1000)
    assert json.loads((kept / "card.json").read_text()) == {"run_id": run.run_id, "score": 0.5}
    assert tracking.resolve("models:/teacher-sst2@best") == tracking.resolve("models:/teacher-sst2/1") == kept
    assert tracking.resolve("models:/teacher-sst2@latest") == tracking.resolve(f"runs:/{other.run_id}/model")
    assert tracking.resolve("saved") == saved  # below the project, wherever we stand
    assert tracking.resolve("google-bert/bert-base-uncased") == "google-bert/bert-base-uncased"
    assert tracking.model_digest(uri) == client().get_run(run.run_id).data.tags["model.digest"]
    assert run.finish()["model"] == uri


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("runs:/abc/model", "the store has no run abc"),
        ("models:/teacher@best", "no registered model 'teacher'; registered: student"),
        ("models:/student@best", "'student' has no version or alias 'best'; it has 1, latest"),
        ("models:/student", "names no registered model; write models:/<name>@<alias>"),
        ("./models/teacher", "no model folder ./models/teacher"),
        ("EMPTY", "kept no model"),
        ("FILE", "has no artifact nothing"),
    ],
)
def test_a_model_that_is_not_there_is_named(saved, source, message):
    run = begin()
    run.model(saved, register="student")
    empty = begin("empty")
    source = {"EMPTY": f"runs:/{empty.run_id}/model", "FILE": f"runs:/{run.run_id}/nothing"}.get(source, source)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        tracking.resolve(source)


def test_a_digest_changes_with_names_and_contents(saved):
    before = tracking.folder_digest(saved)
    assert tracking.folder_digest(saved) == before
    (saved / "config.json").write_text('{"hidden_size": 5}')
    changed = tracking.folder_digest(saved)
    (saved / "config.json").rename(saved / "config2.json")
    assert len({before, changed, tracking.folder_digest(saved)}) == 3


MEASURED = {
    "score": 0.921,
    "score_low": 0.9,
    "score_high": 0.94,
    "majority": 0.51,
    "metrics": {"eval/accuracy": 0.921, "eval/f1": 0.93, "eval/loss": 0.25},
    "rows": 741,
    "latency_p50_ms": 5.5,
    "latency_p95_ms": 6.5,
    "speedup": 2.5,
    "parameters": 14_500_000,
    "model_bytes": 58_000_000,
    "flops": 1.2e9,
    "sparsity": 0.8,
}


def enter(saved: Path, variant: str = "4l", task: str = "sst2", **changes) -> str:
    return tracking.leaderboard(
        task,
        system="tinybert",
        variant=variant,
        seed=42,
        measured={**MEASURED, **changes},
        params={"layers": 4, "heads": [12, 6]},
        source=changes.pop("source", "saved"),
        folder=saved,
        evaluated_by="the evaluating run",
        data_digest="d1",
    )


def test_the_leaderboard_converts_to_percent_and_readable_units(saved):
    run = client().get_run(enter(saved))
    assert run.info.run_name == "tinybert-4l-42"
    assert run.data.metrics == pytest.approx(
        {
            "score_pct": 92.1,
            "score_low_pct": 90,
            "score_high_pct": 94,
            "majority_pct": 51,
            "accuracy_pct": 92.1,
            "f1_pct": 93,
            "loss": 0.25,
            "rows": 741,
            "latency_p50_ms": 5.5,
            "latency_p95_ms": 6.5,
            "speedup_x": 2.5,
            "params_m": 14.5,
            "disk_mb": 58,
            "gflops": 1.2,
            "sparsity_pct": 80,
        }
    )
    assert run.data.params == {"layers": "4", "heads": "[12, 6]"}
    wanted = {"system": "tinybert", "stage": "final", "task": "sst2", "evaluated_from": str(saved), "data.digest": "d1"}
    assert wanted.items() <= run.data.tags.items()
    assert run.data.tags["model.digest"] == tracking.folder_digest(saved)
    assert {"git.commit", "dirty", "hardware"} <= set(run.data.tags)
    (model,) = client().search_logged_models([run.info.experiment_id])
    assert {m.key: m.value for m in model.metrics}["score_pct"] == pytest.approx(92.1)


def test_a_row_of_the_same_name_and_pipeline_is_replaced(saved, monkeypatch):
    monkeypatch.setenv("COMPRESSKIT_PARENT_RUN", "p1")
    enter(saved, score=0.5)
    last = enter(saved, score=0.6)
    enter(saved, "3l", score=0.7)
    table = tracking.leaderboard_table("sst2")
    assert table["name"].tolist() == ["tinybert-3l-42", "tinybert-4l-42"]  # best first
    assert table["run_id"].tolist()[1] == last
    assert list(table.columns[:5]) == ["name", "score_pct", "latency_p50_ms", "latency_p95_ms", "params_m"]
    assert table["pipeline_run_id"].tolist() == ["p1", "p1"]
    experiment = client().get_experiment_by_name("leaderboard/sst2").experiment_id
    assert len(client().search_runs([experiment])) == 2
    assert len(client().search_logged_models([experiment])) == 2

    monkeypatch.setenv("COMPRESSKIT_PARENT_RUN", "p2")
    newest = enter(saved, score=0.1)
    assert len(client().search_runs([experiment])) == 3  # another pipeline run: kept, but the table shows the newest
    assert tracking.leaderboard_table("sst2")["run_id"].tolist()[1] == newest
    assert tracking.leaderboard_table("sst2", "p1")["run_id"].tolist()[1] == last


def test_a_row_names_the_run_of_its_model(saved):
    run = begin()
    uri = run.model(saved, register="student", alias="best")
    for source in (uri, "models:/student@best"):
        row = client().get_run(enter(saved, source=source))
        assert (row.data.tags["model_run_id"], row.data.tags["model_uri"]) == (run.run_id, source)


def test_bad_rows_and_unknown_tasks_are_refused(saved):
    with pytest.raises(ValueError, match="a row of the leaderboard needs flops, rows"):
        tracking.leaderboard(
            "sst2",
            system="tinybert",
            variant="v",
            seed=0,
            measured={name: value for name, value in MEASURED.items() if name not in ("flops", "rows")},
            params={},
            source="saved",
            folder=saved,
            evaluated_by="",
            data_digest="",
        )
    enter(saved)
    with pytest.raises(ValueError, match=r"no results for task 'sst3' \(there are leaderboards for: sst2\)"):
        tracking.leaderboard_table("sst3")
    assert tracking.leaderboard_tasks() == ["sst2"]


def test_the_view_is_installed_once_and_opens_columns_order_and_scatter(saved):
    enter(saved)
    place = client().get_experiment_by_name("leaderboard/sst2")
    saved_view = json.loads(place.tags[TAG])
    assert {"name", "createdAt", "updatedAt", "state"} == set(saved_view)
    assert saved_view["state"].startswith("deflate;")
    state = json.loads(zlib.decompress(base64.b64decode(saved_view["state"].removeprefix("deflate;"))))
    metrics = [
        "score_pct",
        "latency_p50_ms",
        "latency_p95_ms",
        "speedup_x",
        "params_m",
        "disk_mb",
        "gflops",
        "sparsity_pct",
        "sparse_latency_p50_ms",
        "sparse_disk_mb",
    ]
    columns = [f"metrics.`{key}`" for key in metrics]
    assert state["selectedColumns"][:10] == state["columnOrder"][:10] == columns
    assert "tags.`system`" in state["selectedColumns"]
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`score_pct`", False)
    first = state["compareRunCharts"][0]
    assert (first["type"], first["xaxis"]["key"], first["yaxis"]["key"]) == ("SCATTER", "latency_p50_ms", "score_pct")
    assert first["metricSectionId"] == state["compareRunSections"][0]["uuid"]
    enter(saved, "3l")
    assert client().get_experiment_by_name("leaderboard/sst2").tags[TAG] == place.tags[TAG]
    url = tracking.view_url("sst2")
    assert url == f"http://127.0.0.1:5000/#/experiments/{place.experiment_id}/runs?viewStateShareKey=leaderboard"


def test_a_timing_keeps_its_raw_samples(store):
    measured = {"name": "tinybert-4l", "latency_p50_ms": 5.0, "latency_p95_ms": 6.0, "iqr_ms": 0.5, "relative_iqr": 0.1}
    measured |= {"rounds": 3, "threads": 1, "batch_size": 8, "seq_len": 128, "samples_ms": (5.0, 4.5, 6.0)}
    run = client().get_run(tracking.log_latency("this-host", measured, "saved"))
    assert run.info.run_name == "tinybert-4l-torch-b8-s128-t1"
    assert run.data.metrics["latency_p95_ms"] == 6.0
    samples = json.loads(tracking.resolve(f"runs:/{run.info.run_id}/tables").joinpath("samples.json").read_text())
    assert samples["data"] == [[0, 5.0], [1, 4.5], [2, 6.0]]


def test_runs_with_curves_are_those_of_the_task(store):
    run, other, flat = begin("a"), tracking.start("toy", "toy/mrpc", "other", {}), begin("b")
    run.log(0, {"train/loss": 1.0})
    other.log(0, {"train/loss": 1.0})
    flat.log(0, {"eval/accuracy": 1.0})
    for each in (run, other, flat):
        each.flush()
    assert list(tracking.runs_with_curves("sst2").values()) == [run.run_id]


def test_a_moved_project_keeps_its_artifacts(saved, store, tmp_path, monkeypatch):
    run = begin()
    run.model(saved, register="teacher")
    run.finish()
    moved = tmp_path / "moved"
    store.rename(moved)
    monkeypatch.setenv("COMPRESSKIT_HOME", str(moved))
    monkeypatch.chdir(moved)
    kept = tracking.resolve("models:/teacher@latest")
    assert kept == tracking.resolve(f"runs:/{run.run_id}/model")
    assert moved in kept.parents
    assert (kept / "model.safetensors").is_file()
    assert client().get_experiment("0").artifact_location == f"file://{moved}/mlruns/artifacts/Default"


def test_an_experiment_deleted_in_the_ui_comes_back(store):
    place = experiment_id("toy/sst2")
    client().delete_experiment(place)
    assert experiment_id("toy/sst2") == place
    assert begin().experiment == "toy/sst2"


@pytest.mark.long
def test_four_first_users_at_once_are_fine(tmp_path, monkeypatch, store):
    home = tmp_path / "fresh"
    for folder in ("notebooks", "params"):
        (home / folder).mkdir(parents=True)
    monkeypatch.setenv("COMPRESSKIT_HOME", str(home))
    program = (
        "import sys; from compresskit import tracking\n"
        "run = tracking.start('toy', 'toy/sst2', sys.argv[1], {})\n"
        "[run.log(step, {'train/loss': step}) for step in range(200)]\n"
        "run.finish()"
    )
    users = [
        subprocess.Popen([sys.executable, "-c", program, str(i)], stderr=subprocess.PIPE, text=True) for i in range(4)
    ]
    assert [(user.communicate()[1], user.returncode) for user in users] == [("", 0)] * 4
    found = client().search_runs([experiment_id("toy/sst2")])
    assert sorted(run.info.run_name for run in found) == list("0123")
    assert [len(tracking.history(run.info.run_id)) for run in found] == [200] * 4
