"""Stages and pipelines through papermill, on a toy stage: what is refused, recorded, continued, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from compresskit import running, tracking
from compresskit.stages.params import ParamsError
from compresskit.tracking.store import client


def tags(run_id: str) -> dict[str, str]:
    return client().get_run(run_id).data.tags


def artifacts(run_id: str, folder: str) -> set[str]:
    return {Path(info.path).name for info in client().list_artifacts(run_id, folder)}


def all_runs(stage: str) -> list:
    experiments = [e.experiment_id for e in client().search_experiments()]
    return client().search_runs(experiments, f"tags.stage = '{stage}'")


def wait_for(path: Path, seconds: float = 60) -> str:
    deadline = time.monotonic() + seconds
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.1)
    return path.read_text()


def test_a_stage_runs_with_typed_parameters_and_keeps_its_notebook_and_result(toy, tmp_path, monkeypatch, capfd):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    params = toy.params("toy-quick.yaml", 'learning_rate: 5e-5\nshout: "no"\nnum_steps: 1e1\n')
    done = running.run_stage("toy", params, ["weights.task=2", "source=007"])
    run = client().get_run(done.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["learning_rate"] == "5e-05"
    assert run.data.params["shout"] == "False"
    assert run.data.params["weights.task"] == "2.0"
    assert run.data.metrics["train/loss"] == pytest.approx(0.1)  # the tenth step
    assert done.result == {"run_id": done.run_id, "model": f"runs:/{done.run_id}/model", "score": 0.75, "source": "007"}
    assert artifacts(done.run_id, "notebook") == {"toy.ipynb", "toy.html"}
    assert tracking.resolve(done.result["model"]).joinpath("config.json").is_file()
    page = tracking.resolve(f"runs:/{done.run_id}/notebook").joinpath("toy.html").read_text()
    assert "https://cdn" not in page.replace("https://cdnjs.cloudflare.com/ajax/libs/mermaid", "")
    out, err = capfd.readouterr()
    assert "training at 5e-05" in out
    assert err == ""  # neither the kernel's warning about TCP nor progress bars of MLflow
    assert list(elsewhere.iterdir()) == []  # the store is the project's, wherever we stand


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        ("temperatur: 2\nseed: 1", [], r"toy-bad.yaml line 1: 'temperatur' is no parameter of toy; known: fail_if, "),
        ("seed: 1\nlearning_rte: 2", [], r"toy-bad.yaml line 2: 'learning_rte' .*; did you mean 'learning_rate'\?"),
        ("num_steps: 3.7", [], r"toy-bad.yaml line 1: 'num_steps' should be a valid integer.*\(it is 3.7\)"),
        ("seed: 1", ["num_step=2"], r"--set num_step=2: 'num_step' is no parameter of toy; did you mean 'num_steps'\?"),
    ],
)
def test_bad_parameters_are_refused_before_anything_runs(toy, text, changes, message):
    with pytest.raises(ParamsError, match=message):
        running.run_stage("toy", toy.params("toy-bad.yaml", text), changes)
    assert all_runs("toy") == []


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("early", "toy: AssertionError: no data"),  # before the stage opened its run
        pytest.param("no finish", "toy: the notebook ended without finishing its run", marks=pytest.mark.long),
        ("disk", "toy: the disk is full or a file has reached its size limit: .*File too large"),
    ],
)
def test_trouble_becomes_one_sentence_and_a_failed_run(toy, trouble, message):
    with pytest.raises(running.StageFailed, match=message) as failed:
        running.run_stage("toy", None, [f"trouble={trouble}"])
    assert tracking.status(failed.value.run_id) == "FAILED"
    assert message.removeprefix("toy: ")[:20] in tags(failed.value.run_id)["error"]
    assert [run.info.run_id for run in all_runs("toy")] == [failed.value.run_id]


def test_a_notebook_that_opens_no_run_is_recorded_all_the_same(toy):
    done = running.run_stage("toy", None, ["trouble=no run"])
    run = client().get_run(done.run_id)
    assert (run.info.status, run.data.params["trouble"], run.data.tags["stage"]) == ("FINISHED", "no run", "toy")
    assert artifacts(done.run_id, "notebook") == {"toy.ipynb", "toy.html"}


@pytest.mark.long
def test_a_notebook_past_its_deadline_is_stopped_and_failed(toy):
    began = time.monotonic()
    with pytest.raises(running.StageFailed, match="stopped at its deadline of 6 s") as failed:
        running.run_stage("toy", None, ["trouble=wait"], deadline_s=6)
    assert time.monotonic() - began < 40
    assert tracking.status(failed.value.run_id) == "FAILED"
    assert not psutil.pid_exists(int(wait_for(toy.home / "waiting")))


@pytest.mark.long
def test_a_killed_kernel_is_a_failure_and_the_retry_goes_on_with_its_run(toy):
    changes = ["trouble=kill"]
    with pytest.raises(running.StageFailed, match="process died") as failed:
        running.run_stage("toy", None, changes)
    with pytest.raises(running.StageFailed) as again:
        running.run_stage("toy", None, changes)
    assert again.value.run_id == failed.value.run_id
    assert len(tracking.history(failed.value.run_id)) == 3  # steps logged twice count once


@pytest.fixture
def listening() -> Iterator[None]:
    """Ctrl-C arrives: a suite that a shell started in the background inherits that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_marks_the_run_killed_and_stops_the_kernel(toy, listening):
    def interrupt() -> None:
        wait_for(toy.home / "waiting")
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt, match=r"toy stopped; run .* is KILLED, the next call goes on with it"):
        running.run_stage("toy", None, ["trouble=wait"])
    (run,) = all_runs("toy")
    assert run.info.status == "KILLED"
    assert artifacts(run.info.run_id, "notebook") == {"toy.ipynb", "toy.html"}
    assert len(tracking.history(run.info.run_id)) == 3
    assert not psutil.pid_exists(int((toy.home / "waiting").read_text()))


