"""Runs of every loop that are killed and resumed, in processes of their own:  python -m tests.training.resumable FOLDER

Each run is forked from this process, which has done nothing but import, and dies by SIGKILL at a chosen moment. A
second fork, whose models start from other random numbers, goes on from the file the first one left. Prints JSON: for
each "loop/moment" the differences from the run that nothing interrupted.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
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
from compresskit.search.spaces import SuperBertKdSpace
from compresskit.training import distill, prune
from compresskit.training.finetune import supervised
from compresskit.training.loop import fit
from compresskit.training.optim import adamw, linear_schedule
from compresskit.training.pretrain import Masked, dense_fit, last_layer, masked_lm, whole_network
from compresskit.training.state import TrainingState

STEPS, SAVE_EVERY = 9, 3
SMALL = {
    "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 12, "num_labels": 3, "hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2,
}  # fmt: skip


class Rows:
    """Batches that are a function of the step."""

    def from_step(self, step: int, num_steps: int):
        for number in range(step, num_steps):
            generator = torch.Generator().manual_seed(number)
            ids = torch.randint(5, 30, (4, 8), generator=generator)
            mask = (torch.arange(8) < torch.randint(2, 9, (4, 1), generator=generator)).long()
            yield {"input_ids": ids, "attention_mask": mask, "token_type_ids": 0 * ids, "labels": ids[:, 1] % 3}


class SavesEveryThirdStep(TrainingState):
    """As TrainingState, by steps instead of seconds."""

    def save_when_due(self, step: int, parts: dict) -> None:
        if step % SAVE_EVERY == 0:
            self.save(step, parts)


def learn(
    name: str, folder: Path, model, losses, observe, modules=(), rate=1e-2, batches=None, **more
) -> dict[str, Any]:
    """One loop with AdamW and warm-up; returns everything that must not depend on the interruption."""
    optimizer = adamw([model, *modules], rate)
    best = fit(
        model, batches or Rows(), losses, optimizer, linear_schedule(optimizer, STEPS, 0.3), STEPS,
        state=SavesEveryThirdStep(folder / name), observe=lambda step, numbers: observe(name, step), **more,
    )  # fmt: skip
    parts = {f"part {i}": module.state_dict() for i, module in enumerate(modules)}
    saved = torch.load(folder / name / "state.pt", weights_only=True)
    found = {"weights": model.state_dict(), "best": best.state_dict(), "random": torch.get_rng_state(), "file": saved}
    return {**found, **parts}


def finetune(folder: Path, observe) -> dict[str, Any]:
    """Dropout on; the best of five evaluations is kept."""
    model = CompactBertForSequenceClassification(CompactBertConfig(**SMALL))
    scores = {2: 0.5, 4: 0.8, 6: 0.8, 8: 0.7, 9: 0.1}
    steps: list[int] = []

    def evaluate() -> float:
        model.eval()
        return scores[steps[-1]]

    def losses(batch, step):
        steps.append(step)
        return supervised(model)(batch, step)

    return learn("train", folder, model, losses, observe, evaluate=evaluate, eval_every=2)


def impatient(folder: Path, observe) -> dict[str, Any]:
    """As finetune, but two scores in a row that are no better end it, at step 7 of 9."""
    model = CompactBertForSequenceClassification(CompactBertConfig(**SMALL))
    scores = {1: 0.5, 2: 0.4, 3: 0.6, 4: 0.6, 5: 0.8, 6: 0.8, 7: 0.7}
    steps: list[int] = []

    def losses(batch, step):
        steps.append(step)
        return supervised(model)(batch, step)

    more = {"evaluate": lambda: scores[steps[-1]], "eval_every": 1, "patience": 2}
    return learn("train", folder, model, losses, observe, **more)


def mask(batch: dict[str, Tensor], step: int) -> tuple[Tensor, Tensor]:
    """Fresh masks for every step."""
    chosen = torch.rand(4, 8, generator=torch.Generator().manual_seed(100 + step)) < 0.3
    chosen = (chosen & batch["attention_mask"].bool()) | (torch.arange(8) == 1)
    return batch["input_ids"].masked_fill(chosen, 4), batch["input_ids"].masked_fill(~chosen, -100)


def pretrain(folder: Path, observe, subnets: Callable = whole_network) -> dict[str, Any]:
    """Masked LM."""
    model = CompactBertForMaskedLM(CompactBertConfig(**SMALL))
    return learn(
        "train", folder, model, masked_lm(model, labelled_loss, subnets), observe, batches=Masked(Rows(), mask)
    )


def supernet(folder: Path, observe) -> dict[str, Any]:
    """Masked LM of the whole network and one drawn subnet per step."""
    config = CompactBertConfig(**SMALL)
    space = SuperBertKdSpace.within(config)
    return pretrain(folder, observe, lambda step: [None, space.sample(config, Random(step))])


def last_layers(folder: Path, observe) -> dict[str, Any]:
    """A supernet learns a teacher's last layer, two batches' halves and two subnets a step, in float16."""
    config = CompactBertConfig(**SMALL)
    space = SuperBertKdSpace.within(config)
    with torch.random.fork_rng():
        torch.manual_seed(77)  # the teacher is what it is
        teacher = CompactBertModel(config.changed(hidden_size=20), add_pooling_layer=False)
    model = CompactBertModel(config, add_pooling_layer=False)
    project, _ = dense_fit(16, 20, 0.02, {})

    def subnets(step: int) -> list:
        return [space.sample(config, Random(2 * step + k)) for k in range(2)]

    return learn(
        "train", folder, model, last_layer(model, teacher, project, subnets, 2), observe, [project],
        parts={"projection": project}, autocast=torch.float16,
    )  # fmt: skip


def two_steps(folder: Path, observe) -> dict[str, Any]:
    """Intermediate layers through a projection between unequal widths, then answers."""
    wide = {**SMALL, "num_hidden_layers": 4, "hidden_size": 20}
    teacher = CompactBertForSequenceClassification(CompactBertConfig(**wide))
    with torch.random.fork_rng():
        torch.manual_seed(77)  # the teacher is what it is
        for parameter in teacher.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    student = CompactBertForSequenceClassification(CompactBertConfig(**SMALL))
    project = distill.projection(16, 20, 3)
    assert project is not None
    first = learn(
        "intermediate", folder, student, distill.intermediate(student, teacher, [0, 2, 4], project), observe, [project],
        parts={"projection": project},
    )  # fmt: skip
    second = learn("prediction", folder, student, distill.prediction(student, teacher), observe)
    return {"intermediate": first, "prediction": second}


def pruning(folder: Path, observe) -> dict[str, Any]:
    """Magnitude pruning while distilling; masks change at steps 2, 4, 6 and 8.

    The learning rate is so high that a pruned weight would outgrow kept ones in a step, were its mask forgotten.
    """
    return pruned(folder, observe, begin=0, end=8, frequency=2)


def pruning_groups(folder: Path, observe) -> dict[str, Any]:
    """As pruning, of 1 x 4 groups under one threshold, from zeros there are, at steps 3, 5, 7 and 8."""
    options = {"pattern": "1x4", "threshold": "global", "restore_sparsity": True}
    return pruned(folder, observe, begin=1, end=8, frequency=2, **options)


def pruning_faithfully(folder: Path, observe) -> dict[str, Any]:
    """As pruning, with the original's updates at steps 3 and 6 and its ties."""
    return pruned(folder, observe, begin=0, end=9, frequency=3, faithful=True)


