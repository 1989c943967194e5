"""Masked-LM pre-training: fresh masks, and a supernet whose subnets take turns."""

from __future__ import annotations

import torch
from torch import Tensor

from compresskit.models import CompactBertConfig, CompactBertForMaskedLM
from compresskit.models.heads import labelled_loss
from compresskit.training.loop import summed
from compresskit.training.pretrain import Masked, masked_lm

CONFIG = CompactBertConfig(
    vocab_size=30, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=16,
    max_position_embeddings=16, hidden_dropout_prob=0, attention_probs_dropout_prob=0,
)  # fmt: skip
SMALL, WHOLE = CONFIG.changed(num_hidden_layers=1, hidden_size=8), None


def network() -> CompactBertForMaskedLM:
    torch.manual_seed(0)
    model = CompactBertForMaskedLM(CONFIG).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


def batch() -> dict[str, Tensor]:
    ids = torch.randint(5, 30, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(9) < torch.tensor([[9], [4], [6]])).long()
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


def mask(batch: dict[str, Tensor], step: int) -> tuple[Tensor, Tensor]:
    """Every third real token, another third at each step."""
    chosen = (torch.arange(9) % 3 == step % 3) & batch["attention_mask"].bool()
    return batch["input_ids"].masked_fill(chosen, 4), batch["input_ids"].masked_fill(~chosen, -100)


class Same:
    """The same batch at every step."""

    def from_step(self, step: int, num_steps: int):
        return (batch() for _ in range(step, num_steps))


def masked(step: int) -> dict[str, Tensor]:
    """The batch of a step, counted from 1, as a run that starts there meets it."""
    return next(Masked(Same(), mask).from_step(step - 1, 9))


def learn(pieces) -> dict[str, Tensor]:
    """The sums of all pieces, the loss with its graph."""
    found = list(pieces)
    return {**summed(found), "loss": sum(piece["loss"] for piece in found)}


def full_loss(model, step: int, subnet) -> Tensor:
    """The model's own loss, decoding every position."""
    input_ids, labels = mask(batch(), step)
    given = {**batch(), "input_ids": input_ids}
    return model(**given, labels=labels, subnet=subnet).loss


def test_the_loss_is_the_models_own_and_every_step_has_its_own_masks():
    model = network()
    losses = masked_lm(model, labelled_loss)
    seen = []
    for step in (1, 2, 3):
        values = learn(losses(masked(step), step))
        assert values.keys() == {"loss"}
        torch.testing.assert_close(values["loss"], full_loss(model, step, None), rtol=0, atol=1e-12)
        seen.append(values["loss"].item())
    assert len(set(seen)) == 3


def test_subnets_of_a_step_share_its_masks_and_their_losses_are_averaged():
    model = network()
    turns = {1: [WHOLE, SMALL], 2: [SMALL], 3: [WHOLE, SMALL, SMALL]}
    losses = masked_lm(model, labelled_loss, turns.__getitem__)
    for step, subnets in turns.items():
        values = learn(losses(masked(step), step))
        expected = [full_loss(model, step, subnet) for subnet in subnets]
        torch.testing.assert_close(values["loss"], sum(expected) / len(expected), rtol=0, atol=1e-12)
        assert ({"loss_whole", "loss_subnets"} <= values.keys()) == (step != 2)
        if step != 2:
            others = sum(expected[1:]) / (len(expected) - 1)
            torch.testing.assert_close(values["loss_subnets"], others.detach(), rtol=0, atol=1e-12)
            torch.testing.assert_close(values["loss_whole"], expected[0].detach(), rtol=0, atol=1e-12)
            assert not values["loss_whole"].requires_grad


def test_the_gradient_is_the_mean_of_the_subnets_gradients():
    model = network()
    learn(masked_lm(model, labelled_loss, lambda step: [WHOLE, SMALL])(masked(1), 1))["loss"].backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    ((full_loss(model, 1, WHOLE) + full_loss(model, 1, SMALL)) / 2).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=0, atol=1e-12, msg=name)


def test_a_batch_in_parts_has_the_loss_and_the_gradient_of_the_whole_and_holds_one_part_at_a_time():
    model = network()
    given = masked(2)
    counts = [int((row != -100).sum()) for row in given["labels"]]
    assert len(set(counts)) > 1  # so that a mean of means would be another number
    found = []
    for parts in (1, 2, 3, 7):  # more parts than rows
        model.zero_grad()
        pieces = masked_lm(model, labelled_loss, lambda step: [WHOLE, SMALL], parts)(given, 2)
        losses = []
        for piece in pieces:
            piece["loss"].backward()
            losses.append(piece["loss"].detach())
        assert len(losses) == 2 * min(parts, 3)
        found.append([sum(losses), *(parameter.grad for parameter in model.parameters())])
    for other in found[1:]:
        for ours, whole in zip(other, found[0], strict=True):
            torch.testing.assert_close(ours, whole, rtol=1e-6, atol=1e-7)  # shares are float32


def test_a_batch_without_any_label_has_the_loss_0():
    given = masked(1)
    given["labels"] = torch.full_like(given["labels"], -100)
    assert learn(masked_lm(network(), labelled_loss)(given, 1))["loss"].item() == 0
