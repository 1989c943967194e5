"""What processes beside the first do with a stage, and what they refuse."""

from __future__ import annotations

import sys
import types

import pytest

from compresskit import running, tracking
from compresskit.stages import session
from compresskit.stages.params import Params
from compresskit.training import distributed


class ToyParams(Params):
    batch_size: int = 8


def test_a_batch_must_divide_among_the_processes_before_a_run_is_opened(store, monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 3)
    with pytest.raises(ValueError, match="batch_size 8 is no multiple of 3 processes"):
        session.Session("toy", ToyParams(), experiment="toy", name="toy")
    assert tracking.store.client().search_runs(["0"]) == []
    assert not (store / "mlruns" / "unfinished").exists()


def test_a_process_beside_the_first_keeps_nothing(store, monkeypatch):
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    opened = session.Session("toy", ToyParams(), experiment="toy", name="toy")
    opened.observe(1, {"train/loss": 1.0})
    opened.run.flush()
    state = opened.state()
    state.save(3, {})
    assert state.restore({}) == 0
    assert opened.run.history().columns.tolist() == ["step", "key", "value"]
    assert [e.name for e in tracking.store.client().search_experiments()] == ["Default"]
    assert not (store / "mlruns" / "unfinished").exists()


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("dev.tsv line 3: no label"), 1, "compresskit: process 1: ValueError: dev.tsv line 3: no label\n"),
        (distributed.Parted("another one stopped"), 1, ""),  # whose message is on the screen already
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_a_helping_process_that_fails_says_why_on_one_line_and_nothing_else(error, code, said, monkeypatch, capsys):
    def train():
        print("loss 0.5")
        print("a warning", file=sys.stderr)
        raise error

    module = types.SimpleNamespace(open=lambda params: types.SimpleNamespace(train=train))
    monkeypatch.setattr(session, "stage_module", lambda stage: module)
    monkeypatch.setattr(session, "LAST_WORD_SECONDS", 0)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as end:
        session.assist("toy", ToyParams())
    assert end.value.code == code
    assert capsys.readouterr() == ("", said)


def test_every_call_of_a_run_is_one_of_a_silent_run(store):
    for name in vars(tracking.Run):
        if not name.startswith("_"):
            assert name in vars(tracking.SilentRun), name
    run = tracking.SilentRun()
    run.fail(ValueError("no data"))
    assert (run.model("folder", card={}), run.finish({"score": 1})) == ("", {})


def test_stages_without_training_and_processes_of_torchrun_take_no_nproc(store, monkeypatch):
    with pytest.raises(ValueError, match="stage 'evaluate' does not train, so it has no use for several processes"):
        running.launch(2, "evaluate")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with pytest.raises(ValueError, match="--nproc starts processes, but torchrun has done so already; leave it out"):
        running.launch(2, "finetune")
