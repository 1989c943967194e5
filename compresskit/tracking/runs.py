"""One run: what a stage did, with which parameters, on which machine, and how far it got.

A task (stage, parameters, version) that stopped half-way goes on in the run it had: same id, one history.
"""

import atexit
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compresskit.tracking import lookup, machine, models
from compresskit.tracking.store import client, experiment_id

if TYPE_CHECKING:
    import pandas as pd

FLUSH_ENTRIES, FLUSH_SECONDS = 200, 5.0  # 100 single metric calls take 1.5 s on sqlite, one batch of 1000 takes 0.1 s

_open: dict[str, "Run"] = {}  # runs of this process that have not finished


class Run:
    """A run that numbers, tables, figures and models are written to.  Made by `start`."""

    def __init__(self, run_id: str, experiment: str, name: str):
        self.run_id, self.experiment, self.name = run_id, experiment, name
        self.status = "RUNNING"
        self.model_uri: str | None = None
        self._client = client()
        self._waiting: list[tuple[int, str, Any, int]] = []
        self._flushed = time.monotonic()

    def log(self, step: int, numbers: Mapping[str, Any]) -> None:
        """Keep numbers (or tensors of one element) of optimizer step `step`; written in batches."""
        now = int(time.time() * 1000)
        self._waiting += [(step, key, value, now) for key, value in numbers.items()]
        if len(self._waiting) >= FLUSH_ENTRIES or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the numbers that wait."""
        from mlflow.entities import Metric

        waiting, self._waiting, self._flushed = self._waiting, [], time.monotonic()
        metrics = [Metric(key, float(value), moment, step) for step, key, value, moment in waiting]
        for first in range(0, len(metrics), 1000):
            self._client.log_batch(self.run_id, metrics=metrics[first : first + 1000])

    def history(self) -> "pd.DataFrame":
        """All numbers so far, of earlier attempts too, as rows (step, key, value)."""
        self.flush()
        return lookup.history(self.run_id)

    def tag(self, tags: Mapping[str, Any]) -> None:
        """Set tags; None leaves one as it is."""
        from mlflow.entities import RunTag

        self._client.log_batch(self.run_id, tags=[RunTag(key, text) for key, text in _texts(tags).items()])

    def table(self, name: str, rows: "pd.DataFrame") -> None:
        """Keep a table as `tables/<name>.json`, which the UI shows; the same name again replaces it."""
        text = rows.to_json(orient="split", index=False, date_format="iso")
        self._client.log_text(self.run_id, text, f"tables/{name}.json")

    def figure(self, name: str, figure: Any) -> None:
        """Keep a matplotlib or plotly figure under figures/."""
        suffix = "png" if hasattr(figure, "savefig") else "html"
        self._client.log_figure(self.run_id, figure, f"figures/{name}.{suffix}")

    def json(self, path: str, value: Any) -> None:
        """Keep a value as the artifact `path`, which ends in .json."""
        self._client.log_text(self.run_id, json.dumps(value, indent=2, default=_plain), path)

    def artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Keep a file, or everything in a folder, in the artifact folder `folder`."""
        lookup.attach(self.run_id, Path(path), folder)

    def input(self, name: str, source: str | Path, rows: Any) -> None:
        """Say which data the run read: a name, where it lay, and its rows (a data set) or their digest (a text)."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        text = rows if isinstance(rows, str) else models.digest(rows)
        place = json.dumps({"uri": str(source)})  # built by hand: the resolver refuses sources it does not know
        data = Dataset(name, text[:36], "local", place)
        self._client.log_inputs(self.run_id, datasets=[DatasetInput(data, [InputTag("mlflow.data.context", "input")])])

    def model(
        self,
        folder: str | Path,
        card: Mapping[str, Any] | None = None,
        register: str | None = None,
        alias: str | None = None,
    ) -> str:
        """Keep a saved model folder as artifact `model/`.  Returns runs:/<id>/model.

        card: typed results that travel with the model, written beside it as card.json.  register, alias: its name in
        the registry.
        """
        folder = Path(folder)
        if card is not None:
            _write(folder / "card.json", json.dumps({"run_id": self.run_id, **card}, indent=2, default=_plain))
        lookup.attach(self.run_id, folder, "model")
        self.tag({"model.digest": models.folder_digest(folder)})  # last: says that the upload is whole
        self.model_uri = f"runs:/{self.run_id}/model"
        if register:
            models.register(register, self.run_id, alias)
        return self.model_uri

    def finish(self, result: Mapping[str, Any] | None = None, status: str = "FINISHED") -> dict[str, Any]:
        """End the run and hand its result on: {"run_id", "model" when one was kept, and what `result` adds}."""
        self.flush()
        kept = {"run_id": self.run_id} | ({"model": self.model_uri} if self.model_uri else {}) | dict(result or {})
        kept = json.loads(json.dumps(kept, default=_plain))
        self.json("result.json", kept)
        if status == "FINISHED" and "error" in self._client.get_run(self.run_id).data.tags:
            self._client.delete_tag(self.run_id, "error")  # of an earlier attempt, or of a cell that was corrected
        self._end(status)
        _open.pop(self.run_id, None)
        _hand_over(self.run_id, status, kept)
        return kept

    def fail(self, error: BaseException | str, status: str = "FAILED") -> None:
        """End the run with its error; a Ctrl-C should come with status KILLED."""
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        _hand_over(self.run_id, status, {"run_id": self.run_id, "error": text})
        self._end(status, text)
        if isinstance(error, BaseException):
            self._client.log_text(self.run_id, "".join(traceback.format_exception(error)), "error.txt")

    def _end(self, status: str, error: str | None = None) -> None:
        self.status = status
        try:
            self.flush()
        finally:
            self.tag({"error": error})
            self._client.set_terminated(self.run_id, status)


class SilentRun(Run):
    """Takes what a run takes and keeps nothing: for the processes that help another one train."""

    def __init__(self) -> None:
        self.run_id = self.experiment = self.name = ""
        self.status, self.model_uri = "RUNNING", None

    def _ignore(self, *_: Any, **__: Any) -> None:
        pass

    log = flush = tag = table = figure = json = artifact = input = fail = _ignore

    def history(self) -> "pd.DataFrame":
        """No numbers."""
        import pandas as pd

        return pd.DataFrame(columns=["step", "key", "value"])

    def model(self, *_: Any, **__: Any) -> str:
        """No model."""
        return ""

    def finish(self, *_: Any, **__: Any) -> dict[str, Any]:
        """No result."""
        return {}


def start(
    stage: str,
    experiment: str,
    name: str,
    params: Mapping[str, Any],
    *,
    tags: Mapping[str, Any] | None = None,
    task_key: str | None = None,
    parent_run_id: str | None = None,
) -> Run:
    """Open the run of a task: the one it had when it was interrupted or failed, else a new one.

    experiment: used unless a pipeline runs the stage and names its own (COMPRESSKIT_EXPERIMENT).  parent_run_id: the
    pipeline's run by default (COMPRESSKIT_PARENT_RUN).  Raises ValueError while the same task runs in another process.
    """
    experiment = os.environ.get("COMPRESSKIT_EXPERIMENT") or experiment
    parent_run_id = parent_run_id or os.environ.get("COMPRESSKIT_PARENT_RUN") or None
    place, c = experiment_id(experiment), client()
    labels: dict[str, Any] = {**machine.tags(), "stage": stage, "task_key": task_key}
    labels |= {"mlflow.source.name": f"notebooks/{stage}.ipynb", "mlflow.source.type": "NOTEBOOK"}
    labels |= {"mlflow.parentRunId": parent_run_id, **(tags or {})}

    before = lookup.unfinished(place, task_key, parent_run_id) if task_key else None
    if before is None:
        run = Run(c.create_run(place, run_name=name, tags=_texts(labels)).info.run_id, experiment, name)
        _hand_over(run.run_id, "RUNNING", {"run_id": run.run_id}, first=True)
        _log_params(run, params)
        freeze = sorted({f"{d.metadata['Name']}=={d.version}" for d in distributions()})
        c.log_text(run.run_id, "\n".join(freeze) + "\n", "environment.txt")
    else:
        run = Run(before.info.run_id, experiment, name)
        _hand_over(run.run_id, "RUNNING", {"run_id": run.run_id}, first=True)
        run.tag({**labels, "attempts": int(before.data.tags.get("attempts", "1")) + 1})
        c.update_run(run.run_id, status="RUNNING")
    _open[run.run_id] = run
    _watch()
    return run


def _texts(tags: Mapping[str, Any]) -> dict[str, str]:
    """Tags as text: a tracking server refuses an int, and nothing takes more than 8000 characters."""
    return {key: str(value)[: lookup.LONGEST_TAG] for key, value in tags.items() if value is not None}


def _log_params(run: Run, params: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    entries = [Param(key, value) for key, value in _flat(params)]
    for first in range(0, len(entries), 100):
        client().log_batch(run.run_id, params=entries[first : first + 100])
    run.json("params.json", dict(params))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            plain = isinstance(value, str | int | float | None)
            yield prefix + key, (str(value) if plain else json.dumps(value, default=_plain))[:6000]  # MLflow's limit


def _plain(value: Any) -> Any:
    """JSON for what json does not know: numpy and torch scalars and arrays as numbers, the rest (paths) as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def _hand_over(run_id: str, status: str, result: Mapping[str, Any], first: bool = False) -> None:
    """Tell the runner of a stage, in the file COMPRESSKIT_RESULT, about its run: the one that came `first`."""
    if not (place := os.environ.get("COMPRESSKIT_RESULT")):
        return
    path = Path(place)
    if (json.loads(path.read_text())["run_id"] != run_id) if path.exists() else not first:
        return
    _write(path, json.dumps({"run_id": run_id, "status": status, "result": dict(result)}))


def _after_cell(outcome: Any) -> None:
    """IPython calls this after each cell: a failed one ends the open runs, which MLflow would call FINISHED."""
    error = outcome.error_before_exec or outcome.error_in_exec
    if error is not None:
        _fail_open(error, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")


def _at_exit() -> None:
    _fail_open("the process ended before the run was finished", "KILLED")


def _fail_open(error: BaseException | str, status: str) -> None:
    """Close what runs; where the store cannot be written either (a full disk), one line says so."""
    for run in _open.values():
        if run.status == "RUNNING":
            try:
                run.fail(error, status)
            except Exception as trouble:
                reason = str(trouble).partition("\n")[0]
                print(f"run {run.run_id} could not be marked {status}: {reason}", file=sys.stderr)


def _watch() -> None:
    """Look out for failing cells and for the end of the process, once per process."""
    if getattr(_watch, "done", False):
        return
    _watch.done = True  # type: ignore[attr-defined]
    atexit.register(_at_exit)
    ipython = sys.modules.get("IPython")
    if ipython is not None and (shell := ipython.get_ipython()) is not None:
        shell.events.register("post_run_cell", _after_cell)
