"""One stage: its notebook with checked parameters, executed by papermill, kept with the stage's run.

papermill checks nothing (an unknown name becomes a variable, "false" is true), so all is checked before it starts; and
MLflow would call a failed notebook's run FINISHED, so the last word on a run is spoken here.
"""

import errno
import json
import logging
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compresskit import tracking
from compresskit.running.processes import ends_with_launcher, environment
from compresskit.stages.params import Params, params_class

PLAIN_ERRORS = ("ValueError", "ParamsError", "FileNotFoundError", "NotADirectoryError", "FloatingPointError")
DISK_FULL = re.compile(rf"\[Errno ({errno.ENOSPC}|{errno.EFBIG}|{errno.EDQUOT})\]|database or disk is full")


@dataclass(frozen=True)
class Done:
    """A finished stage: its run, its result (`run_id`, `model`, numbers), its executed notebook as artifact URI."""

    stage: str
    run_id: str
    result: dict[str, Any]
    notebook: str
    seconds: float


class StageFailed(RuntimeError):
    """A stage's notebook stopped with an error; the message is the error's own, the cause has the traceback."""

    exit_code = 1

    def __init__(self, message: str, run_id: str):
        super().__init__(message)
        self.run_id = run_id


def run_stage(
    stage: str,
    params: Path | str | Params | None = None,
    changes: Iterable[str] = (),
    *,
    parent_run_id: str | None = None,
    experiment: str | None = None,
    deadline_s: float | None = None,
) -> Done:
    """Run a stage's notebook and record it.

    params: a YAML file, or parameters that are checked already; none: the defaults.  changes: NAME=VALUE each.
    deadline_s: for the whole notebook.  Raises ParamsError before anything runs, StageFailed when the notebook fails,
    KeyboardInterrupt on Ctrl-C and SIGTERM; the run is then FAILED or KILLED and keeps the notebook as far as it got.
    """
    checked = params if isinstance(params, Params) else params_class(stage).load(params, changes)
    notebook = notebook_path(stage)
    tracking.initialise()  # once, here, before a kernel and its children use the store
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="compresskit-") as folder:
        executed, report = Path(folder) / f"{stage}.ipynb", Path(folder) / "result.json"
        variables = {
            "COMPRESSKIT_HEADLESS": "1",
            "COMPRESSKIT_HOME": str(tracking.project_root()),
            "COMPRESSKIT_RESULT": str(report),
            "COMPRESSKIT_PARENT_RUN": parent_run_id,
            "COMPRESSKIT_EXPERIMENT": experiment,
            "MLFLOW_TRACKING_URI": tracking.store_uri(),
        }
        error: BaseException | None = None
        with environment(variables), _sigterm_as_interrupt(), ends_with_launcher():
            try:
                _execute(notebook, executed, checked.model_dump(mode="json"), deadline_s)
            except (Exception, KeyboardInterrupt) as raised:
                error = raised
                logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # nbclient leaves tasks that would complain
            outcome = _outcome(stage, report, checked, error, deadline_s)
        run_id = outcome["run_id"]
        _keep_notebook(run_id, executed)
    if isinstance(error, KeyboardInterrupt):
        raise KeyboardInterrupt(f"{stage} stopped; run {run_id} is KILLED, the next call goes on with it") from error
    if outcome["status"] != "FINISHED":
        raise StageFailed(f"{stage}: {outcome['error']} (run {run_id})", run_id) from error
    uri = f"runs:/{run_id}/notebook/{stage}.ipynb"
    return Done(stage, run_id, outcome["result"], uri, time.monotonic() - began)


def notebook_path(stage: str) -> Path:
    """The notebook of a stage.  Raises FileNotFoundError."""
    path = tracking.project_root() / "notebooks" / f"{stage}.ipynb"
    if not path.is_file():
        raise FileNotFoundError(f"stage {stage!r} has no notebook {path}")
    return path


def _execute(notebook: Path, executed: Path, parameters: Mapping[str, Any], deadline_s: float | None) -> None:
    import papermill

    began = time.monotonic()

    def left(cell: Any) -> int | None:  # papermill's own limit counts per cell
        return max(1, round(deadline_s - (time.monotonic() - began))) if deadline_s else None

    papermill.execute_notebook(
        notebook,
        executed,
        dict(parameters),
        kernel_name="python3",
        language="python",
        cwd=tracking.project_root(),
        progress_bar=False,
        stdout_file=sys.stdout,
        stderr_file=sys.stderr,
        timeout_func=left,
        extra_arguments=["--IPKernelApp.log_level=CRITICAL"],  # it warns at every start, and when it is stopped
    )


def _outcome(
    stage: str, report: Path, params: Params, error: BaseException | None, deadline_s: float | None
) -> dict[str, Any]:
    """What the stage reported about its run, made good where the notebook could not: {run_id, status, result, error}.

    A notebook that opened no run (it failed before, or it only reads) gets one, so that every execution is recorded.
    """
    if error is None and report.exists() and json.loads(report.read_text())["status"] == "FINISHED":
        return json.loads(report.read_text())
    if isinstance(error, KeyboardInterrupt):
        status, text = "KILLED", "interrupted"
    elif error is not None:
        status, text = "FAILED", _sentence(error, deadline_s)
    else:
        status, text = "FAILED", "the notebook ended without finishing its run; its last cell should do that"
    if report.exists():
        run_id = json.loads(report.read_text())["run_id"]
        tracking.close(run_id, status, text)
        return {"run_id": run_id, "status": status, "error": text}
    run = tracking.start(stage, stage, stage, params.model_dump(mode="json"), task_key=params.task_key(stage))
    if error is None:
        return {"run_id": run.run_id, "status": "FINISHED", "result": run.finish()}
    run.fail(text, status)
    return {"run_id": run.run_id, "status": status, "error": text}


def _sentence(error: BaseException, deadline_s: float | None) -> str:
    """The error in one sentence: the notebook's own message, without papermill's frame around it."""
    kind, text = getattr(error, "ename", type(error).__name__), str(getattr(error, "evalue", error)).strip()
    if kind == "CellTimeoutError":
        return f"stopped at its deadline of {deadline_s:g} s"
    if kind == "DeadKernelError":
        return "the notebook's process died; most often the machine had no memory left"
    if DISK_FULL.search(text):
        return f"the disk is full or a file has reached its size limit: {text}; make room and run again"
    return text if kind in PLAIN_ERRORS else f"{kind}: {text}" if text else kind


def _keep_notebook(run_id: str, executed: Path) -> None:
    """The executed notebook and its HTML page as artifacts under notebook/."""
    if not executed.exists():
        return
    import nbformat
    from nbconvert import HTMLExporter

    # the page must read the same without a network: no script is fetched
    exporter = HTMLExporter(require_js_url="", mathjax_url="", jquery_url="")
    page, _ = exporter.from_notebook_node(nbformat.read(executed, as_version=4))
    html = executed.with_suffix(".html")
    html.write_text(page, encoding="utf-8")
    for path in (executed, html):
        tracking.attach(run_id, path, "notebook")


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM like Ctrl-C: the kernel is stopped and the run is closed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before: Callable[..., Any] | int | None = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
