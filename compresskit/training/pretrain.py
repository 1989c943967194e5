"""Pre-training by masked words or by a teacher's last layer: of a model, or of a supernet whose subnets take turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from compresskit.training import distributed
from compresskit.training.distill import KEPT_MAPS, taught
from compresskit.training.loop import Batch, Batches, Pieces
from compresskit.training.losses import (
    attention_map_mse,
    attention_score_mse,
    hidden_state_mse,
    visible_score_mse,
)

Mask = Callable[[Batch, int], tuple[Tensor, Tensor]]  # batch and step to masked input_ids and labels, (B, S)
Subnets = Callable[[int], Sequence[Any]]  # step to the subnets that learn from it; None stands for the whole network
DENSE_FIT = "dense_fit."  # the projection's name in AutoTinyBERT's checkpoints


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


class DenseFit(nn.Linear):
    """AutoTinyBERT's map from a last state of any width up to `in_features` to the teacher's width."""

    def forward(self, input: Tensor) -> Tensor:
        """input: (..., width).  Returns (..., out_features), by the leading columns of the weight."""
        return F.linear(input, self.weight[:, : input.shape[-1]], self.bias)


def dense_fit(width: int, teacher_width: int, std: float, given: Mapping[str, Tensor]) -> tuple[DenseFit, bool]:
    """The projection of a model, and whether it is the one that came with it, in `given` by the names of checkpoints.

    Else, also where that one is of other widths, it starts at random as the model's weights do, with deviation `std`.
    """
    project = DenseFit(width, teacher_width)
    nn.init.normal_(project.weight, std=std)
    nn.init.zeros_(project.bias)
    own = {name.removeprefix(DENSE_FIT): tensor for name, tensor in given.items() if name.startswith(DENSE_FIT)}
    kept = {name: tensor.shape for name, tensor in own.items()} == {n: t.shape for n, t in project.state_dict().items()}
    if kept:
        project.load_state_dict(own)
    return project, kept


def released_form(project: DenseFit) -> dict[str, Tensor]:
    """The projection's weights by the names that `dense_fit` takes again."""
    return {DENSE_FIT + name: tensor for name, tensor in project.state_dict().items()}


def masked_lm(
    model: PreTrainedModel,
    labelled_loss: Callable,
    subnets: Subnets = whole_network,
    micro_batches: int = 1,
    faithful: bool = False,
) -> Pieces:
    """Losses of masked-LM training, from `Masked` batches; one piece for each subnet and micro-batch.

    The decoder runs on labelled positions only (`labelled_loss(predictions, hidden, labels)`). With several subnets per
    step the loss is their mean; "loss_whole" and "loss_subnets" are those of the whole network and of the others, where
    both learn. It is the mean over all labels of a batch, however it is cut. faithful: as in the encoder's `forward`.
    """

    def losses(batch: Batch, step: int) -> Iterator[dict[str, Tensor]]:
        parts = micro(batch, micro_batches)
        shares = _shares([(part["labels"] != -100).sum() for part in parts])
        chosen = subnets(step)
        for part, share in zip(parts, shares, strict=True):
            for subnet in chosen:
                encoded = model.base_model(**_inputs(part, faithful), subnet=subnet)
                predictions = model.get_submodule("cls.predictions")
                loss = share * labelled_loss(predictions, encoded.last_hidden_state, part["labels"])
                yield _piece(loss, subnet, chosen)

    return losses


def last_layer(
    model: PreTrainedModel,
    teacher: PreTrainedModel,
    project: DenseFit,
    subnets: Subnets = whole_network,
    micro_batches: int = 1,
    faithful: bool = False,
) -> Pieces:
    """Losses of AutoTinyBERT's distillation; one piece for each subnet and micro-batch:

        L = mse(scores_S, scores_T) + mse(project(state_S), state_T),   of the last layers

    The teacher runs once per micro-batch, without gradients, and of what it computes only its last layer is held.
    faithful: mask and token types in each other's place for both models, means over padding too, and scores of -100 or
    less as 0; else means run over real tokens.  Raises ValueError where the last layers have other numbers of heads.
    """
    check_last_heads(model.config, teacher.config)
    teacher.eval()

    def losses(batch: Batch, step: int) -> Iterator[dict[str, Tensor]]:
        parts = micro(batch, micro_batches)
        shares = _shares([_pairs_and_tokens(part, faithful) for part in parts])
        chosen = subnets(step)
        for part, share in zip(parts, shares, strict=True):
            given = _inputs(part, faithful)
            kind = batch["input_ids"].device.type
            target = taught(teacher.base_model, {**given, **_wish(teacher.config, part, faithful)})
            for subnet in chosen:
                wish = _wish(model.config if subnet is None else subnet, part, faithful)
                own = model.base_model(**given, **wish, subnet=subnet)
                with torch.autocast(kind, enabled=False):
                    attention, hidden = last_layer_losses(own, target, project, part["attention_mask"], faithful)
                attention, hidden = attention * share[0], hidden * share[1]
                piece = _piece(attention + hidden, subnet, chosen)
                terms = {"attention_loss": attention, "hidden_loss": hidden}
                yield piece | {name: term.detach() / len(chosen) for name, term in terms.items()}

    return losses