@pytest.mark.long
def test_after_sigkill_of_the_runner_the_retry_goes_on_with_the_same_run(toy, listening):
    process = toy.start("run", "toy", "--set", "trouble=wait")
    kernel = int(wait_for(toy.home / "waiting"))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    (run,) = all_runs("toy")
    assert run.info.status in ("RUNNING", "KILLED")  # KILLED when the orphaned kernel had time to say so
    os.kill(kernel, signal.SIGKILL)
    (toy.home / "waiting").unlink()

    retry = toy.start("run", "toy", "--set", "trouble=wait")
    wait_for(toy.home / "waiting")
    assert [r.info.run_id for r in all_runs("toy")] == [run.info.run_id]
    assert tags(run.info.run_id)["attempts"] == "2"
    os.kill(retry.pid, signal.SIGINT)
    _, err = retry.communicate(timeout=60)
    assert retry.returncode == 130
    assert err.startswith("compresskit: toy stopped; run ")
    assert "Traceback" not in err
    assert tracking.status(run.info.run_id) == "KILLED"
    assert not psutil.pid_exists(int((toy.home / "waiting").read_text()))


PIPELINE = """
    name: small
    task: sst2
    vars: {lr: 0.25, block: none}
    defaults: {learning_rate: "${lr}"}
    steps:
      - {id: teacher, stage: toy, params: toy-teacher.yaml}
      - {id: student, stage: toy, params: {source: "${teacher.model}", fail_if: "${block}"}, set: {weights.task: 2}}
"""


