"""A stage killed in the middle and called again ends as if nothing had happened."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from compresskit import tracking

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.long

SCRIPT = """
import sys
from compresskit.stages import finetune
from compresskit.training import state
state.TrainingState.save_when_due = lambda self, step, parts: step % 7 == 0 and self.save(step, parts)
params = finetune.FinetuneParams(model=sys.argv[1], max_rows=800, max_steps=40, max_seq_len=32, seed=7)
stage = finetune.open(params)
observe = stage.session.observe
stage.session.observe = lambda step, numbers: (observe(step, numbers), print("STEP", step, flush=True))
stage.train()
print("RESULT", stage.finish()["model"].iloc[0], flush=True)
"""


def result(output: str) -> str:
    return next(line.split()[1] for line in output.splitlines() if line.startswith("RESULT"))


@pytest.mark.parametrize("stop_at", [3, 17, 39])
def test_a_killed_finetune_goes_on_in_its_run_to_the_same_weights(store, tmp_path, stop_at):
    from compresskit.data import bundled, vocabulary
    from compresskit.models import CompactBertConfig, CompactBertModel, checkpoints

    corpus = bundled.write(store / ".cache" / "bundled") / "corpus.txt"
    tokenizer = vocabulary.train_wordpiece(corpus.read_text().splitlines()[:2000], 800)
    config = CompactBertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                               intermediate_size=64, max_position_embeddings=64)  # fmt: skip
    checkpoints.save(CompactBertModel(config), tmp_path / "model", tokenizer)
    (tmp_path / "go.py").write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COMPRESSKIT_HEADLESS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "go.py"), str(tmp_path / "model")]

    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.strip() == f"STEP {stop_at}":
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    time.sleep(0.5)
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    steps = [int(line.split()[1]) for line in again.stdout.splitlines() if line.startswith("STEP")]
    assert steps[0] == stop_at // 7 * 7 + 1
    straight = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert straight.returncode == 0, straight.stderr
    assert straight.stdout.count("STEP") == 40

    first, second = (load_file(tracking.resolve(result(run.stdout)) / "model.safetensors") for run in (again, straight))
    assert all(first[name].equal(second[name]) for name in second)
    histories = [tracking.history(result(run.stdout).split("/")[1]) for run in (again, straight)]
    assert histories[0].equals(histories[1])
