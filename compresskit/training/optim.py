"""The optimizer and its learning-rate schedule."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR


def adamw(modules: Iterable[nn.Module], learning_rate: float, weight_decay: float = 0.01) -> AdamW:
    """AdamW over all trainable parameters; biases and LayerNorm weights do not decay."""
    decaying: dict[str, nn.Parameter] = {}
    free: dict[str, nn.Parameter] = {}
    for number, module in enumerate(modules):
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                exempt = name.endswith("bias") or "LayerNorm" in name
                (free if exempt else decaying)[f"{number}.{name}"] = parameter
    groups = [
        {"params": list(decaying.values()), "weight_decay": weight_decay},
        {"params": list(free.values()), "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=learning_rate, fused=True)


def linear_schedule(optimizer: torch.optim.Optimizer, num_steps: int, warmup_ratio: float = 0.1) -> LambdaLR:
    """Learning rate from 0 up over the first `warmup_ratio` of the steps, then linearly down to 0."""
    warmup = int(num_steps * warmup_ratio)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return max(0.0, (num_steps - step) / max(1, num_steps - warmup))

    return LambdaLR(optimizer, factor)