def test_a_pipeline_records_a_failure_and_then_runs_only_what_is_left(toy, capsys):
    toy.params("toy-teacher.yaml", "seed: 1\n")
    path, block = toy.pipeline("small.yaml", PIPELINE), toy.home / "block"
    block.touch()
    with pytest.raises(running.StageFailed, match=r"^toy: .*block is in the way; remove it \(run ") as failed:
        running.run_pipeline(path, [f"block={block}"])
    student = failed.value.run_id
    assert tracking.status(student) == "FAILED"
    assert tags(student)["error"].endswith("block is in the way; remove it")
    assert artifacts(student, "notebook") == {"toy.ipynb", "toy.html"}
    assert "Traceback" in tracking.resolve(f"runs:/{student}/error.txt").read_text()
    (parent,) = all_runs("pipeline")
    assert parent.info.status == "FAILED"
    assert "in the way" in parent.data.tags["error"]
    assert client().get_experiment(parent.info.experiment_id).name == "small/sst2"

    block.unlink()
    results = running.run_pipeline(path, [f"block={block}"])
    out = capsys.readouterr().out
    assert "[1/2] teacher (toy): done before" in out
    assert results["student"]["source"] == results["teacher"]["model"]
    assert results["student"]["run_id"] == student  # the same task: its run goes on and is no failure any more
    assert tags(student)["attempts"] == "2"
    assert "error" not in tags(student)
    assert {tracking.status(run_id) for run_id in (student, parent.info.run_id)} == {"FINISHED"}
    assert len(all_runs("toy")) == 2
    assert {run.data.tags["mlflow.parentRunId"] for run in all_runs("toy")} == {parent.info.run_id}
    assert {run.data.params["learning_rate"] for run in all_runs("toy")} == {"0.25"}

    running.run_pipeline(path, dry_run=True)
    out = capsys.readouterr().out
    assert "1 teacher (toy): about" in out
    assert "2 student (toy): time unknown" in out  # with block=none it has not run yet
    assert 'source: "${teacher.model}"' in out
    state = next((toy.home / "mlruns" / "pipelines").glob("small-*.json"))
    assert json.loads(state.read_text())["finished"] is True


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("${teacher.model}", "${techer.model}", r"\$\{techer.model\}: 'techer' is no step; did you mean 'teacher'"),
        ("${teacher.model}", "${student.model}", "'student' comes later or is the step itself"),
        ("${teacher.model}", "${teacher.modl}", "stage toy returns no 'modl'; did you mean 'model'"),
        ("${block}", "${blok}", "is no variable; did you mean 'block'"),
        ("task: sst2", "task: ${blok}", "is no variable; did you mean 'block'"),
        ("stage: toy, params: {", "stage: toi, params: {", "step 'student': 'toi' is no stage; did you mean 'toy'"),
        ("fail_if:", "fail_iff:", "step 'student': 'fail_iff' is no parameter of toy; did you mean 'fail_if'"),
        ("id: student", "id: teacher", "step 'teacher': an earlier step has this id"),
        ("steps:", "stepz:", "small.yaml line 6: 'stepz' is no parameter of pipeline; did you mean 'steps'"),
        ("toy-teacher.yaml", "toy-teecher.yaml", "no file .*toy-teecher.yaml; did you mean 'toy-teacher.yaml'"),
        ("learning_rate:", "learning_rat:", "no step has a parameter 'learning_rat'; did you mean 'learning_rate'"),
        ("lr: 0.25", "lr: fast", "'learning_rate' should be a valid number.*fast"),
        ("lr: 0.25", "lr:", "variable 'lr' has no value; give --set lr="),
        ("set: {weights.task: 2}", "set: {seed.a: 2}", "'seed' is no mapping"),
    ],
)  # fmt: skip
def test_a_pipeline_is_checked_whole_before_anything_runs(toy, old, new, message):
    toy.params("toy-teacher.yaml", "seed: 1\n")
    assert old in PIPELINE
    with pytest.raises(ParamsError, match=message):
        running.run_pipeline(toy.pipeline("small.yaml", PIPELINE.replace(old, new)))
    assert all_runs("toy") == []
    assert not (toy.home / "mlruns" / "pipelines").exists()


def test_a_wrong_value_in_a_steps_file_is_reported_with_file_and_line(toy):
    toy.params("toy-teacher.yaml", "seed: 1\nnum_steps: many\n")
    with pytest.raises(ParamsError, match=r"toy-teacher.yaml line 2: 'num_steps' should be a valid integer"):
        running.run_pipeline(toy.pipeline("small.yaml", PIPELINE))


def test_data_comes_from_set_or_the_environment(toy, monkeypatch, capsys):
    path = toy.pipeline(
        "d.yaml", 'name: d\nvars: {data_dir: }\nsteps: [{id: a, stage: toy, params: {source: "${data_dir}"}}]'
    )
    with pytest.raises(ParamsError, match="'data_dir' has no value; give --set data_dir=…, or set COMPRESSKIT_DATA"):
        running.run_pipeline(path, dry_run=True)
    monkeypatch.setenv("COMPRESSKIT_DATA", "/from/environment")
    running.run_pipeline(path, dry_run=True)
    running.run_pipeline(path, ["data_dir=/from/set"], dry_run=True)
    out = capsys.readouterr().out
    assert out.index('source: "/from/environment"') < out.index('source: "/from/set"')


@pytest.mark.long
def test_a_pipeline_that_runs_already_is_refused(toy):
    toy.params("toy-teacher.yaml", "trouble: wait\n")
    path = toy.pipeline("small.yaml", PIPELINE)
    first = toy.start("pipeline", path)
    wait_for(toy.home / "waiting")
    with pytest.raises(ValueError, match="pipeline small runs already"):
        running.run_pipeline(path)
    os.kill(first.pid, signal.SIGTERM)
    first.communicate(timeout=60)
    assert first.returncode == 130
    assert {run.info.status for run in all_runs("toy") + all_runs("pipeline")} == {"KILLED"}
