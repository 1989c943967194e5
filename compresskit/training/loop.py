"""The one training loop. What is learned is a function that gives losses; see pretrain, finetune, distill and prune."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from compresskit.training import distributed
from compresskit.training.progress import Progress, Speed
from compresskit.training.state import Best, Stateful, TrainingState, adopt

Batch = dict[str, Tensor]
Numbers = dict[str, Tensor]
Losses = Callable[[Batch, int], Numbers]  # batch and step, from 1, to numbers of which "loss" is minimised
Pieces = Callable[[Batch, int], Iterator[Numbers]]  # the same in parts that add up; only one is held at a time
Observer = Callable[[int, Mapping[str, float]], None]


class Batches(Protocol):
    """Batches that are a function of the step alone."""

    def from_step(self, step: int, num_steps: int) -> Iterator[Batch]:
        """The batches of steps `step` to `num_steps` - 1, counted from 0."""


def summed(found: Numbers | Iterable[Numbers]) -> Numbers:
    """The numbers, or the sums of those of all pieces, without their graphs."""
    total: Numbers = {}
    for piece in [found] if isinstance(found, dict) else found:
        for name, value in piece.items():
            total[name] = total[name] + value.detach() if name in total else value.detach()
    return total


def learned(losses: Losses | Pieces, batch: Batch, step: int, dtype: torch.dtype | None, scaler: GradScaler) -> Numbers:
    """Put the gradient of a batch into the parameters, of one piece after the other; returns the sums of their numbers.

    dtype: of the forward passes' matrix products (torch.autocast); None: that of the weights.
    """

    def forward(run: Callable[[], Any]) -> Any:
        with torch.autocast(next(iter(batch.values())).device.type, dtype=dtype, enabled=dtype is not None):
            return run()

    def pieces() -> Iterator[Numbers]:
        found = forward(lambda: losses(batch, step))
        rest = iter([found] if isinstance(found, dict) else found)
        while (piece := forward(lambda: next(rest, None))) is not None:
            scaler.scale(piece["loss"]).backward()
            yield piece

    return summed(pieces())


def ignore(step: int, numbers: Mapping[str, float]) -> None:
    """Observe nothing."""


def fit(
    model: nn.Module,
    batches: Batches,
    losses: Losses | Pieces,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    num_steps: int,
    *,
    label: str = "train",
    state: TrainingState | None = None,
    parts: Mapping[str, Stateful] | None = None,
    after_step: Callable[[int], None] | None = None,
    evaluate: Callable[[], float | None] | None = None,
    eval_every: int = 0,
    patience: int = 0,
    planned_steps: int = 0,
    max_grad_norm: float = 1.0,
    autocast: torch.dtype | None = None,
    observe: Observer = ignore,
) -> Best:
    """Train `model` in place for `num_steps` optimizer steps, going on from `state` where it holds an earlier part.

    parts: whatever else `losses` and `after_step` change (a projection, a pruner), to be saved along. evaluate gives
    the score of the model as it is (higher is better; None: no contender), asked every `eval_every` steps and at the
    end; the best weights are then put back. Without it the last weights stand. patience: stop after this many scores in
    a row that are no better; 0: never. planned_steps: of the run that `num_steps` cuts short, for the notice that says
    so. max_grad_norm: bound on the norm of the whole gradient; infinity where the optimizer clips. autocast: dtype of
    the matrix products; with float16 the loss is scaled, and a step whose gradient overflows is left out. observe gets
    the step and its numbers, the last time also the examples per second of this call, evaluating and saving left out.

    Of several processes (see `distributed`) each learns from its rows of a batch, and they hold the same weights
    throughout; the numbers are means over all. The first one's `state` and `evaluate` serve all.
    Raises FloatingPointError when the loss or its gradient stops being a number, before the weights are touched.
    """
    best = Best()
    everything: dict[str, Stateful] = {
        "model": model, "optimizer": optimizer, "scheduler": scheduler, "best": best, **(parts or {}),
    }  # fmt: skip
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    device = trained[0].device
    scaler = GradScaler(device.type, enabled=autocast is torch.float16)
    if scaler.is_enabled():
        everything["scaler"] = scaler
    start = adopt(everything, 0 if state is None else state.restore(everything))
    stopped = 0 < patience <= best.stale
    seed = distributed.broadcast(torch.initial_seed())
    model.train()
    step, speed = start, Speed()
    with Progress(label, num_steps, start) as progress:
        for step, batch in enumerate(batches.from_step(start, start if stopped else num_steps), start=start + 1):
            distributed.reseed(seed, step)
            own = distributed.share(batch)
            on_device = {name: tensor.to(device) for name, tensor in own.items()}
            means = distributed.average(trained, learned(losses, on_device, step, autocast, scaler))
            numbers = {f"train/{name}": value.item() for name, value in means.items()}
            loss = numbers["train/loss"]
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss} at step {step} of {label}; lower learning_rate")
            scaler.unscale_(optimizer)
            grad_norm = float(nn.utils.clip_grad_norm_(trained, max_norm=max_grad_norm))
            if not math.isfinite(grad_norm) and scaler.get_scale() <= 1:  # with a larger scale the next step has half
                raise FloatingPointError(f"the gradient is {grad_norm} at step {step} of {label}; lower learning_rate")
            numbers |= {"train/grad_norm": grad_norm, "train/learning_rate": float(scheduler.get_last_lr()[0])}

            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
            if after_step is not None:
                after_step(step)
            speed.examples += len(next(iter(batch.values())))

            if evaluate is not None and (step == num_steps or (eval_every and step % eval_every == 0)):
                with speed.paused():
                    score = distributed.broadcast(evaluate() if distributed.rank() == 0 else None)
                if score is not None:
                    numbers["select/score"] = score
                    best.offer(score, step, model)
                    stopped = 0 < patience <= best.stale
                model.train()
            if step == num_steps or stopped:
                numbers["train/examples_per_second"] = speed.per_second()
            observe(step, numbers)
            progress.at(step, loss=loss)
            if state is not None:
                with speed.paused():
                    state.save_when_due(step, everything)
            if stopped:
                break
    if step > start:
        if step < max(num_steps, planned_steps):
            rate = numbers["train/examples_per_second"]
            of = f"{step} of {max(num_steps, planned_steps)} steps"
            if stopped:
                of += f"; {patience} scores in a row were no better than {best.score:.4g} at step {best.step}"
            print(f"{label}: stopped after {of}; {rate:.4g} examples/s", flush=True)
        if state is not None:
            state.save(step, everything)
    if best.weights:
        model.load_state_dict(best.weights)
    model.eval()
    return best
