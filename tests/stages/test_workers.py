"""Several processes: every job is done once, whoever dies; what cannot be done is said in one sentence."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
import torch

from compresskit.kernels.float32 import choose_float32_matmul
from compresskit.stages.workers import WorkerFailed, Workers

ROOT = Path(__file__).parents[2]


class Double:
    """Twice a number; some numbers bring trouble."""

    def __call__(self, job):
        number, folder = job
        if number == 13:
            raise ValueError("13 brings\nbad luck")
        if number == 7 and (folder / "once").exists():
            (folder / "once").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 9:
            os._exit(3)
        reckoning = (torch.get_num_threads(), torch.get_float32_matmul_precision())
        return {"twice": 2 * number, "pid": os.getpid(), "reckoning": reckoning}


def results(count, numbers, folder=Path()):
    with Workers(count, 1, Double) as workers:
        return dict(workers.results({f"job {n}": (n, folder) for n in numbers}))


def test_one_or_several_processes_give_the_same_results(capfd):
    here, there = results(1, range(5)), results(2, range(5))
    assert {name: found["twice"] for name, found in there.items()} == {f"job {n}": 2 * n for n in range(5)}
    assert {f["reckoning"] for f in there.values()} == {(1, choose_float32_matmul().precision)}
    assert [found["twice"] for found in here.values()] == [0, 2, 4, 6, 8]
    assert {found["pid"] for found in here.values()} == {os.getpid()}
    pids = {found["pid"] for found in there.values()}
    assert os.getpid() not in pids
    assert len(pids) <= 2
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert capfd.readouterr() == ("", "")


def test_a_job_whose_process_was_killed_is_done_by_another(tmp_path, capsys):
    (tmp_path / "once").touch()
    found = results(2, [7, 1, 2], tmp_path)
    assert sorted(value["twice"] for value in found.values()) == [2, 4, 14]
    assert capsys.readouterr().out == "job 7: its process ended with SIGKILL; tried again\n"


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (13, r"job 13: ValueError: 13 brings bad luck"),
        (9, r"job 9: 2 processes that worked on it ended with exit code 3; .* the same command again: .* kept"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(number, sentence):
    with pytest.raises(WorkerFailed, match=sentence):
        results(2, [number])


def test_workers_end_when_the_process_that_started_them_is_killed(tmp_path):
    script = tmp_path / "start.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, time
            from compresskit.stages.workers import Workers

            def make():
                print("ignored")
                return work

            def work(path):
                open(path, "w").write(str(os.getpid()))
                time.sleep(120)

            if __name__ == "__main__":
                with Workers(2, 1, make) as workers:
                    list(workers.results({"a": "first", "b": "second"}))
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, script], cwd=tmp_path, env=environment)
    pids = [int(read_when_there(tmp_path / name)) for name in ("first", "second")]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
        assert time.monotonic() < deadline, "the workers outlived the process that started them"
        time.sleep(0.1)


def read_when_there(path: Path) -> str:
    deadline = time.monotonic() + 300  # importing torch three times, on a busy machine
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} was not written"
        time.sleep(0.1)
    return path.read_text()
