"""A stage killed in the middle and called again ends as if nothing had happened."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from compresskit import tracking
from compresskit.data import bundled, vocabulary
from compresskit.models import CompactBertConfig, CompactBertModel, checkpoints

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.long

SCRIPT = """
import os, signal, sys
from compresskit.stages import finetune
from compresskit.training import state

def observe(step, numbers):
    log(step, numbers)
    print("STEP", step, flush=True)
    if step == int(os.environ.get("STOP_AT", 0)):
        os.kill(os.getpid(), signal.SIGKILL)

state.TrainingState.save_when_due = lambda self, step, parts: step % 7 == 0 and self.save(step, parts)
params = finetune.FinetuneParams(model=sys.argv[1], max_rows=800, max_steps=40, max_seq_len=32, seed=7)
stage = finetune.open(params)
log, stage.session.observe = stage.session.observe, observe
stage.train()
print("RESULT", stage.finish()["model"].iloc[0], flush=True)
"""


def steps(output: str) -> list[int]:
    return [int(line.split()[1]) for line in output.splitlines() if line.startswith("STEP")]


def result(output: str) -> str:
    return next(line.split()[1] for line in output.splitlines() if line.startswith("RESULT"))


def test_a_killed_finetune_goes_on_in_its_run_to_the_same_weights(store, tmp_path):
    corpus = bundled.write(store / ".cache" / "bundled") / "corpus.txt"
    tokenizer = vocabulary.train_wordpiece(corpus.read_text().splitlines()[:2000], 800)
    config = CompactBertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    checkpoints.save(CompactBertModel(config), tmp_path / "model", tokenizer)
    (tmp_path / "go.py").write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COMPRESSKIT_HEADLESS": "1", "PYTHONPATH": str(ROOT)}

    def go(**settings: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(tmp_path / "go.py"), str(tmp_path / "model")]
        return subprocess.run(command, env=environment | settings, capture_output=True, text=True)

    straight = go()
    assert straight.returncode == 0, straight.stderr
    assert steps(straight.stdout) == list(range(1, 41))
    expected = load_file(tracking.resolve(result(straight.stdout)) / "model.safetensors")
    for stop_at in (3, 17, 39):
        killed = go(STOP_AT=str(stop_at))
        assert killed.returncode == -signal.SIGKILL
        again = go()
        assert again.returncode == 0, again.stderr
        assert steps(again.stdout) == list(range(stop_at // 7 * 7 + 1, 41))
        found = load_file(tracking.resolve(result(again.stdout)) / "model.safetensors")
        assert all(found[name].equal(expected[name]) for name in expected)
        histories = [tracking.history(result(run.stdout).split("/")[1]) for run in (again, straight)]
        # but for the one number that is measured by the clock
        told = [h[h["key"] != "train/examples_per_second"].reset_index(drop=True) for h in histories]
        assert told[0].equals(told[1])