def fixed_zeros(folder: Path, observe) -> dict[str, Any]:
    """As pruning, with the zeros that there are."""
    return pruned(folder, observe, begin=0, end=8, restore_sparsity=True, fix_sparsity=True)


def pruned(folder: Path, observe, **options: Any) -> dict[str, Any]:
    """Learn from a teacher under a pruner; a score counts from its last update on.

    Zeros that were there at the start lie elsewhere in the model of the run that goes on.
    """
    models = [CompactBertForSequenceClassification(CompactBertConfig(**SMALL)) for _ in range(2)]
    with torch.random.fork_rng():
        torch.manual_seed(77)
        for parameter in models[0].parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    teacher, student = models
    if options.get("restore_sparsity"):
        MagnitudePruner(student, 0.2, 0, 1).step(1)
    pruner = MagnitudePruner(student, 0.8, **options)
    found = learn(
        "train", folder, student, prune.all_layers(student, teacher), observe, rate=0.1,
        parts={"pruner": pruner}, after_step=pruner.step,
        evaluate=lambda: pruner.updated_at if pruner.final else None, eval_every=1,
    )  # fmt: skip
    return {**found, "sparsity": pruner.sparsity(), "masks": pruner.masks}


# ---- the moments at which a run dies


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_step(name: str, step: int) -> Callable:
    """Between two saves."""
    return lambda loop, now: die() if (loop, now) == (name, step) else None


