"""Masked-LM pre-training, of one model or of a supernet whose subnets take turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from compresskit.training import distributed
from compresskit.training.loop import Batch, Batches, Losses

Mask = Callable[[Batch, int], tuple[Tensor, Tensor]]  # batch and step to masked input_ids and labels, (B, S)
Subnets = Callable[[int], Sequence[Any]]  # step to the subnets that learn from it; None stands for the whole network


def whole_network(step: int) -> Sequence[None]:
    """No subnets: the network itself at every step."""
    return (None,)


class Masked:
    """Batches as the model sees them, with `labels`. Each epoch has fresh masks, for they are drawn per step.

    They are drawn for whole batches, so that processes which share one have the masks that a single process would.
    """

    def __init__(self, batches: Batches, mask: Mask):
        self.batches, self.mask = batches, mask

    def from_step(self, step: int, num_steps: int) -> Iterator[Batch]:
        """See `loop.Batches`."""
        for number, batch in enumerate(self.batches.from_step(step, num_steps), start=step + 1):
            input_ids, labels = self.mask(batch, number)
            yield {**batch, "input_ids": input_ids, "labels": labels}


def masked_lm(model: PreTrainedModel, labelled_loss: Callable, subnets: Subnets = whole_network) -> Losses:
    """Losses of masked-LM training, from `Masked` batches.

    The decoder runs on labelled positions only (`labelled_loss(predictions, hidden, labels)`). With several subnets per
    step the loss is their mean, as AutoTinyBERT accumulates them; "loss_whole" is that of the whole network, if it ran.
    """

    def losses(batch: Batch, step: int) -> dict[str, Tensor]:
        input_ids, labels = batch["input_ids"], batch["labels"]
        words = distributed.weight((labels != -100).sum())
        values: dict[str, Tensor] = {}
        chosen = subnets(step)
        total = input_ids.new_zeros((), dtype=next(model.parameters()).dtype)
        for subnet in chosen:
            encoded = model.base_model(input_ids, batch["attention_mask"], batch["token_type_ids"], subnet=subnet)
            loss = words * labelled_loss(model.get_submodule("cls.predictions"), encoded.last_hidden_state, labels)
            if subnet is None and len(chosen) > 1:
                values["loss_whole"] = loss.detach()
            total = total + loss / len(chosen)
        return {"loss": total, **values}

    return losses
