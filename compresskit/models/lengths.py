"""Tokens that are dropped layer by layer and put back behind the last one (Length-Adaptive Transformer, section 3).

A `length_config` says how many tokens each layer keeps: after its attention those that received the most attention go
on to its feed-forward and to the layers above. Behind the last layer every token is put back with the state of the last
layer that it passed whole.

Letters: B batch, S sequence, n tokens that are held, H hidden_size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Lengths = Sequence[int] | Sequence[float]


def check(lengths: Any, num_layers: int, max_tokens: int) -> None:
    """Raise ValueError unless `lengths` is a length config for so many layers.

    That is: one number for each layer, none larger than the one before; either whole numbers of tokens, from 1 to
    max_tokens, or shares of a sequence, above 0 and up to 1.0.
    """
    given = list(lengths)
    if len(given) != num_layers:
        raise ValueError(f"length_config has {len(given)} lengths for {num_layers} layers; give one for each")
    whole = all(isinstance(length, int) and not isinstance(length, bool) for length in given)
    shares = all(isinstance(length, float) and 0 < length <= 1 for length in given)
    if not shares and not (whole and min(given) >= 1):
        raise ValueError(
            f"length_config is {given}; expected whole numbers of tokens, each at least 1, or shares of the sequence, "
            "each above 0 and up to 1.0"
        )
    for layer in range(1, num_layers):
        if given[layer] > given[layer - 1]:
            raise ValueError(
                f"length_config: layer {layer} cannot keep {given[layer]}, for layer {layer - 1} keeps "
                f"{given[layer - 1]}; dropped tokens do not come back, so lengths may only fall"
            )
    if whole and given[0] > max_tokens:
        raise ValueError(f"length_config: {given[0]} tokens exceed max_position_embeddings {max_tokens}; lower it")


def check_layers(layers: Any, num_layers: int) -> None:
    """Raise ValueError unless `layers`, a layer_config, are layers from 0 to num_layers - 1 in rising order."""
    given = list(layers)
    if given != sorted(set(given)) or not all(0 <= layer < num_layers for layer in given):
        raise ValueError(f"layer_config is {given}; expected layers from 0 to {num_layers - 1} in rising order")


def tokens_kept(lengths: Lengths, seq_len: int) -> list[int]:
    """How many of `seq_len` tokens each layer keeps: a length itself, at most all; a share rounded up."""
    return [min(seq_len, n if isinstance(n, int) else math.ceil(n * seq_len - 1e-9)) for n in lengths]


def take(states: Tensor, index: Tensor) -> Tensor:
    """The rows that `index`, (B, k), names of each sequence.  states: (B, n, H).  Returns (B, k, H)."""
    # whole rows by one flat index: torch.gather looks up every single number
    return states.flatten(0, 1).index_select(0, flat(index, states.shape[1])).unflatten(0, index.shape)


def flat(index: Tensor, count: int) -> Tensor:
    """Places in B sequences of `count` tokens, (B, k), as places in all of them one after the other, (B·k)."""
    return (index + torch.arange(0, index.shape[0] * count, count, device=index.device)[:, None]).flatten()


class Tokens:
    """Which tokens are still held, in which order, and the last states of those that are gone.

    lengths: a checked length config; real: true for real tokens, (B, S) as input_ids; None: all. With lengths in shares
    every sequence keeps its share of its own real tokens. keep_first: the first token always stays. padded_queries:
    count what padding attends to as well, as the original does.
    """

    def __init__(
        self, lengths: Lengths, real: Tensor | None, input_ids: Tensor, *, keep_first: bool, padded_queries: bool
    ):
        self.lengths, self.real, self.keep_first, self.padded_queries = lengths, real, keep_first, padded_queries
        batch, self.seq_len = input_ids.shape
        self.positions = torch.arange(self.seq_len, device=input_ids.device).expand(batch, -1)  # of those held, (B, n)
        self.places: list[Tensor] = []
        self.gone: list[Tensor] = []
        if isinstance(lengths[0], float):
            self.own = (torch.ones_like(input_ids) if real is None else real).sum(-1)  # how many tokens each has, (B,)

    def drops(self, layer: int) -> bool:
        """Whether this layer keeps fewer tokens than are held."""
        return self.most(layer) < self.positions.shape[1]

    def most(self, layer: int) -> int:
        """How many tokens the layer keeps of the longest sequence."""
        length = self.lengths[layer]
        return length if isinstance(length, int) else int(self._each(length).max())

    def _each(self, share: float) -> Tensor:
        """How many tokens of each sequence are a share of its own, (B,)."""
        return (self.own.double() * share - 1e-9).ceil().long().clamp(min=1)

    def queries(self, dtype: torch.dtype) -> Tensor:
        """1 for each query whose attention counts, else 0, (B, n)."""
        if self.real is None or self.padded_queries:
            return torch.ones_like(self.positions, dtype=dtype)
        return self.real.to(dtype)

    def drop(self, layer: int, received: Tensor) -> tuple[Tensor, Tensor]:
        """Choose the tokens that stay, most attention first, and those that leave, by their places among the held.

        received: the attention that each token held has received, (B, n).  Returns (B, k) and (B, l); with lengths in
        shares a token of a shorter sequence may be in both: its place is then filled, but no longer real.
        """
        if self.real is not None:
            received = received.masked_fill(~self.real, -1.0)  # padding goes first
        most, count = self.most(layer), received.shape[1]
        if self.keep_first:  # it stands in front since it was first chosen
            others = received[:, 1:].topk(most - 1).indices + 1
            best = torch.cat([torch.zeros_like(self.positions[:, :1]), others], 1)
        else:
            best = received.topk(most).indices
        rest = torch.ones_like(received).scatter(1, best, 0.0).topk(count - most).indices
        order = torch.cat([best, rest], 1)
        positions = self.positions.gather(1, order)
        length = self.lengths[layer]
        if isinstance(length, int):
            least = most
            self.places.append(positions[:, least:])
            self.positions = positions[:, :most]
            self.real = None if self.real is None else self.real.gather(1, order[:, :most])
        else:
            each = self._each(length)
            least = int(each.min())
            leaves = torch.arange(order.shape[1], device=order.device) >= each[:, None]
            nowhere = self.seq_len  # a place behind the sequence, which is cut off in the end
            self.places.append(positions.masked_fill(~leaves, nowhere)[:, least:])
            self.positions = positions.masked_fill(leaves, nowhere)[:, :most]
            self.real = ~leaves[:, :most]  # real tokens come before padding in `order`, and each is at most as many
        return order[:, :most], order[:, least:]

    def leave(self, states: Tensor) -> None:
        """Remember the states of the tokens that left last, (B, l, H), from before the layer that they left in."""
        self.gone.append(states)

    def restored(self, hidden: Tensor) -> Tensor:
        """All tokens in their order, (B, S, H).  hidden: those held, (B, n, H)."""
        if not self.gone:
            return hidden
        places = torch.cat([*self.places, self.positions], 1)
        index = torch.arange(places.shape[1], device=places.device).expand_as(places)
        found = places.new_zeros(places.shape[0], self.seq_len + 1).scatter(1, places, index)[:, :-1]
        return take(torch.cat([*self.gone, hidden], 1), found)
