"""Trials in a journal file: each is done once, whoever takes it, and survives what happens to its machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from compresskit.stages import trials
from compresskit.stages.trials import Trials


def work(path: Path, owner_host: str) -> None:
    """A machine that takes every trial it can get."""
    with Trials(path, "search") as own:
        for number in range(12):
            if own.claim(number):
                time.sleep(0.02)
                own.finish(number, {"score": number / 10, "by": owner_host})


def claim_and_wait(path: Path) -> None:
    with Trials(path, "search") as own:
        assert own.claim(3)
        Path(f"{path}.claimed").touch()
        time.sleep(60)


def test_several_machines_do_each_trial_once_and_all_of_them_see_it(tmp_path):
    path, spawn = tmp_path / "shared.log", multiprocessing.get_context("spawn")
    machines = [spawn.Process(target=work, args=(path, name)) for name in "ab"]
    for machine in machines:
        machine.start()
    for machine in machines:
        machine.join()
        assert machine.exitcode == 0
    found = Trials(path, "search").finished()
    assert {number: result["score"] for number, result in found.items()} == {n: n / 10 for n in range(12)}
    assert path.read_text().count('"result"') == 12  # no trial twice
    assert Trials(path, "another search").finished() == {}


def test_a_trial_of_a_killed_process_is_free_at_once_and_an_incomplete_line_is_dropped(tmp_path):
    path, spawn = tmp_path / "trials.log", multiprocessing.get_context("spawn")
    machine = spawn.Process(target=claim_and_wait, args=(path,))
    machine.start()
    while not Path(f"{path}.claimed").exists():
        time.sleep(0.02)
    with Trials(path, "search") as own:
        assert not own.claim(3)
        assert own.claim(4)
        os.kill(machine.pid, signal.SIGKILL)
        machine.join()
        assert own.claim(3)
        assert not own.claim(3)
        own.finish(3, {"score": 0.5})
    with path.open("a") as file:
        file.write('{"op_code":5,"cut')
    again = Trials(path, "search")
    assert again.finished() == {3: {"score": 0.5}}
    assert again.claim(4)  # given back at the end of the context
    again.finish(4, {"score": 0.25})
    assert Trials(path, "search").finished() == {3: {"score": 0.5}, 4: {"score": 0.25}}


def test_a_claim_of_another_machine_counts_as_long_as_it_is_renewed(tmp_path, monkeypatch):
    path = tmp_path / "trials.log"
    monkeypatch.setattr(trials, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(trials, "LEASE_SECONDS", 0.4)
    with Trials(path, "search", owner="far:1:1.00") as far:
        assert far.claim(0)
        mine = Trials(path, "search")
        for _ in range(6):
            assert not mine.claim(0)
            time.sleep(0.15)
        far._stop.set()
        far._renewing.join()
        assert not mine.claim(0)
        time.sleep(0.6)
        assert mine.claim(0)


def test_a_result_is_not_kept_without_a_claim(tmp_path):
    with pytest.raises(KeyError):
        Trials(tmp_path / "trials.log", "search").finish(0, {"score": 1.0})
