"""The command line: quick help, one-line errors, exit codes."""

from __future__ import annotations

import resource
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from compresskit import running
from compresskit.cli import app
from compresskit.stages.params import ParamsError

HEAVY = {"torch", "transformers", "mlflow", "papermill", "datasets", "pandas", "nbconvert"}


def invoke(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["pipeline", "--help"], ["compare", "--help"]])
def test_help_loads_nothing_heavy_and_is_quick(arguments):
    program = (
        "import sys\nfrom compresskit.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print('LOADED', *{name.partition('.')[0] for name in sys.modules})"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "Usage: compresskit" in done.stdout
    loaded = set(done.stdout.rpartition("LOADED")[2].split())
    assert "typer" in loaded
    assert not loaded & HEAVY
    # processor time, whoever else is busy here; 0.25 s when measured alone
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ParamsError("x.yaml line 1: 'a' is no parameter"), 2, "compresskit: x.yaml line 1: 'a' is no parameter"),
        (ValueError("dev.tsv line 3:\n no label"), 1, "compresskit: dev.tsv line 3: no label"),
        (FileNotFoundError("no folder models/teacher"), 1, "compresskit: no folder models/teacher"),
        (OSError(28, "No space left on device", "x"), 1, "compresskit: [Errno 28] No space left on device: 'x'"),
        (running.StageFailed("toy: no data (run 1)", "1"), 1, "compresskit: toy: no data (run 1)"),
        (KeyboardInterrupt("toy stopped; run 1 is KILLED"), 130, "compresskit: toy stopped; run 1 is KILLED"),
        (KeyboardInterrupt(), 130, "compresskit: stopped"),
        (KeyError("seed"), 1, "compresskit: KeyError: 'seed' (--debug shows where)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)  # fmt: skip
def test_an_error_is_one_line_and_an_exit_code(monkeypatch, error, code, line):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(running, "run_stage", fail)
    done = invoke("run", "toy")
    assert (done.exit_code, done.stderr, done.stdout) == (code, line + "\n", "")
    if isinstance(error, Exception):
        debugged = invoke("run", "toy", "--debug")
        assert debugged.exit_code == code
        assert debugged.stderr.startswith("Traceback")
        assert debugged.stderr.endswith(line + "\n")


def test_the_arguments_arrive(monkeypatch, tmp_path):
    calls = []
    done = running.Done("toy", "1", {}, "runs:/1/notebook/toy.ipynb", 3.0)
    monkeypatch.setattr(running, "run_stage", lambda *a, **k: (calls.append((a, k)), done)[1])
    monkeypatch.setattr(running, "run_pipeline", lambda *a, **k: calls.append((a, k)))
    out = invoke("run", "toy", "-p", "toy-x.yaml", "--set", "a=1", "--set", "b=2", "--deadline", "5")
    assert out.stdout == "toy: 3 s, run 1, executed notebook runs:/1/notebook/toy.ipynb\n"
    assert invoke("pipeline", "p.yaml", "--dry-run", "--set", "data_dir=/d").exit_code == 0
    monkeypatch.setattr(running, "launch", lambda *a, **k: calls.append((a, k)))
    assert invoke("run", "toy", "--nproc", "2", "--set", "a=1").exit_code == 0
    assert calls.pop() == ((2, "toy", None, ["a=1"]), {"deadline_s": None})
    monkeypatch.setattr(running, "assist", lambda *a: calls.append(a))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("RANK", "1")
    assert invoke("run", "toy", "--set", "a=1").exit_code == 0
    assert calls.pop() == ("toy", None, ["a=1"])
    (stage, params, changes), settings = calls[0]
    assert (stage, str(params), changes, settings) == ("toy", "toy-x.yaml", ["a=1", "b=2"], {"deadline_s": 5.0})
    (file, changes), settings = calls[1]
    assert (str(file), changes, settings) == ("p.yaml", ["data_dir=/d"], {"dry_run": True, "restart": False})


def test_unknown_stages_and_files_end_with_two(toy):
    done = invoke("run", "toi")
    assert done.exit_code == 2
    assert "'toi' is no stage; did you mean 'toy'?" in done.stderr
    done = invoke("run", "toy", "-p", "params/toy-none.yaml")
    assert done.exit_code == 2
    assert done.stderr.startswith("compresskit: no file params/toy-none.yaml")


def test_a_typo_is_refused_by_the_installed_command_without_a_traceback(toy):
    done = toy.cli("run", "toy", "-p", toy.params("toy-x.yaml", "seed: 1\nlearning_rat: 5e-5\n"))
    assert done.code == 2
    assert done.out == ""
    assert done.err.endswith("line 2: 'learning_rat' is no parameter of toy; did you mean 'learning_rate'?\n")
    assert done.err.count("\n") == 1


def test_compare_needs_results_and_numbers(store):
    done = invoke("compare")
    assert (done.exit_code, done.stderr) == (
        1,
        "compresskit: there are no results yet; run a pipeline or the stage evaluate first\n",
    )
    done = invoke("compare", "sst2", "--at-least", "models=six")
    assert (done.exit_code, done.stderr) == (1, "compresskit: --at-least models=six: expected NAME=NUMBER\n")


def test_reap_and_doctor_report(store, capsys):
    assert invoke("reap").stdout == "0 runs closed\n"
    done = invoke("doctor")
    assert done.exit_code == 0, done.stderr
    assert f"sqlite:///{store}/mlruns/mlflow.db" in done.stdout
    assert "python3 (" in done.stdout


@pytest.mark.long
def test_the_ui_answers_on_loopback_with_two_processes(store):
    import urllib.request

    import psutil

    process = subprocess.Popen([sys.executable, "-m", "compresskit.cli", "ui", "--port", "5977"], cwd=store)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen("http://127.0.0.1:5977/health", timeout=2) as answer:
                    assert answer.status == 200
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.5)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) <= 3
        listening = {
            c.laddr.ip for child in children for c in child.net_connections() if c.status == psutil.CONN_LISTEN
        }
        assert listening == {"127.0.0.1"}
    finally:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.terminate()
        process.terminate()
        process.wait(timeout=30)
