"""Which weights go: the prunable matrices by name, masks by magnitude, and the pruner that applies them in training."""

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.pruning.schedule import cubic_sparsity

# Six matrices per encoder layer and nothing else: no embedding, pooler, head, bias or LayerNorm (SparseBERT's choice).
PRUNABLE = re.compile(
    r"(?:bert\.)?encoder\.layer\.(?P<layer>\d+)\."
    r"(?P<kind>attention\.self\.(?:query|key|value)|attention\.output\.dense|intermediate\.dense|output\.dense)\.weight"
)


def prunable(names: Iterable[str]) -> list[str]:
    """The prunable ones among the names of a state dict, in their order; with or without the prefix `bert.`."""
    return [name for name in names if PRUNABLE.fullmatch(name)]


def magnitude_mask(weight: Tensor, sparsity: float) -> Tensor:
    """Mask of the entries of largest magnitude: boolean, of weight's shape, True where the weight stays.

    Exactly floor(n · (1 − sparsity)) of the n entries stay. Among equal magnitudes at the border those first in memory
    stay, so that the target is met also by constant or coarsely rounded weights (the original keeps every tie).
    """
    if not 0.0 <= sparsity <= 1.0:
        raise ValueError(f"sparsity is a share of zeros between 0 and 1, not {sparsity}")
    if not torch.isfinite(weight).all():
        raise ValueError("a weight to prune is NaN or infinite: training has diverged; lower the learning rate")
    magnitude = weight.detach().abs().flatten()
    # 1000 · (1 − 0.9) is 99.99999999999997 in floating point: 1e-6 of a weight makes it the 100 that was meant.
    keep = math.floor(magnitude.numel() * (1 - sparsity) + 1e-6)
    if keep == 0:
        return torch.zeros_like(weight, dtype=torch.bool)
    threshold = magnitude.kthvalue(magnitude.numel() - keep + 1).values
    mask = magnitude > threshold
    ties = (magnitude == threshold).nonzero().squeeze(1)
    mask[ties[: keep - int(mask.sum())]] = True
    return mask.view(weight.shape)


class MagnitudePruner:
    """Zeroes the smallest weights of every prunable matrix of `model`, more of them as training goes on.

        pruner = MagnitudePruner(model, final_sparsity=0.95, begin=0, end=num_steps)
        for step, batch in enumerate(batches, start=1):
            ...
            optimizer.step()
            pruner.step(step)

    Every matrix has its own threshold and the same target. Masks change at `begin` + k · `frequency` and at `end`,
    following the cubic schedule, and are final from `end` on, where the target is held exactly: floor(n · (1 − s))
    weights stay. A weight once pruned stays zero. frequency: steps between two updates; None gives about 100 of them,
    the original's number. restore_sparsity: go on from the zeros `model` already has (a matrix beyond the target keeps
    its own sparsity); without it, zeros of the start are weights like any other.
    """

    def __init__(
        self,
        model: nn.Module,
        final_sparsity: float,
        begin: int,
        end: int,
        frequency: int | None = None,
        restore_sparsity: bool = False,
    ):
        if not 0.0 <= final_sparsity <= 1.0:
            raise ValueError(f"final_sparsity is a share of zeros between 0 and 1, not {final_sparsity}")
        if not 0 <= begin < end:
            raise ValueError(f"pruning from step {begin} to step {end} is no interval; expected 0 <= begin < end")
        if frequency is None:
            frequency = max(1, round((end - begin) / 100))
        if frequency < 1:
            raise ValueError(f"frequency is a number of steps, at least 1, not {frequency}")
        parameters = dict(model.named_parameters())
        self.weights = {name: parameters[name] for name in prunable(parameters)}
        if not self.weights:
            raise ValueError(
                f"{type(model).__name__} has no prunable matrix: no parameter is named like "
                "bert.encoder.layer.0.attention.self.query.weight"
            )
        self.final_sparsity, self.begin, self.end, self.frequency = final_sparsity, begin, end, frequency
        self.masks = {
            name: weight.detach() != 0 if restore_sparsity else torch.ones_like(weight, dtype=torch.bool)
            for name, weight in self.weights.items()
        }
        self.initial_sparsity = {name: 1 - int(mask.sum()) / mask.numel() for name, mask in self.masks.items()}
        self.updated_at = begin  # the step whose sparsity the masks have

    @torch.no_grad()
    def step(self, step: int) -> None:
        """Update the masks if their time has come, and zero the pruned weights in place.

        step: optimizer steps done so far, so 1 after the first. To be called after every one of them, because the
        optimizer's moments move pruned weights away from zero again.
        """
        self._apply()
        due = self.end if step >= self.end else step - (step - self.begin) % self.frequency
        if due > self.updated_at:
            for name, weight in self.weights.items():
                start = self.initial_sparsity[name]
                rise = max(self.final_sparsity - start, 0.0)
                sparsity = start + cubic_sparsity(due, self.begin, self.end, rise)
                self.masks[name] &= magnitude_mask(weight, min(sparsity, 1.0))
            self.updated_at = due
            self._apply()

    def _apply(self) -> None:
        for name, weight in self.weights.items():
            weight.mul_(self.masks[name])

    def sparsity(self) -> float:
        """Share of exact zeros among all prunable weights, as they are in the model now."""
        nonzeros = sum(int(weight.count_nonzero()) for weight in self.weights.values())
        return 1 - nonzeros / sum(weight.numel() for weight in self.weights.values())

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs beside the weights; only numbers, strings and tensors."""
        return {
            "schedule": self._schedule(),
            "updated_at": self.updated_at,
            "initial_sparsity": dict(self.initial_sparsity),
            "masks": {name: mask.clone() for name, mask in self.masks.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another pruner of the same schedule and matrices stood. The weights are not touched."""
        if state["schedule"] != self._schedule():
            raise ValueError(f"the saved pruning schedule {state['schedule']} is not this run's {self._schedule()}")
        saved = {name: tuple(mask.shape) for name, mask in state["masks"].items()}
        own = {name: tuple(mask.shape) for name, mask in self.masks.items()}
        if saved != own:
            name = min(name for name in saved.keys() | own.keys() if saved.get(name) != own.get(name))
            raise ValueError(f"{name}: the saved mask has shape {saved.get(name)}, the model's matrix {own.get(name)}")
        self.updated_at = state["updated_at"]
        self.initial_sparsity = dict(state["initial_sparsity"])
        self.masks = {name: state["masks"][name].to(mask.device).clone() for name, mask in self.masks.items()}

    def _schedule(self) -> dict[str, float]:
        return {
            "final_sparsity": self.final_sparsity,
            "begin": self.begin,
            "end": self.end,
            "frequency": self.frequency,
        }
