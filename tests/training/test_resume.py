"""A killed run goes on to the weights, optimizer and random states of a run that nothing interrupted."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from compresskit.training.state import Best, TrainingState
from tests.training.resumable import FEW, PLAN

CASES = [f"{loop.__name__}/{moment}" for loop, moments in PLAN.items() for moment in moments]


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict[str, list[str]]:
    """What resumable.py found: all loops and moments in one process, because importing takes longest."""
    command = [sys.executable, "-m", "tests.training.resumable", str(tmp_path_factory.mktemp("runs"))]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)["report"]


@pytest.mark.parametrize("case", CASES)
def test_a_run_killed_at_this_moment_ends_bit_for_bit_like_one_that_was_not(case, report):
    assert report[case] == []


def test_every_loop_is_killed_between_saves_and_inside_one():
    for loop, moments in PLAN.items():
        assert set(FEW) <= set(moments) or loop.__name__ == "two_steps"


# ---- the file


def part(value: float) -> nn.Module:
    layer = nn.Linear(100, 100)
    nn.init.constant_(layer.weight, value)
    return layer


def test_a_new_folder_starts_at_step_zero_and_a_save_comes_back_with_its_random_state(tmp_path):
    state = TrainingState(tmp_path / "deep" / "run")
    assert state.restore({"model": part(1.0)}) == 0
    torch.manual_seed(3)
    state.save(7, {"model": part(2.0)})
    expected, other = torch.rand(2), part(0.0)
    torch.manual_seed(99)
    assert TrainingState(tmp_path / "deep" / "run").restore({"model": other}) == 7
    assert torch.equal(torch.rand(2), expected)
    assert other.weight.unique().item() == 2.0


def test_saves_come_when_the_last_one_is_old_enough(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("compresskit.training.state.time.monotonic", lambda: now[0])
    state = TrainingState(tmp_path, every_seconds=60)
    saved = []
    monkeypatch.setattr(state, "save", lambda step, parts: saved.append(step) or setattr(state, "_last", now[0]))
    for step in range(1, 11):
        now[0] += 25
        state.save_when_due(step, {})
    assert saved == [3, 6, 9]


def test_a_full_disk_is_a_clear_oserror_and_the_old_save_still_stands(tmp_path):
    state = TrainingState(tmp_path)
    state.restore({"model": part(0.0)})
    state.save(1, {"model": part(1.0)})
    before = (tmp_path / "state.pt").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(
            OSError, match=r"state.pt could not be written \(.*File too large\); make room and run the same"
        ) as e:
            state.save(2, {"model": part(2.0)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(e.value)
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
    assert (tmp_path / "state.pt").read_bytes() == before
    again = part(0.0)
    assert TrainingState(tmp_path).restore({"model": again}) == 1
    assert again.weight.unique().item() == 1.0


def test_ctrl_c_inside_a_save_leaves_the_old_one_and_nothing_half_written(tmp_path, monkeypatch):
    state = TrainingState(tmp_path)
    state.save(1, {"model": part(1.0)})
    before = (tmp_path / "state.pt").read_bytes()

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        state.save(2, {"model": part(2.0)})
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
    assert (tmp_path / "state.pt").read_bytes() == before


def test_a_file_of_another_run_is_refused_with_a_remedy(tmp_path):
    state = TrainingState(tmp_path)
    state.save(1, {"model": part(1.0), "pruner": Best()})
    cases = {
        "it holds model, pruner; this run has model": {"model": part(0.0)},
        "it holds model, pruner; this run has model, projection": {"model": part(0.0), "projection": part(0.0)},
        "size mismatch for weight": {"model": nn.Linear(3, 100), "pruner": Best()},
    }
    for reason, parts in cases.items():
        with pytest.raises(
            ValueError, match=rf"state.pt does not belong to this run \(.*{reason}.*delete it to start afresh"
        ) as e:
            state.restore(parts)
        assert "\n" not in str(e.value)


def test_a_damaged_file_is_refused_and_a_pickle_with_code_is_not_run(tmp_path):
    marker = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(marker),))

    state = TrainingState(tmp_path)
    state.save(1, {"model": part(1.0)})
    whole = (tmp_path / "state.pt").read_bytes()
    (tmp_path / "state.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="does not belong to this run"):
        state.restore({"model": part(0.0)})
    torch.save({"step": 1, "parts": Bomb()}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match="does not belong to this run"):
        state.restore({"model": part(0.0)})
    assert not marker.exists()


def test_a_finished_run_leaves_no_file(tmp_path):
    state = TrainingState(tmp_path)
    state.save(1, {"model": part(1.0)})
    state.discard()
    state.discard()
    assert list(tmp_path.iterdir()) == []
