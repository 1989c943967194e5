"""Several processes that train one model on shares of the same batches, joined by torchrun; alone, nothing happens.

Every process draws the whole batch and keeps every n-th row; gradients are averaged in one all-reduce a step. Process 0
evaluates, saves and records; what it knows, it tells the others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from random import Random
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

Value = TypeVar("Value")
PATIENCE = timedelta(days=1)  # others wait while process 0 evaluates; one that died is noticed by its closed connection


class Parted(ConnectionError):
    """Another process of the run has stopped."""


def start() -> None:
    """Join the processes that torchrun started, and wait until all are there; nothing to do in a process of its own.

    NCCL where there are GPUs, one for each process, else gloo.  Raises ValueError where a process has no GPU left.
    """
    if not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1 or dist.is_initialized():
        return
    if not torch.cuda.is_available():
        dist.init_process_group("gloo", timeout=PATIENCE)
        return
    number, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number >= gpus:
        raise ValueError(f"this machine has {gpus} GPU(s) and each process needs its own; start {gpus} here")
    torch.cuda.set_device(number)
    dist.init_process_group("nccl", timeout=PATIENCE, device_id=torch.device("cuda", number))


def stop(wait: bool = True) -> None:
    """Part, when all processes are done; without waiting, the others meet `Parted`."""
    if size() > 1:
        if wait:
            with _together():
                dist.barrier()
        dist.destroy_process_group()


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """This process's rows of a batch: every n-th one.

    Rows that do not divide evenly, as in the last batch of an epoch, go whole to every process: the mean over processes
    of equal shares, and of equal batches, is the mean over all rows.
    """
    count = size()
    if count == 1 or len(next(iter(batch.values()))) % count:
        return batch
    return {name: tensor[rank() :: count].contiguous() for name, tensor in batch.items()}


def weight(count: Tensor) -> Tensor:
    """What a loss that is a mean over `count` things of this process's rows counts for: count / mean count.

    The mean over all processes of loss · weight is then the mean over the things of all rows. count: of any shape, so
    that one all-reduce serves several losses.  Returns float32 of that shape; ones in a single process.
    """
    count = count.detach().float()
    if size() == 1:
        return torch.ones_like(count)
    total = count.clone()
    with _together():
        dist.all_reduce(total)
    return count * size() / total.clamp(min=1)


def average(parameters: Sequence[nn.Parameter], numbers: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Put the mean over all processes in each parameter's gradient, and return the means of `numbers`, all scalars.

    One all-reduce of one vector. A parameter without gradient in every process keeps none; where only some have one it
    counts as 0 in the others.
    """
    if size() == 1:
        return numbers
    device = parameters[0].device
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    there = torch.tensor([float(p.grad is not None) for p in parameters], device=device)
    scalars = torch.stack([number.detach().float().reshape(()).to(device) for number in numbers.values()])
    flat = torch.cat([*(gradient.flatten() for gradient in gradients), there, scalars])
    with _together():
        dist.all_reduce(flat)
    flat /= size()
    *means, there, scalars = flat.split([*(g.numel() for g in gradients), len(there), len(scalars)])
    for parameter, mean, part in zip(parameters, means, there.tolist(), strict=True):
        parameter.grad = mean.view_as(parameter).to(parameter.dtype) if part else None
    return dict(zip(numbers, scalars.unbind(), strict=True))


def broadcast(value: Value) -> Value:
    """Process 0's value, in every process."""
    if size() == 1:
        return value
    box = [value]
    with _together():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def reseed(seed: int, step: int) -> None:
    """Give processes above 0 random numbers of their own, which follow from seed, process and step alone.

    They need no saving: a resumed run draws the same again. Process 0 goes on as a single process would.
    """
    if rank():
        torch.manual_seed(Random(f"{seed} {rank()} {step}").getrandbits(63))


@contextmanager
def _together() -> Iterator[None]:
    """What all processes do at once fails in all of them when one is gone."""
    try:
        yield
    except RuntimeError as error:
        raise Parted("another process of this run has stopped; its own message says why") from error
