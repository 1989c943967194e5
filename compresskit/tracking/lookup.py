"""Runs by their id or their task: what became of them, what they logged, and which were left behind."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compresskit.tracking import machine
from compresskit.tracking.store import client

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import Run as MlflowRun

ABANDONED = "its process ended without closing the run"
LONGEST_TAG = 5000
ORPHAN_SECONDS = 10.0  # a kernel notices within about 2 s that its runner was killed


def status(run_id: str) -> str | None:
    """RUNNING, FINISHED, FAILED or KILLED; None for a run the store does not have."""
    from mlflow.exceptions import MlflowException

    try:
        run = client().get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run.info.status if run.info.lifecycle_stage == "active" else None


def close(run_id: str, status: str, error: str | None = None) -> None:
    """Set a run's last status, and its error as a tag."""
    if error:
        client().set_tag(run_id, "error", error[:LONGEST_TAG])
    client().set_terminated(run_id, status)


def attach(run_id: str, path: Path, folder: str | None = None) -> None:
    """Keep a file, or everything in a folder, with a run, also one that has ended."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there, so it cannot be kept with run {run_id}")
    keep = client().log_artifacts if path.is_dir() else client().log_artifact
    keep(run_id, str(path), folder)


def history(run_id: str) -> "pd.DataFrame":
    """All numbers of a run as rows (step, key, value), by key and step; of a step logged twice, the later value."""
    import pandas as pd

    keys = sorted(client().get_run(run_id).data.metrics)
    points = [m for key in keys for m in client().get_metric_history(run_id, key)]
    newest = {(m.key, m.step): m.value for m in sorted(points, key=lambda m: m.timestamp)}
    rows = [(step, key, value) for (key, step), value in sorted(newest.items())]
    return pd.DataFrame(rows, columns=["step", "key", "value"])


def run_params(run_id: str) -> dict[str, str]:
    """The parameters of a run, as texts."""
    return dict(client().get_run(run_id).data.params)


def read_json(run_id: str, path: str) -> Any:
    """A value that `Run.json` kept as the artifact `path`."""
    return json.loads(Path(client().download_artifacts(run_id, path)).read_text(encoding="utf-8"))


def pipeline_runs(name: str) -> dict[str, dict[str, str]]:
    """Finished runs of a pipeline by id, newest first: their parameters, as texts."""
    finished = f"tags.pipeline = '{name}' and attributes.status = 'FINISHED'"
    found = [run for e in client().search_experiments() for run in search(e.experiment_id, finished)]
    found.sort(key=lambda run: -run.info.start_time)
    return {run.info.run_id: dict(run.data.params) for run in found}


def seconds(run_id: str) -> float:
    """From the start of a run to its end."""
    info = client().get_run(run_id).info
    return (info.end_time - info.start_time) / 1000


def runs_with_curves(task: str) -> dict[str, str]:
    """Runs of the experiments `<task>` and `<system>/<task>` that logged train/…, newest first: name to run id."""
    experiments = [e for e in client().search_experiments() if task == e.name.rpartition("/")[2]]
    runs = [
        r for e in experiments for r in search(e.experiment_id) if any(k.startswith("train/") for k in r.data.metrics)
    ]
    runs.sort(key=lambda run: -run.info.start_time)
    return {f"{r.info.run_name} ({r.info.run_id[:8]})": r.info.run_id for r in runs}


def reap(host: str | None = None) -> list[str]:
    """Mark runs KILLED that say RUNNING while their process is gone.  Returns their ids.

    Only processes of this machine can be looked at; `host` names another one that is known to be down.
    """
    dead = []
    for experiment in client().search_experiments():
        for run in search(experiment.experiment_id, "attributes.status = 'RUNNING'"):
            if process := run.data.tags.get("process"):  # runs without it are not ours
                living = machine.alive(process)
                if living is False or (living is None and process.split("/")[0] == host):
                    close(run.info.run_id, "KILLED", ABANDONED)
                    dead.append(run.info.run_id)
    return dead


def search(experiment_id: str, condition: str = "") -> "Iterator[MlflowRun]":
    """The runs of an experiment that fit, newest first."""
    token = None
    while token != "":
        page = client().search_runs(
            [experiment_id], condition, order_by=["attributes.start_time DESC"], page_token=token
        )
        yield from page
        token = page.token or ""


def unfinished(experiment_id: str, task_key: str, parent_run_id: str | None) -> "MlflowRun | None":
    """The run a task shall go on with: stopped, and of the same parent.  Other abandoned ones become KILLED.

    Raises ValueError while another process works on the task.
    """
    deadline = time.monotonic() + ORPHAN_SECONDS
    while True:
        runs = [r for r in search(experiment_id, f"tags.task_key = '{task_key}'") if r.info.status != "FINISHED"]
        working = next((r for r in runs if _lives(r)), None)
        if working is None:
            break
        if time.monotonic() > deadline:
            process = working.data.tags["process"].split("/")[1]
            raise ValueError(
                f"this task is already running (run {working.info.run_id}, process {process}); "
                "wait for it, stop it, or change a parameter"
            )
        time.sleep(0.5)
    stopped = [r for r in runs if _lives(r) is False]
    ours = next((r for r in stopped if r.data.tags.get("mlflow.parentRunId") == parent_run_id), None)
    for run in stopped:
        if run is not ours and run.info.status == "RUNNING":
            close(run.info.run_id, "KILLED", ABANDONED)
    return ours


def _lives(run: "MlflowRun") -> bool | None:
    """Whether another process works on the run; None when only another machine could tell."""
    process = run.data.tags.get("process", "")
    if run.info.status != "RUNNING" or process == machine.process():
        return False
    return machine.alive(process)