def in_save(function: str, number: int) -> Callable:
    """Inside the save with this number, at a call of a function of the system."""
    real, calls = getattr(os, function), []

    def call(*args):
        calls.append(args)
        return die() if len(calls) == number else real(*args)

    setattr(os, function, call)
    return ignore


def after_save(number: int) -> Callable:
    """Right after the new file has taken its place."""
    real, calls = os.replace, []

    def call(*args):
        real(*args)
        calls.append(args)
        if len(calls) == number:
            die()

    os.replace = call
    return ignore


def half_written(number: int) -> Callable:
    """In the middle of the bytes of a save."""
    real, calls = torch.save, []

    def save(value, file):
        calls.append(value)
        if len(calls) < number:
            return real(value, file)
        whole = io.BytesIO()
        real(value, whole)
        file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
        file.flush()
        return die()

    torch.save = save
    return ignore


def ignore(loop: str, step: int) -> None:
    """Nothing happens."""


MOMENTS = {
    "before the first save": lambda: in_step("train", 2),
    "between saves": lambda: in_step("train", 5),
    "half-written first save": lambda: half_written(1),
    "half-written second save": lambda: half_written(2),
    "before the file is on disk": lambda: in_save("fsync", 2),
    "before the file takes its place": lambda: in_save("replace", 2),
    "after the file took its place": lambda: after_save(2),
    "after the early stop": lambda: after_save(3),
    "in the last save": lambda: half_written(4),
    "in the first part": lambda: in_step("intermediate", 5),
    "in the last save of the first part": lambda: half_written(4),
    "in the second part": lambda: in_step("prediction", 5),
    "half-written save of the second part": lambda: half_written(6),
}
FEW = ["between saves", "half-written second save"]
ONE_LOOP = [name for name in MOMENTS if "part" not in name and "early stop" not in name]
PLAN: dict[Callable, list[str]] = {
    finetune: ONE_LOOP,
    impatient: [*FEW, "after the file took its place", "after the early stop"],
    pretrain: FEW,
    supernet: FEW,
    last_layers: FEW,
    two_steps: [name for name in MOMENTS if "part" in name],
    pruning: [*FEW, "after the file took its place"],
    pruning_groups: FEW,
    pruning_faithfully: FEW,
    fixed_zeros: FEW,
}


# ---- processes


def child(loop: Callable, folder: Path, seed: int, moment: str | None) -> int:
    """Run `loop` in a fork; returns its exit status, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            torch.manual_seed(seed)
            found = loop(folder, MOMENTS[moment]() if moment else ignore)
            with open(folder / "found.pt", "wb") as file:
                torch.save(found, file)
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two nested results are not equal bit for bit."""
    if isinstance(a, Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [f"{where}: {sorted(map(str, a.keys() ^ b.keys()))}"]
        return [d for key in a for d in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [f"{where}: {len(a)} and {len(b)} entries"]
        return [d for i, pair in enumerate(zip(a, b, strict=True)) for d in differences(*pair, f"{where}/{i}")]
    return [] if a == b else [f"{where}: {a} and {b}"]


def main(folder: Path) -> dict[str, list[str]]:
    """Every loop at each of its moments."""
    report = {}
    for loop, moments in PLAN.items():
        whole = folder / loop.__name__ / "whole"
        whole.mkdir(parents=True)
        if child(loop, whole, seed=1, moment=None):
            raise RuntimeError(f"{loop.__name__} fails even uninterrupted")
        expected = torch.load(whole / "found.pt", weights_only=True)
        for number, moment in enumerate(moments):
            broken = folder / loop.__name__ / str(number)
            broken.mkdir()
            problems = []
            if child(loop, broken, seed=1, moment=moment) != -signal.SIGKILL:
                problems.append("it was not killed")
            first = "before the first" in moment or "first save" in moment
            if child(loop, broken, seed=1 if first else 2, moment=None):  # nothing saved: the same start again
                problems.append("it did not resume")
            else:
                problems += differences(expected, torch.load(broken / "found.pt", weights_only=True))
            problems += [f"left behind: {path.name}" for path in broken.rglob("*.part*")]
            report[f"{loop.__name__}/{moment}"] = problems[:5]
    return report


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ["COMPRESSKIT_HEADLESS"] = "1"
    began = time.monotonic()
    print(json.dumps({"report": main(Path(sys.argv[1])), "seconds": time.monotonic() - began}))