def last_layer_losses(
    own: Any, target: Any, project: DenseFit, attention_mask: Tensor, faithful: bool = False
) -> tuple[Tensor, Tensor]:
    """Attention and hidden-state loss of the last layers of two encoders' outputs, in the precision of `project`.

    faithful: as in `last_layer`.
    """
    exact = project.weight.dtype
    if own.attention_scores is not None:
        ours, theirs = (output.attention_scores[-1].to(exact) for output in (own, target))
        if faithful:
            attention = visible_score_mse(ours, theirs)
        else:
            attention = attention_map_mse([ours], [theirs], (0, 1), attention_mask)
    else:
        factors = ([(out.query_states[-1].to(exact), out.key_states[-1].to(exact))] for out in (own, target))
        attention = attention_score_mse(next(factors), next(factors), (0, 1), attention_mask)
    state, goal = (output.last_hidden_state.to(exact) for output in (own, target))
    return attention, hidden_state_mse([state], [goal], (0,), project, None if faithful else attention_mask)


def check_last_heads(config: Any, teacher: Any) -> None:
    """Raise ValueError unless the last layers of both configs have the same number of heads."""
    own, theirs = (shape.per_layer("num_attention_heads")[-1] for shape in (config, teacher))
    if own != theirs:
        raise ValueError(
            f"the last layer has {own} attention heads, the teacher's {theirs}; attention is compared head by head, so "
            "give the model as many (num_attention_heads; of a supernet's flavours only kd keeps them all)"
        )


def micro(batch: Batch, parts: int) -> list[Batch]:
    """The batch cut into as many parts, of every n-th row each; fewer where it has fewer rows."""
    count = min(parts, len(next(iter(batch.values()))))
    return [{name: tensor[i::count] for name, tensor in batch.items()} for i in range(count)]


def _inputs(batch: Batch, faithful: bool) -> dict[str, Any]:
    """What a model is called with; AutoTinyBERT's programs hand on no token types, so that nothing is masked."""
    types = None if faithful else batch["token_type_ids"]
    given = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "token_type_ids": types}
    return {**given, "faithful": faithful}


def _wish(config: Any, batch: Batch, faithful: bool) -> dict[str, Any]:
    """What a model is asked for beside its last state: the last scores, or of long rows what they are made of."""
    last = [config.num_hidden_layers - 1]
    maps = faithful or batch["input_ids"].shape[1] <= KEPT_MAPS
    return {"output_attention_scores" if maps else "output_query_key_states": last}


def _pairs_and_tokens(batch: Batch, padded: bool) -> Tensor:
    """What the two means of `last_layer_losses` run over, as counts up to a factor."""
    mask = torch.ones_like(batch["attention_mask"]) if padded else batch["attention_mask"]
    lengths = mask.sum(-1)
    return torch.stack([lengths.square().sum(), lengths.sum()])


def _shares(counts: Sequence[Tensor]) -> list[Tensor]:
    """What the mean over each part's things counts for: the sum is the mean over the things of all processes."""
    everything = torch.stack(list(counts)).sum(0)
    weight = distributed.weight(everything) / everything.clamp(min=1)
    return [weight * count for count in counts]


def _piece(loss: Tensor, subnet: Any, chosen: Sequence[Any]) -> dict[str, Tensor]:
    """The loss of one subnet as a part of the mean over those of the step."""
    piece = {"loss": loss / len(chosen)}
    whole = sum(one is None for one in chosen)
    if 0 < whole < len(chosen):
        name, count = ("loss_whole", whole) if subnet is None else ("loss_subnets", len(chosen) - whole)
        piece[name] = loss.detach() / count
    return piece
