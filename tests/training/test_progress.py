"""Progress: plain lines with the time left where nobody watches, a bar where somebody does."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest

from compresskit.training import progress
from compresskit.training.progress import HEADLESS, Progress


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """Time as the test sets it."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def headless(monkeypatch):
    monkeypatch.setenv(HEADLESS, "1")


@pytest.mark.usefixtures("headless")
def test_headless_lines_are_plain_at_least_15_seconds_apart_and_tell_the_time_left(clock, capsys):
    spoken = []
    with Progress("distill", 100) as shown:
        for step in range(1, 101):
            clock.now += 2.0
            shown.at(step, loss=1 / step)
            line = capsys.readouterr().out
            if line:
                spoken.append((clock.now, line))
    assert [line for _, line in spoken][:2] == [
        "distill: 8 of 100, 2 s each, 03:04 left, loss 0.125\n",
        "distill: 16 of 100, 2 s each, 02:48 left, loss 0.0625\n",
    ]
    assert spoken[-1][1] == "distill: 100 of 100, 2 s each, 00:00 left, loss 0.01\n"
    assert len(spoken) == 13  # every 16 s and at the end
    times = [time for time, _ in spoken[:-1]]
    assert all(b - a >= 15 for a, b in pairwise(times))


@pytest.mark.usefixtures("headless")
def test_a_resumed_run_judges_the_time_left_by_its_own_steps(clock, capsys):
    with Progress("distill", 100, start=80) as shown:
        clock.now += 30.0
        shown.at(90)
    assert capsys.readouterr().out == "distill: 90 of 100, 3 s each, 00:30 left\n"


@pytest.mark.usefixtures("headless", "clock")
def test_a_quick_run_says_one_line_at_its_end(capsys):
    with Progress("prune", 5) as shown:
        for step in range(1, 6):
            shown.at(step)
    out, err = capsys.readouterr()
    assert out == "prune: 5 of 5, 0 s each, 00:00 left\n"
    assert err == ""


def test_a_bar_is_drawn_by_hand_and_closed_after_an_error(monkeypatch, capsys):
    monkeypatch.delenv(HEADLESS, raising=False)
    shown = Progress("finetune", 4, start=1)

    def stumble() -> None:
        with shown:
            shown.at(2, loss=0.25)
            shown.at(4, loss=0.125)
            raise KeyError

    with pytest.raises(KeyError):
        stumble()
    out, err = capsys.readouterr()
    assert out == ""
    assert "finetune" in err
    assert "4/4" in err
    assert "loss=0.125" in err
    assert shown._bar.disable  # closed
