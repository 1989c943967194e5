"""BERT's masked-word task: which tokens are hidden, and what the model sees in their place."""

from typing import Any

import torch
from torch import Generator, Tensor

IGNORED = -100  # label of tokens that are not predicted; cross_entropy's ignore_index


def mask_tokens(
    input_ids: Tensor, attention_mask: Tensor, tokenizer: Any, generator: Generator, probability: float = 0.15
) -> tuple[Tensor, Tensor]:
    """Masked input and labels, both (B, S): each ordinary token is chosen with `probability`, in every call anew.

    Of the chosen tokens 80 % become [MASK], 10 % any ordinary entry of the vocabulary, 10 % stay; labels hold their
    original ids and −100 elsewhere. Special tokens and padding are never chosen. As in BERT a row with ordinary tokens
    has at least one label (unless `probability` is 0, which masks nothing); a row without has none.
    Draws come from `generator`, on its device.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability {probability} is not between 0 and 1")
    special = torch.tensor(tokenizer.all_special_ids, device=input_ids.device)
    ordinary = attention_mask.bool() & ~torch.isin(input_ids, special)

    draw = _uniform(input_ids, generator)
    chosen = ordinary & (draw < probability)
    if probability > 0:
        luckiest = draw.masked_fill(~ordinary, 1.0).argmin(dim=1, keepdim=True)  # the first to be chosen, if any
        chosen |= ordinary & torch.zeros_like(chosen).scatter_(1, luckiest, True)
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
