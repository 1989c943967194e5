"""Masked-LM pre-training, of one model or of a supernet whose subnets take turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from compresskit.training.loop import Batch, Losses

Mask = Callable[[Batch, int], tuple[Tensor, Tensor]]  # batch and step to masked input_ids and labels, (B, S)
Subnets = Callable[[int], Sequence[Any]]  # step to the subnets that learn from it; None stands for the whole network


def whole_network(step: int) -> Sequence[None]:
    """No subnets: the network itself at every step."""
    return (None,)


def masked_lm(model: PreTrainedModel, mask: Mask, labelled_loss: Callable, subnets: Subnets = whole_network) -> Losses:
    """Losses of masked-LM training. Each epoch sees fresh masks, for they are drawn per step.

    The decoder runs on labelled positions only (`labelled_loss(predictions, hidden, labels)`). With several subnets per
    step the loss is their mean, as AutoTinyBERT accumulates them; "loss_whole" is that of the whole network, if it ran.
    """

    def losses(batch: Batch, step: int) -> dict[str, Tensor]:
        input_ids, labels = mask(batch, step)
        values: dict[str, Tensor] = {}
        chosen = subnets(step)
        total = input_ids.new_zeros((), dtype=next(model.parameters()).dtype)
        for subnet in chosen:
            encoded = model.base_model(input_ids, batch["attention_mask"], batch["token_type_ids"], subnet=subnet)
            loss = labelled_loss(model.get_submodule("cls.predictions"), encoded.last_hidden_state, labels)
            if subnet is None and len(chosen) > 1:
                values["loss_whole"] = loss.detach()
            total = total + loss / len(chosen)
        return {"loss": total, **values}

    return losses
