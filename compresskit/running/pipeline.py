"""Stages in order, results handed on, a parent run over child runs; the next call goes on where this one stopped.

What is done stands in mlruns/pipelines/<name>-<key>.json.  A step is taken as done only while its parameters, earlier
steps' results included, are the same: after a correction in a params file just the steps that it touches run again.
"""

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from compresskit import tracking
from compresskit.running.plan import Plan, read_plan
from compresskit.running.stage import Done, StageFailed, run_stage


def run_pipeline(
    path: str | Path, changes: Iterable[str] = (), *, dry_run: bool = False, restart: bool = False
) -> dict[str, dict[str, Any]]:
    """Run a pipeline file; returns each step's result, {} for a dry run.

    An unfinished earlier call with the same variables is continued, unless `restart`; a finished one is run anew.
    Raises ParamsError before anything runs, StageFailed for the step that fails, KeyboardInterrupt when stopped.
    """
    plan = read_plan(path, changes)
    place = tracking.project_root() / "mlruns" / "pipelines" / f"{plan.name}-{plan.key()}.json"
    if dry_run:
        _show(plan, _unfinished(place))
        return {}
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place.with_suffix(".lock"))
    try:
        with lock.acquire(timeout=0):
            state = {} if restart else _unfinished(place)
            return _run(plan, place, state or {"pipeline": plan.name, "began": time.time(), "steps": {}})
    except Timeout as error:
        raise ValueError(f"pipeline {plan.name} runs already with the same variables ({lock.lock_file})") from error


def _run(plan: Plan, place: Path, state: dict[str, Any]) -> dict[str, dict[str, Any]]:
    _write(place, state)
    parent = tracking.start(
        "pipeline",
        plan.experiment,
        plan.name,
        plan.vars,
        tags={"pipeline": plan.name, "task": plan.task, "mlflow.source.name": plan.path, "mlflow.source.type": "LOCAL"},
        task_key=f"{place.stem}-{state['began']:.0f}",
    )
    parent.artifact(plan.path)
    began = time.monotonic()
    results: dict[str, dict[str, Any]] = {}
    try:
        for number, step in enumerate(plan.steps, start=1):
            params = step.params(results)
            key, title = params.task_key(step.stage), f"[{number}/{len(plan.steps)}] {step.id} ({step.stage})"
            saved = state["steps"].get(step.id)
            if saved and saved["task_key"] == key and tracking.status(saved["result"]["run_id"]) == "FINISHED":
                results[step.id] = saved["result"]
                print(f"{title}: done before, run {saved['result']['run_id']}", flush=True)
                continue
            print(f"{title}: starts", flush=True)
            done = run_stage(step.stage, params, parent_run_id=parent.run_id, experiment=plan.experiment)
            results[step.id] = done.result
            state["steps"][step.id] = _entry(done, key, step.plan_key())
            _write(place, state)
            print(f"{title}: {_duration(done.seconds)}, run {done.run_id}", flush=True)
    except (KeyboardInterrupt, StageFailed) as error:
        parent.fail(str(error) or "interrupted", "FAILED" if isinstance(error, StageFailed) else "KILLED")
        raise
    except Exception as error:
        parent.fail(error)
        raise
    parent.finish({"steps": results})
    _write(place, state | {"finished": True})
    print(f"pipeline {plan.name}: {_duration(time.monotonic() - began)}, run {parent.run_id}", flush=True)
    return results


def _entry(done: Done, task_key: str, plan_key: str) -> dict[str, Any]:
    return {"task_key": task_key, "plan_key": plan_key, "result": done.result, "seconds": done.seconds}


def _unfinished(place: Path) -> dict[str, Any]:
    """The state of an earlier call that did not get to its end, else {}."""
    state = json.loads(place.read_text()) if place.exists() else {}
    return {} if state.get("finished") else state


def _write(place: Path, state: dict[str, Any]) -> None:
    temporary = place.with_suffix(".tmp")
    temporary.write_text(json.dumps(state, indent=2))
    os.replace(temporary, place)


def _show(plan: Plan, state: dict[str, Any]) -> None:
    """Print the steps, what differs from their stages' defaults, and how long they took when they last ran."""
    took: dict[str, float] = {}
    for file in sorted(
        (tracking.project_root() / "mlruns" / "pipelines").glob("*.json"), key=lambda f: f.stat().st_mtime
    ):
        took |= {entry["plan_key"]: entry["seconds"] for entry in json.loads(file.read_text())["steps"].values()}
    print(f"pipeline {plan.name}: {len(plan.steps)} steps, experiment {plan.experiment}")
    done = {id for id, entry in state.get("steps", {}).items()}
    left, unknown = 0.0, 0
    for number, step in enumerate(plan.steps, start=1):
        seconds = took.get(step.plan_key())
        known = f"about {_duration(seconds)}" if seconds is not None else "time unknown"
        print(f"{number:>3} {step.id} ({step.stage}): {'done before' if step.id in done else known}")
        for name, value in step.values.items():
            print(f"      {name}: {json.dumps(value, default=str)}")
        if step.id not in done:
            left, unknown = left + (seconds or 0.0), unknown + (seconds is None)
    more = f", and {unknown} steps that have not run yet" if unknown else ""
    print(f"estimated: {left / 3600:.2f} hours{more}")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
