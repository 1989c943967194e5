"""A stage in two processes, by --nproc and by two of torchrun's nodes: the model of one, and an end for all."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from compresskit import tracking
from compresskit.data import bundled, vocabulary
from compresskit.models import CompactBertConfig, CompactBertForSequenceClassification, checkpoints
from compresskit.tracking.store import client

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.long
COMMAND = ["-m", "compresskit.cli", "run", "distill", "--params", "distill-tiny.yaml"]
PARAMS = """
task: sst2
teacher: teacher
student: student
data_dir: bundled
max_rows: 600
max_seq_len: 32
batch_size: 8
max_steps: 12
intermediate_learning_rate: 1e-3
prediction_learning_rate: 1e-3
"""


@pytest.fixture
def project(store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with the stage distill, a teacher and a narrower student, neither with dropout."""
    corpus = bundled.write(store / ".cache" / "bundled") / "corpus.txt"
    tokenizer = vocabulary.train_wordpiece(corpus.read_text().splitlines()[:2000], 800)
    names = {0: "negative", 1: "positive"}
    for name, layers, hidden_size in (("teacher", 4, 32), ("student", 2, 24)):
        torch.manual_seed(layers)
        config = CompactBertConfig(
            vocab_size=len(tokenizer), hidden_size=hidden_size, num_hidden_layers=layers, num_attention_heads=2,
            intermediate_size=48, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.1,
            id2label=names, label2id={name: number for number, name in names.items()},
        )  # fmt: skip
        checkpoints.save(CompactBertForSequenceClassification(config), store / name, tokenizer)
    shutil.copy(ROOT / "notebooks" / "distill.ipynb", store / "notebooks")
    (store / "distill-tiny.yaml").write_text(PARAMS)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return store


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """start(*arguments): python with these arguments, still running; whatever is left at the end is stopped."""
    started: list[subprocess.Popen[str]] = []

    def go(*arguments: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        started.append(subprocess.Popen([sys.executable, *arguments], stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield go
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=60)


def ended(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        _, err = process.communicate(timeout=600)
        assert process.returncode == 0, err


def last_run() -> Any:
    experiments = [e.experiment_id for e in client().search_experiments()]
    return client().search_runs(experiments, order_by=["attributes.start_time DESC"])[0]


def weights() -> dict[str, Tensor]:
    folder = tracking.resolve(f"runs:/{last_run().info.run_id}/model")
    return load_file(Path(folder) / "model.safetensors")


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_two_processes_and_two_nodes_end_with_the_model_of_one(project, start):
    ended(start(*COMMAND))
    alone = weights()
    begin = load_file(project / "student" / "model.safetensors")
    assert distance(begin, alone) > 5e-3  # something was learned

    ended(start(*COMMAND, "--nproc", "2"))
    run = last_run()
    assert (run.info.status, run.data.tags["processes"]) == ("FINISHED", "2")
    assert run.data.metrics["train/intermediate_examples_per_second"] > 0
    assert run.data.metrics["train/examples_per_second"] > 0
    assert distance(alone, weights()) < 1e-4

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    meeting = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint]
    node = ["-m", "torch.distributed.run", *meeting, "--local-addr", "127.0.0.1", *COMMAND]
    ended(start(*node), start(*node))
    runs = len(client().search_runs([run.info.experiment_id]))
    assert (runs, last_run().info.status, last_run().data.tags["processes"]) == (3, "FINISHED", "2")
    assert distance(alone, weights()) < 1e-4


PRETRAIN = """
corpus: bundled
max_seq_len: 32
batch_size: 8
max_steps: 12
learning_rate: 1e-3
dropout: 0
num_hidden_layers: 3
hidden_size: 24
num_attention_heads: 2
intermediate_size: 48
gradient_accumulation_steps: 2
subnets_per_step: 2
"""


@pytest.mark.parametrize("given", ["supernet: kd\nteacher: teacher\n", "supernet: mlm\nvocabulary: teacher\n"])
def test_a_supernet_of_two_processes_is_that_of_one(project, start, given):
    shutil.copy(ROOT / "notebooks" / "pretrain.ipynb", project / "notebooks")
    (project / "pretrain-tiny.yaml").write_text(PRETRAIN + given)
    command = ["-m", "compresskit.cli", "run", "pretrain", "--params", "pretrain-tiny.yaml"]
    found = []
    for processes in ([], ["--nproc", "2"]):
        ended(start(*command, *processes))
        history = tracking.history(last_run().info.run_id)
        losses = history[history["key"].str.contains("loss")]
        found.append((weights(), {(row.step, row.key): row.value for row in losses.itertuples()}))
    (alone, numbers), (together, others) = found
    assert {key for _, key in numbers} >= {"train/loss", "train/loss_whole", "train/loss_subnets", "eval/loss"}
    assert others == pytest.approx(numbers, rel=1e-4)
    # a key's bias has no gradient but rounding, of which Adam makes steps of its own; it changes no output
    real = {name: tensor for name, tensor in alone.items() if not name.endswith("self.key.bias")}
    assert distance(real, together) < 1e-4


def kernel_of(run: Any) -> psutil.Process:
    """The process that trains for the run."""
    return psutil.Process(int(run.data.tags["process"].split("/")[1]))


def interrupt(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)


def kill_the_second(process: subprocess.Popen[str]) -> None:
    first = kernel_of(last_run()).parent()
    for child in psutil.Process(process.pid).children():
        if child != first:
            child.kill()


def kill_the_launcher(process: subprocess.Popen[str]) -> None:
    process.kill()


@pytest.mark.parametrize(
    ("trouble", "code", "sentence"),
    [
        (interrupt, 130, "compresskit: distill: all 2 processes stopped\n"),
        (kill_the_second, 1, "process 1 of 2 ended with SIGKILL, and all were stopped\n"),
        (kill_the_launcher, -signal.SIGKILL, ""),
    ],
)
def test_when_one_goes_all_go_and_the_next_call_goes_on(
    project: Path, start: Callable, trouble: Callable, code: int, sentence: str
):
    endless = ["--nproc", "2", "--set", "intermediate_epochs=2000", "--set", "max_steps=0"]
    process = start(*COMMAND, *endless)
    deadline = time.monotonic() + 120
    while not any((project / "mlruns" / "unfinished").glob("*/intermediate")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    family = [kernel_of(last_run()), *psutil.Process(process.pid).children()]
    assert len(family) == 3
    time.sleep(2)
    trouble(process)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err.endswith(sentence)
    assert "Traceback" not in err
    assert psutil.wait_procs(family, timeout=30)[1] == []
    assert last_run().info.status in ("KILLED", "FAILED")
