"""Run a model for its answers only: no dropout, no gradients, and nothing left behind."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode and inference mode inside; every module gets back the mode it was found in, errors included."""
    found = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        with torch.inference_mode():
            yield
    finally:
        for module, training in found:
            module.training = training


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters are; a model without any is on the CPU."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
