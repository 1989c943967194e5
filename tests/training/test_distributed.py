"""Several processes end with the weights, the numbers and the best checkpoint of one with the same batches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compresskit.training import distributed
from tests.training.resumable import differences

CASES = ["finetune", "token_means", "masked_words", "last_layers", "pruning", "impatient"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """found(case, size, rank): what together.py left; all in one process, because importing takes longest."""
    folder = tmp_path_factory.mktemp("together")
    command = [sys.executable, "-m", "tests.training.together", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]

    def read(case: str, size: int, rank: int = 0) -> dict[str, Any]:
        return torch.load(folder / case / f"{size}-{rank}.pt", weights_only=True)

    read.folder = folder
    return read


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for name in a:
        torch.testing.assert_close(
            a[name], b[name], rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_weights_and_numbers_are_those_of_one_process(case, size, found):
    alone, first = found(case, 1), found(case, size)
    assert_close(alone["weights"], first["weights"])
    assert alone["numbers"].keys() == first["numbers"].keys()
    assert "train/examples_per_second" in alone["numbers"][max(alone["numbers"])]  # by a clock that ticks when asked
    for step, numbers in alone["numbers"].items():
        expected = {**numbers, "train/tokens": numbers["train/tokens"] / size} if case == "token_means" else numbers
        if step % 3 == 0 and case == "token_means":
            expected = numbers  # seven rows: every process has all of them
        assert first["numbers"][step] == pytest.approx(expected, rel=1e-4)
    assert alone["best"]["step"] == first["best"]["step"]
    if case == "pruning":
        assert all(torch.equal(mask, first["masks"][name]) for name, mask in alone["masks"].items())


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_all_processes_hold_the_same_weights_best_and_numbers(case, size, found):
    first = found(case, size)
    for rank in range(1, size):
        other = found(case, size, rank)
        names = ("weights", "best", "numbers")
        assert differences({n: first[n] for n in names}, {n: other[n] for n in names}) == []


def test_only_the_first_process_evaluates_and_writes(found):
    assert found("finetune", 2)["asked"] == [0, 0, 0, 0]
    assert found("finetune", 2, 1)["asked"] == []
    states = {path.parent.name for path in (found.folder / "finetune").glob("state-*/state.pt")}
    assert states == {"state-1-0", "state-2-0", "state-3-0"}


def test_a_loss_that_is_no_number_in_one_process_stops_all_with_the_same_sentence(found):
    sentences = {found("one_bad_row", 3, rank)["error"] for rank in range(3)}
    assert sentences == {"the loss is nan at step 2 of train; lower learning_rate"}


def test_the_others_notice_a_process_that_dies(found):
    assert found("a_process_dies", 2)["error"] == "another process of this run has stopped; its own message says why"


def test_a_killed_run_of_two_goes_on_bit_for_bit_dropout_included(found):
    for rank in range(2):
        whole, broken = found("whole", 2, rank), found("broken", 2, rank)
        names = ("weights", "random") if rank == 0 else ("weights",)
        assert differences({n: whole[n] for n in names}, {n: broken[n] for n in names}) == []
        for numbers in (whole["numbers"], broken["numbers"]):
            numbers[7].pop("train/examples_per_second")  # of the steps since the process began
        assert broken["numbers"] == {step: whole["numbers"][step] for step in (4, 5, 6, 7)}
    assert not torch.equal(found("whole", 2)["random"], found("whole", 2, 1)["random"])


def test_a_process_of_its_own_shares_and_weighs_nothing(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "8")  # left there by something else
    distributed.start()
    batch = {"input_ids": torch.arange(6).view(3, 2)}
    assert (distributed.rank(), distributed.size()) == (0, 1)
    assert distributed.share(batch) is batch
    assert distributed.weight(torch.tensor([3, 0])).tolist() == [1.0, 1.0]
    state = torch.get_rng_state()
    distributed.reseed(1, 2)
    assert torch.equal(torch.get_rng_state(), state)
