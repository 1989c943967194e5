"""The one training loop. What is learned is a function that gives losses; see pretrain, finetune, distill and prune."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from compresskit.training.progress import Progress
from compresskit.training.state import Best, Stateful, TrainingState

Batch = dict[str, Tensor]
Losses = Callable[[Batch, int], dict[str, Tensor]]  # batch and step, from 1, to numbers of which "loss" is minimised
Observer = Callable[[int, Mapping[str, float]], None]


class Batches(Protocol):
    """Batches that are a function of the step alone."""

    def from_step(self, step: int, num_steps: int) -> Iterator[Batch]:
        """The batches of steps `step` to `num_steps` - 1, counted from 0."""


def ignore(step: int, numbers: Mapping[str, float]) -> None:
    """Observe nothing."""


def fit(
    model: nn.Module,
    batches: Batches,
    losses: Losses,
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
    max_grad_norm: float = 1.0,
    observe: Observer = ignore,
) -> Best:
    """Train `model` in place for `num_steps` optimizer steps, going on from `state` where it holds an earlier part.

    parts: whatever else `losses` and `after_step` change (a projection, a pruner), to be saved along. evaluate gives
    the score of the model as it is (higher is better; None: no contender), asked every `eval_every` steps and at the
    end; the best weights are then put back. Without it the last weights stand. max_grad_norm: bound on the norm of the
    whole gradient; infinity where the optimizer clips. observe gets the step and its numbers.
    Raises FloatingPointError when the loss or its gradient stops being a number, before the weights are touched.
    """
    best = Best()
    everything: dict[str, Stateful] = {
        "model": model, "optimizer": optimizer, "scheduler": scheduler, "best": best, **(parts or {}),
    }  # fmt: skip
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    device = trained[0].device
    start = 0 if state is None else state.restore(everything)
    model.train()
    with Progress(label, num_steps, start) as progress:
        for step, batch in enumerate(batches.from_step(start, num_steps), start=start + 1):
            values = losses({name: tensor.to(device) for name, tensor in batch.items()}, step)
            loss = values["loss"].item()
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss} at step {step} of {label}; lower learning_rate")

            values["loss"].backward()
            grad_norm = float(nn.utils.clip_grad_norm_(trained, max_norm=max_grad_norm))
            if not math.isfinite(grad_norm):
                raise FloatingPointError(f"the gradient is {grad_norm} at step {step} of {label}; lower learning_rate")
            learning_rate = float(scheduler.get_last_lr()[0])  # of this step
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
            if after_step is not None:
                after_step(step)

            numbers = {f"train/{name}": value.item() for name, value in values.items()}
            numbers |= {"train/grad_norm": grad_norm, "train/learning_rate": learning_rate}
            if evaluate is not None and (step == num_steps or (eval_every and step % eval_every == 0)):
                score = evaluate()
                if score is not None:
                    numbers["select/score"] = score
                    best.offer(score, step, model)
                model.train()
            observe(step, numbers)
            progress.at(step, loss=loss)
            if state is not None:
                state.save_when_due(step, everything)
    if state is not None and start < num_steps:
        state.save(num_steps, everything)
    if best.weights:
        model.load_state_dict(best.weights)
    model.eval()
    return best
