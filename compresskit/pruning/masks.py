"""Which weights go: the prunable matrices by name, masks by magnitude, and the pruner that applies them in training."""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from compresskit.pruning import patterns
from compresskit.pruning.patterns import Pattern
from compresskit.pruning.schedule import Schedule

# Six matrices per encoder layer and nothing else: no embedding, pooler, head, bias or LayerNorm (SparseBERT's choice).
# A layer with a formula has the last two once in each of its feed-forwards.
PRUNABLE = re.compile(
    r"(?:bert\.)?encoder\.layer\.(?P<layer>\d+)\.(?:feed_forward\.\d+\.(?!attention))?"
    r"(?P<kind>attention\.self\.(?:query|key|value)|attention\.output\.dense|intermediate\.dense|output\.dense)\.weight"
)
Kind = Literal["query", "key", "value", "attention_output", "intermediate", "output"]
KINDS: tuple[Kind, ...] = ("query", "key", "value", "attention_output", "intermediate", "output")
Threshold = Literal["matrix", "global"]


def kind_of(name: str) -> str | None:
    """The kind of a prunable matrix, one of KINDS; None for any other parameter."""
    match = PRUNABLE.fullmatch(name)
    return match and match["kind"].removeprefix("attention.self.").replace(".dense", "").replace(".", "_")


def prunable(names: Iterable[str], kinds: Collection[str] = KINDS) -> list[str]:
    """The prunable ones of these kinds among the names of a state dict, in their order; with or without `bert.`."""
    return [name for name in names if kind_of(name) in kinds]


def largest(magnitude: Tensor, sparsity: float, faithful: bool = False) -> Tensor:
    """Where the largest entries are: boolean, of the same shape, True at exactly floor(n · (1 − sparsity)) of the n.

    Among equal magnitudes at the border those first in memory stay, so that the target is met also by constant or
    coarsely rounded weights. faithful: every tie stays, and 1 − sparsity is taken with its rounding error.
    """
    # 1000 · (1 − 0.9) is 99.99999999999997 in floating point: 1e-6 of a weight makes it the 100 that was meant.
    keep = math.floor(magnitude.numel() * (1 - sparsity) + (0 if faithful else 1e-6))
    if keep == 0:
        return torch.zeros_like(magnitude, dtype=torch.bool)
    flat = magnitude.flatten()
    threshold = _kth_smallest(flat, flat.numel() - keep)
    if faithful:
        return magnitude >= threshold
    mask = flat > threshold
    ties = (flat == threshold).nonzero().squeeze(1)
    mask[ties[: keep - int(mask.sum())]] = True
    return mask.view(magnitude.shape)


def _kth_smallest(flat: Tensor, k: int) -> Tensor:
    """Entry number k, from 0, of the sorted ones. On the CPU numpy finds it four times as fast as torch's kthvalue."""
    if flat.device.type != "cpu" or flat.dtype not in (torch.float32, torch.float64):
        return flat.kthvalue(k + 1).values
    return torch.as_tensor(np.partition(flat.numpy(), k)[k])


def magnitude_mask(weight: Tensor, sparsity: float, pattern: Pattern = "unstructured") -> Tensor:
    """Mask of the weights of largest magnitude: boolean, of weight's shape, True where the weight stays.

    Exactly floor(n · (1 − sparsity)) of the n groups of the pattern stay; see `largest` and `patterns.magnitudes`.
    """
    if not 0.0 <= sparsity <= 1.0:
        raise ValueError(f"sparsity is a share of zeros between 0 and 1, not {sparsity}")
    patterns.check(pattern, weight)
    return patterns.spread(largest(_finite_magnitudes(weight, pattern), sparsity), pattern)


def _finite_magnitudes(weight: Tensor, pattern: Pattern) -> Tensor:
    if not torch.isfinite(weight).all():
        raise ValueError("a weight to prune is NaN or infinite: training has diverged; lower the learning rate")
    return patterns.magnitudes(weight.detach(), pattern)


