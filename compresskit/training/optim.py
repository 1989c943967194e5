"""Optimizers and their learning-rate schedules: AdamW, and the BertAdam of the original programs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR


def decay_groups(modules: Iterable[nn.Module], weight_decay: float) -> list[dict[str, Any]]:
    """All trainable parameters in two groups: biases and LayerNorm weights do not decay."""
    decaying: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for module in modules:
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                (free if name.endswith("bias") or "LayerNorm" in name else decaying).append(parameter)
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def adamw(modules: Iterable[nn.Module], learning_rate: float, weight_decay: float = 0.01) -> AdamW:
    """AdamW over all trainable parameters; biases and LayerNorm weights do not decay."""
    return AdamW(decay_groups(modules, weight_decay), lr=learning_rate, fused=True)


class BertAdam(Optimizer):
    """Adam as BERT's first PyTorch code had it, the optimizer of TinyBERT, AutoTinyBERT, SparseBERT and EfficientBERT:

        g ← g·min(1, 1/(‖g‖ + 1e-6)) per tensor,  m ← 0.9m + 0.1g,  v ← 0.999v + 0.001g²,
        w ← w − lr·(m/(√v + eps) + λ·w)

    without bias correction; eps is 1e-6, in AutoTinyBERT's pre-training 1e-8. A tensor without gradient is left alone,
    decay included. Of sparse gradients and of several devices it knows nothing. With `bert_schedule`, counted from 0,
    the first update of a linear warm-up has learning rate 0.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        max_grad_norm: float = 1.0,
    ):
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "max_grad_norm": max_grad_norm}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every tensor that has a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        (beta1, beta2), state = group["betas"], self.state[weight]
        if not state:
            state["m"], state["v"] = torch.zeros_like(weight), torch.zeros_like(weight)
        clipped = gradient * (group["max_grad_norm"] / (gradient.norm() + 1e-6)).clamp(max=1.0)
        state["m"].mul_(beta1).add_(clipped, alpha=1 - beta1)
        state["v"].mul_(beta2).addcmul_(clipped, clipped, value=1 - beta2)
        update = state["m"] / (state["v"].sqrt() + group["eps"])
        if group["weight_decay"]:
            update.add_(weight, alpha=group["weight_decay"])
        weight.sub_(update * group["lr"])


class EarlyAdamW(Optimizer):
    """AdamW as transformers had it before it took torch's, the optimizer of Dynamic-TinyBERT. At a tensor's k-th update

        w ← w − lr·√(1 − β2ᵏ)/(1 − β1ᵏ) · m/(√v + eps),  then  w ← w − lr·λ·w

    Torch's adds eps to √(v/(1 − β2ᵏ)) instead: 30 times less of it at first.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every tensor that has a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        (beta1, beta2), state = group["betas"], self.state[weight]
        if not state:
            state["k"], state["m"], state["v"] = 0, torch.zeros_like(weight), torch.zeros_like(weight)
        state["k"] += 1
        state["m"].mul_(beta1).add_(gradient, alpha=1 - beta1)
        state["v"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        rate = group["lr"] * (1 - beta2 ** state["k"]) ** 0.5 / (1 - beta1 ** state["k"])
        weight.addcdiv_(state["m"], state["v"].sqrt().add_(group["eps"]), value=-rate)
        weight.mul_(1 - group["lr"] * group["weight_decay"])


def bert_schedule(
    optimizer: Optimizer, num_steps: int, schedule: str, warmup_ratio: float = 0.1, first_step: int = 0
) -> LambdaLR:
    """BertAdam's factor of the learning rate at the k-th update, counted from `first_step`, with x = k/num_steps.

    All but "none" (always 1) rise as x/warmup_ratio; then "warmup_linear" falls to 0 at x = 1, "warmup_cosine" follows
    half a cosine, "warmup_constant" stays at 1. A ratio of 1, at which the original divides by zero, rises to the end.
    Raises ValueError for another name.
    """
    after = {
        "none": lambda x: 1.0,
        "warmup_constant": lambda x: 1.0,
        "warmup_linear": lambda x: max((x - 1) / (warmup_ratio - 1), 0.0),
        "warmup_cosine": lambda x: 0.5 * (1 + math.cos(math.pi * (x - warmup_ratio) / (1 - warmup_ratio))),
    }
    if schedule not in after:
        raise ValueError(f"unknown schedule {schedule!r}; there are {', '.join(after)}")

    def factor(step: int) -> float:
        x = (step + first_step) / num_steps
        if schedule != "none" and (x < warmup_ratio or warmup_ratio == 1):
            return min(x / warmup_ratio, 1.0)
        return after[schedule](x)

    return LambdaLR(optimizer, factor)


@dataclass(frozen=True)
class Warmup:
    """The share of a run's steps in which the learning rate rises, as a number of steps too, and why it is this one."""

    ratio: float
    steps: int
    rule: str


def adaptive_warmup(num_steps: int, warmup_steps: int, warmup_ratio: float) -> Warmup:
    """`warmup_steps` where the run is as long as that, else `warmup_ratio`; warmup_steps 0: the ratio in any case.

    AutoTinyBERT's default of 10,000 steps is thus no obstacle to a run of three.
    """
    if 0 < warmup_steps <= num_steps:
        ratio, rule = warmup_steps / num_steps, f"warmup_steps {warmup_steps} of {num_steps}"
    elif warmup_steps:
        ratio = warmup_ratio
        rule = f"warmup_ratio {warmup_ratio:g}, for warmup_steps {warmup_steps} exceeds the run's {num_steps} steps"
    else:
        ratio, rule = warmup_ratio, f"warmup_ratio {warmup_ratio:g}"
    ratio = min(max(ratio, 0.0), 1.0)
    return Warmup(ratio, int(num_steps * ratio), rule)


def linear_schedule(optimizer: Optimizer, num_steps: int, warmup_ratio: float = 0.1) -> LambdaLR:
    """Learning rate from 0 up over the first `warmup_ratio` of the steps, then linearly down to 0."""
    warmup = int(num_steps * warmup_ratio)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return max(0.0, (num_steps - step) / max(1, num_steps - warmup))

    return LambdaLR(optimizer, factor)
