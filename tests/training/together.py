"""Loops run by one, two and three processes:  python -m tests.training.together FOLDER

The processes are forked from this one, which has done nothing but import, and find each other as under torchrun. Every
process writes what it has found to FOLDER/<case>/<processes>-<rank>.pt; test_distributed.py compares.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from compresskit.models import (
    CompactBertConfig,
    CompactBertForMaskedLM,
    CompactBertForSequenceClassification,
    CompactBertModel,
)
from compresskit.models.heads import labelled_loss
from compresskit.pruning.masks import MagnitudePruner
from compresskit.training import distributed, progress, prune
from compresskit.training.finetune import supervised
from compresskit.training.loop import fit
from compresskit.training.optim import linear_schedule
from compresskit.training.pretrain import Masked, dense_fit, last_layer, masked_lm
from compresskit.training.state import TrainingState

STEPS = 7
SMALL = {
    "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 12, "num_labels": 3, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.2,
}  # fmt: skip


class Rows:
    """Twelve rows of different lengths, in every third batch only seven."""

    def from_step(self, step: int, num_steps: int):
        for number in range(step, num_steps):
            generator, rows = torch.Generator().manual_seed(number), 7 if number % 3 == 2 else 12
            ids = torch.randint(5, 30, (rows, 8), generator=generator)
            mask = (torch.arange(8) < torch.randint(2, 9, (rows, 1), generator=generator)).long()
            yield {"input_ids": ids, "attention_mask": mask, "token_type_ids": 0 * ids, "labels": ids[:, 1] % 3}


def model(**changes: Any) -> CompactBertForSequenceClassification:
    return CompactBertForSequenceClassification(CompactBertConfig(**{**SMALL, **changes}))


def learn(student: Any, losses: Callable, batches: Any = None, modules: Any = (), **more: Any) -> dict[str, Any]:
    """One loop with plain gradient descent, which hides no factor; returns all that it leaves and says."""
    trained = [parameter for module in (student, *modules) for parameter in module.parameters()]
    optimizer = torch.optim.SGD(trained, lr=0.3, weight_decay=0.01)
    numbers: dict[int, dict[str, float]] = {}
    best = fit(
        student, batches or Rows(), losses, optimizer, linear_schedule(optimizer, STEPS, 0.3), STEPS,
        observe=lambda step, values: numbers.update({step: dict(values)}), **more,
    )  # fmt: skip
    found = {"weights": student.state_dict(), "numbers": numbers, "best": best.state_dict()}
    return found | {"random": torch.get_rng_state()}


def finetune(folder: Path) -> dict[str, Any]:
    """The best of three evaluations, of which only the first process makes any; `state` writes in it alone."""
    student, scores = model(), iter([0.5, 0.8, 0.6, 0.7])
    asked: list[int] = []

    def evaluate() -> float:
        asked.append(distributed.rank())
        student.eval()
        return next(scores)

    state = TrainingState(folder / f"state-{distributed.size()}-{distributed.rank()}")
    return learn(student, supervised(student), state=state, evaluate=evaluate, eval_every=2) | {"asked": asked}


def token_means(folder: Path) -> dict[str, Any]:
    """A loss that is a mean over real tokens; the first process's weights are those that count from the start."""
    student = model()
    if distributed.rank():
        torch.nn.init.zeros_(student.classifier.weight)

    def losses(batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        mask = batch["attention_mask"]
        hidden = student.base_model(batch["input_ids"], mask, batch["token_type_ids"]).last_hidden_state
        mean = (hidden[..., 0] - 1).square().mul(mask).sum() / mask.sum()
        return {"loss": mean * distributed.weight(mask.sum()), "tokens": mask.sum()}

    return learn(student, losses)


def pruning(folder: Path) -> dict[str, Any]:
    """Masks follow from the weights, so they agree."""
    student, teacher = model(), model()
    pruner = MagnitudePruner(student, 0.8, begin=0, end=6, frequency=2)
    found = learn(student, prune.all_layers(student, teacher), parts={"pruner": pruner}, after_step=pruner.step)
    return found | {"masks": pruner.masks}


def masked_words(folder: Path) -> dict[str, Any]:
    """Masks are drawn for the whole batch; every process has another number of masked words."""
    student = CompactBertForMaskedLM(CompactBertConfig(**SMALL))

    def mask(batch: dict[str, Tensor], step: int) -> tuple[Tensor, Tensor]:
        ids = batch["input_ids"]
        chosen = torch.rand(ids.shape, generator=torch.Generator().manual_seed(step)) < 0.4
        chosen = (chosen & batch["attention_mask"].bool()) | (torch.arange(8) == 1)
        return ids.masked_fill(chosen, 4), ids.masked_fill(~chosen, -100)

    return learn(student, masked_lm(student, labelled_loss, micro_batches=2), batches=Masked(Rows(), mask))


def last_layers(folder: Path) -> dict[str, Any]:
    """Two subnets learn a teacher's last layer; every process has another number of tokens, in two parts."""
    config = CompactBertConfig(**SMALL)
    student, teacher = (CompactBertModel(config, add_pooling_layer=False) for _ in range(2))
    project, _ = dense_fit(16, 16, 0.2, {})
    narrow = config.changed(num_hidden_layers=1, hidden_size=8, qkv_size=6)
    return learn(
        student, last_layer(student, teacher, project, lambda step: [None, narrow], 2), modules=[project],
        parts={"projection": project},
    )  # fmt: skip


def impatient(folder: Path) -> dict[str, Any]:
    """Stops at step 4, everywhere."""
    student, scores = model(), iter([0.5, 0.8, 0.6, 0.7])
    return learn(student, supervised(student), evaluate=lambda: next(scores), eval_every=1, patience=2)


def one_bad_row(folder: Path) -> dict[str, Any]:
    """The loss is no number in one process, at step 2."""
    student = model()

    def losses(batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        bad = step == 2 and distributed.rank() == distributed.size() - 1
        return {"loss": supervised(student)(batch, step)["loss"] * (torch.nan if bad else 1)}

    try:
        return learn(student, losses)
    except FloatingPointError as error:
        return {"error": str(error)}


def a_process_dies(folder: Path) -> dict[str, Any]:
    """The last one, by SIGKILL at step 2."""
    student = model()

    def losses(batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        if step == 2 and distributed.size() > 1 and distributed.rank() == distributed.size() - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return supervised(student)(batch, step)

    try:
        return learn(student, losses)
    except distributed.Parted as error:
        return {"error": str(error)}


class SavesEveryThirdStep(TrainingState):
    """As TrainingState, by steps instead of seconds."""

    def save_when_due(self, step: int, parts: dict) -> None:
        if step % 3 == 0:
            self.save(step, parts)


def resumed(folder: Path) -> dict[str, Any]:
    """With dropout; in a folder that has a file `kill`, the first process dies at step 5, two after a save."""
    student = model(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2)

    def losses(batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        if step == 5 and distributed.rank() == 0 and (folder / "kill").exists():
            (folder / "kill").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return supervised(student)(batch, step)

    try:
        return learn(student, losses, state=SavesEveryThirdStep(folder / f"state-{distributed.size()}"))
    except distributed.Parted as error:
        return {"error": str(error)}


# ---- processes


def together(case: Callable, folder: Path, size: int, seed: int = 1) -> list[int]:
    """Run a case in `size` processes; returns their exit statuses, negative for a signal."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(size):
        pid = os.fork()
        if pid:
            children.append(pid)
            continue
        status = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
            os.environ |= {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            torch.manual_seed(seed)
            distributed.start()
            found = case(folder)
            torch.save(found, folder / f"{size}-{rank}.pt")
            if "error" not in found:
                distributed.stop()
            status = 0
        finally:
            os._exit(status)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


def main(folder: Path) -> None:
    """Every case in one process, in two, and in three."""
    for case in (finetune, token_means, masked_words, last_layers, pruning, impatient, one_bad_row):
        for size in (1, 2, 3):
            statuses = together(case, folder / case.__name__, size)
            assert statuses == [0] * size, (case, statuses)
    assert together(a_process_dies, folder / "a_process_dies", 2) == [0, -signal.SIGKILL]
    assert together(resumed, folder / "whole", 2) == [0, 0]
    (folder / "broken").mkdir()
    (folder / "broken" / "kill").touch()
    assert together(resumed, folder / "broken", 2) == [-signal.SIGKILL, 0]
    assert together(resumed, folder / "broken", 2, seed=2) == [0, 0]


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ["COMPRESSKIT_HEADLESS"] = "1"
    progress.time = SimpleNamespace(monotonic=time.monotonic, perf_counter=count().__next__)  # type: ignore[assignment]
    main(Path(sys.argv[1]))
