"""BERT's masked-word task: which tokens are hidden, and what the model sees in their place."""

from typing import Any

import torch
from torch import Generator, Tensor

IGNORED = -100  # label of tokens that are not predicted; cross_entropy's ignore_index
MOST_MASKED = 77  # of one row: 15 % of 512


def num_masked(length: Tensor, probability: float = 0.15, at_least_one: bool = True) -> Tensor:
    """How many tokens of rows of `length` tokens are masked, special ones counted: BERT's min(77, max(1, round(p·n))).

    Halves are rounded to the even number. With probability 0 none is, unless `at_least_one`.
    """
    least = int(at_least_one or probability > 0)
    return (length.double() * probability).round().clamp(least, MOST_MASKED).long()


def mask_tokens(
    input_ids: Tensor,
    attention_mask: Tensor,
    tokenizer: Any,
    generator: Generator,
    probability: float = 0.15,
    at_least_one: bool = False,
) -> tuple[Tensor, Tensor]:
    """Masked input and labels, both (B, S): of each row `num_masked` ordinary tokens are chosen, in every call anew.

    Of the chosen tokens 80 % become [MASK], 10 % any ordinary entry of the vocabulary, 10 % stay; labels hold their
    original ids and −100 elsewhere. Special tokens and padding are never chosen; a row with fewer ordinary tokens has
    them all chosen. at_least_one: also with probability 0, as AutoTinyBERT's distillation does.
    Draws come from `generator`, on its device. Raises ValueError for a probability that is none.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability {probability} is not between 0 and 1")
    special = torch.tensor(tokenizer.all_special_ids, device=input_ids.device)
    ordinary = attention_mask.bool() & ~torch.isin(input_ids, special)

    draw = _uniform(input_ids, generator).masked_fill(~ordinary, 2.0)
    rank = draw.argsort(dim=1).argsort(dim=1)  # ordinary tokens first, in random order
    wanted = num_masked(attention_mask.sum(dim=1), probability, at_least_one)
    chosen = ordinary & (rank < wanted[:, None])
    labels = input_ids.masked_fill(~chosen, IGNORED)

    fate = _uniform(input_ids, generator)
    candidates = torch.arange(len(tokenizer), device=input_ids.device)
    candidates = candidates[~torch.isin(candidates, special)]
    random_ids = candidates[(_uniform(input_ids, generator) * len(candidates)).long()]
    masked = torch.where(chosen & (fate < 0.8), tokenizer.mask_token_id, input_ids)
    masked = torch.where(chosen & (fate >= 0.9), random_ids, masked)
    return masked, labels


def _uniform(like: Tensor, generator: Generator) -> Tensor:
    # float64: in float32 the product with the vocabulary's size can round up to the size itself
    return torch.rand(like.shape, generator=generator, device=generator.device, dtype=torch.float64).to(like.device)
