"""What several tests share: a project with an initialised store, a toy stage in it, and seeded generators."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

SETTINGS = [
    "COMPRESSKIT_HOME",
    "COMPRESSKIT_DATA",
    "COMPRESSKIT_PARENT_RUN",
    "COMPRESSKIT_EXPERIMENT",
    "COMPRESSKIT_RESULT",
    "COMPRESSKIT_HEADLESS",
    "MLFLOW_TRACKING_URI",
]


@pytest.fixture(scope="session")
def seeded() -> Callable[[int], Any]:
    """seeded(0): a torch.Generator with that seed."""
    import torch

    return lambda seed: torch.Generator().manual_seed(seed)


@pytest.fixture(scope="session")
def store_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty initialised store, made once: creating the tables takes seconds. Workers of pytest-xdist share it."""
    from compresskit import tracking

    base = tmp_path_factory.getbasetemp()
    home = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "store_template"
    with pytest.MonkeyPatch.context() as patch:
        for name in SETTINGS:
            patch.delenv(name, raising=False)
        patch.setenv("COMPRESSKIT_HOME", str(home))
        tracking.initialise()
    return home / "mlruns"


@pytest.fixture
def store(store_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project folder of this test alone, with notebooks/, params/ and an empty store; COMPRESSKIT_HOME names it."""
    from compresskit.tracking import runs

    home = tmp_path / "project"
    for folder in ("notebooks", "params/pipelines"):
        (home / folder).mkdir(parents=True)
    shutil.copytree(store_template, home / "mlruns")
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COMPRESSKIT_HOME", str(home))
    monkeypatch.chdir(home)
    yield home
    runs._open.clear()  # what a test leaves open must not be closed at exit, in another store


TOY_STAGE = """
import os, signal, time
from pathlib import Path
from compresskit import tracking
from compresskit.stages.params import Params

class ToyParams(Params):
    source: str = ""
    learning_rate: float = 0.5
    num_steps: int = 3
    shout: bool = False
    weights: dict[str, float] = {"task": 1.0}
    fail_if: str = ""    # a file; the stage fails while it exists
    trouble: str = ""    # what goes wrong in the middle
    seed: int = 0
    results = ("run_id", "model", "score")

def open_run(params):
    if params.trouble == "no run":
        return None
    return tracking.start("toy", "toy/sst2", "toy", params.model_dump(mode="json"), task_key=params.task_key())

def train(run, params):
    if params.fail_if and Path(params.fail_if).exists():
        raise ValueError(f"{params.fail_if} is in the way; remove it")
    for step in range(params.num_steps if run else 0):
        run.log(step, {"train/loss": 1.0 / (step + 1)})
    if params.trouble == "kill":
        run.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    if params.trouble == "disk":
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        Path(os.environ["COMPRESSKIT_HOME"], "big").write_bytes(bytes(100_000))
    if params.trouble == "wait":
        run.flush()
        Path(os.environ["COMPRESSKIT_HOME"], "waiting").write_text(str(os.getpid()))
        time.sleep(120)

def finish(run, params):
    if params.trouble in ("no run", "no finish"):
        return
    folder = Path(os.environ["COMPRESSKIT_HOME"], "saved")
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    run.model(folder, card={"seed": params.seed})
    run.finish({"score": 0.75, "source": params.source})
"""
TOY_CELLS = [
    ("parameters", "source = ''\nlearning_rate = 0.5\nnum_steps = 3\nshout = False\nweights = {'task': 1.0}\n"
                   "fail_if = ''\ntrouble = ''\nseed = 0"),
    ("", "import compresskit.stages\ncompresskit.stages.__path__.append(FOLDER)\nfrom compresskit.stages import toy\n"
         "params = toy.ToyParams.take(globals())\nassert params.trouble != 'early', 'no data'\n"
         "run = toy.open_run(params)"),
    ("", "print('training at', params.learning_rate)\ntoy.train(run, params)"),
    ("", "toy.finish(run, params)"),
]  # fmt: skip


@pytest.fixture
def toy(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A project whose only notebook is that of the stage `toy`, which takes a second and can be told to fail.

    toy.home: the project.  toy.params(name, text), toy.pipeline(name, text): write a file, return its path.
    toy.cli(*arguments): the command line in a process of its own, as finished process; toy.start: still running.
    """
    import nbformat

    from compresskit import stages

    folder = tmp_path / "toy_stages"
    folder.mkdir()
    (folder / "toy.py").write_text(TOY_STAGE)
    monkeypatch.setattr(stages, "__path__", [*stages.__path__, str(folder)])
    monkeypatch.delitem(sys.modules, "compresskit.stages.toy", raising=False)
    monkeypatch.delattr(stages, "toy", raising=False)

    notebook = nbformat.v4.new_notebook()
    for tag, source in TOY_CELLS:
        cell = nbformat.v4.new_code_cell(source.replace("FOLDER", repr(str(folder))))
        cell.metadata["tags"] = [tag] if tag else []
        notebook.cells.append(cell)
    nbformat.write(notebook, store / "notebooks" / "toy.ipynb")

    def write(place: str) -> Callable[[str, str], Path]:
        def write_file(name: str, text: str) -> Path:
            path = store / place / name
            path.write_text(textwrap.dedent(text))
            return path

        return write_file

    program = (
        f"import compresskit.stages as s; s.__path__.append({str(folder)!r}); from compresskit.cli import main; main()"
    )

    def start(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", program, *map(str, arguments)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)

    def cli(*arguments: object) -> SimpleNamespace:
        process = start(*arguments)
        out, err = process.communicate(timeout=120)
        return SimpleNamespace(code=process.returncode, out=out, err=err)

    return SimpleNamespace(home=store, params=write("params"), pipeline=write("params/pipelines"), cli=cli, start=start)