class MagnitudePruner:
    """Zeroes the smallest weights of the prunable matrices of `model`, more of them as training goes on.

        pruner = MagnitudePruner(model, final_sparsity=0.95, begin=0, end=num_steps)
        for step, batch in enumerate(batches, start=1):
            ...
            optimizer.step()
            pruner.step(step)

    Masks change at `begin` + k · `frequency` and at `end`, following the cubic schedule, and are final from `end` on,
    where the target is held exactly: floor(n · (1 − s)) of the n weights, or groups of the pattern, stay. A weight
    once pruned stays zero.

    final_sparsity: of all prunable matrices, or a target for each matrix that is to be pruned, by its name. frequency:
    steps between two updates; None gives about 100 of them, the original's number. threshold: "matrix" meets the target
    in each matrix, "global" over all of them together. pattern: see `patterns`. restore_sparsity: go on from the zeros
    `model` already has (a matrix beyond the target keeps its own sparsity); without it, zeros of the start are weights
    like any other. fix_sparsity: masks stay as they are at the start. faithful: as SparseBERT's code, which falls
    short of the target (see `Schedule`), keeps every tie, and lets weights come back where the threshold is 0.

    Raises ValueError for a target, a schedule or a pattern that the model or another setting does not allow.
    """

    def __init__(
        self,
        model: nn.Module,
        final_sparsity: float | Mapping[str, float],
        begin: int,
        end: int,
        frequency: int | None = None,
        *,
        threshold: Threshold = "matrix",
        pattern: Pattern = "unstructured",
        restore_sparsity: bool = False,
        fix_sparsity: bool = False,
        faithful: bool = False,
    ):
        parameters = dict(model.named_parameters())
        if isinstance(final_sparsity, Mapping):
            targets = dict(final_sparsity)
        else:
            targets = dict.fromkeys(prunable(parameters), final_sparsity)
        if not targets:
            raise ValueError(
                f"{type(model).__name__} has no prunable matrix: no parameter is named like "
                "bert.encoder.layer.0.attention.self.query.weight"
            )
        if unknown := sorted(targets.keys() - parameters.keys()):
            raise ValueError(f"{type(model).__name__} has no parameter {unknown[0]}, for which there is a target")
        for target in targets.values():
            if not 0.0 <= target <= 1.0:
                raise ValueError(f"final_sparsity is a share of zeros between 0 and 1, not {target}")
        if pattern == "2:4" and not fix_sparsity and set(targets.values()) != {patterns.TWO_OF_FOUR}:
            raise ValueError("the pattern 2:4 leaves 2 of every 4 weights; set the sparsity to 0.5")
        if threshold == "global" and len(set(targets.values())) > 1:
            raise ValueError("a global threshold has one target for all matrices; give each of them the same")
        self.weights = {name: parameters[name] for name in targets}
        for name, weight in self.weights.items():
            patterns.check(pattern, weight, name)
        if frequency is None:
            frequency = max(1, round((end - begin) / 100))
        self.schedule = Schedule(begin, end, frequency, faithful)
        self.pattern, self.fix_sparsity, self.faithful = pattern, fix_sparsity, faithful
        # matrices that share a threshold, and the target of each such set
        self.sets = {"all": list(targets)} if threshold == "global" else {name: [name] for name in targets}
        self.targets = {key: targets[names[0]] for key, names in self.sets.items()}
        self.masks = {
            name: weight.detach() != 0 if restore_sparsity else torch.ones_like(weight, dtype=torch.bool)
            for name, weight in self.weights.items()
        }
        self.initial_sparsity = {key: self._empty_groups(names) for key, names in self.sets.items()}
        self.updated_at = begin  # the step whose sparsity the masks have
        self.settings = {
            "final_sparsity": targets if isinstance(final_sparsity, Mapping) else final_sparsity,
            "begin": begin,
            "end": end,
            "frequency": frequency,
            "threshold": threshold,
            "pattern": pattern,
            "restore_sparsity": restore_sparsity,
            "fix_sparsity": fix_sparsity,
            "faithful": faithful,
        }

    @property
    def final(self) -> bool:
        """Whether the masks will not change any more."""
        return self.fix_sparsity or self.updated_at >= self.schedule.last

    @torch.no_grad()
    def step(self, step: int) -> None:
        """Update the masks if their time has come, and zero the pruned weights in place.

        step: optimizer steps done so far, so 1 after the first. To be called after every one of them, because the
        optimizer's moments move pruned weights away from zero again.
        """
        due = self.schedule.due(step)
        if due > self.updated_at and not self.fix_sparsity:
            for key, names in self.sets.items():
                self._update(names, self.schedule.sparsity(due, self.initial_sparsity[key], self.targets[key]))
            self.updated_at = due
        for name, weight in self.weights.items():
            weight.mul_(self.masks[name])

    def _update(self, names: list[str], sparsity: float) -> None:
        """New masks for matrices under one threshold."""
        magnitudes = [_finite_magnitudes(self.weights[name] * self.masks[name], self.pattern) for name in names]
        kept = largest(torch.cat([groups.flatten() for groups in magnitudes]), sparsity, self.faithful)
        parts = kept.split([groups.numel() for groups in magnitudes])
        for name, groups, part in zip(names, magnitudes, parts, strict=True):
            mask = patterns.spread(part.view(groups.shape), self.pattern)
            self.masks[name] = mask if self.faithful else mask & self.masks[name]

    def _empty_groups(self, names: list[str]) -> float:
        """Share of the pattern's groups that hold no weight."""
        groups = [patterns.occupied(self.masks[name], self.pattern) for name in names]
        return 1 - sum(int(part.sum()) for part in groups) / sum(part.numel() for part in groups)

    def sparsity(self) -> float:
        """Share of exact zeros among all weights that are pruned, as they are in the model now."""
        nonzeros = sum(int(weight.count_nonzero()) for weight in self.weights.values())
        return 1 - nonzeros / sum(weight.numel() for weight in self.weights.values())

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs beside the weights; only numbers, strings and tensors."""
        return {
            "settings": self.settings,
            "updated_at": self.updated_at,
            "initial_sparsity": dict(self.initial_sparsity),
            "masks": {name: mask.clone() for name, mask in self.masks.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another pruner of the same schedule and matrices stood. The weights are not touched."""
        theirs = state["settings"]
        if unlike := [name for name, own in self.settings.items() if theirs.get(name) != own]:
            name = unlike[0]
            raise ValueError(f"the saved masks were made with {name} {theirs.get(name)}, not {self.settings[name]}")
        saved = {name: tuple(mask.shape) for name, mask in state["masks"].items()}
        own = {name: tuple(mask.shape) for name, mask in self.masks.items()}
        if saved != own:
            name = min(name for name in saved.keys() | own.keys() if saved.get(name) != own.get(name))
            raise ValueError(f"{name}: the saved mask has shape {saved.get(name)}, the model's matrix {own.get(name)}")
        self.updated_at = state["updated_at"]
        self.initial_sparsity = dict(state["initial_sparsity"])
        self.masks = {name: state["masks"][name].to(mask.device).clone() for name, mask in self.masks.items()}
