"""TinyBERT's training steps the way its first code does them: the peer of benchmarks/distill_step.py.

Attention maps of every layer of both models are built and kept, gelu and LayerNorm are written out in elementary
operations, the optimizer visits tensor after tensor. Weights carry BERT's names, so ours load. Held to the recorded
runs of the original by tests/test_tinybert_peer.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def gelu(x: Tensor) -> Tensor:
    """x·Φ(x), step by step."""
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


class LayerNorm(nn.Module):
    """Layer normalisation, step by step; `fused` takes torch's own."""

    fused = False

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., width).  Returns the same shape."""
        if self.fused:
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        centred = x - x.mean(-1, keepdim=True)
        return self.weight * (centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + self.eps)) + self.bias


class Original(nn.Module):
    """BERT with all attention scores and hidden states as output, from a config with transformers' field names.

    fused: torch's own gelu and LayerNorm, to be compared with transformers' eager model.
    """

    def __init__(self, config: Any, fused: bool = False):
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.heads, self.fused = config.num_attention_heads, fused

        def norm() -> LayerNorm:
            made = LayerNorm(width, config.layer_norm_eps)
            made.fused = fused
            return made

        def add_and_norm(columns: int) -> nn.ModuleDict:
            return nn.ModuleDict({"dense": nn.Linear(columns, width), "LayerNorm": norm()})

        def layer() -> nn.ModuleDict:
            own = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")})
            return nn.ModuleDict(
                {
                    "attention": nn.ModuleDict({"self": own, "output": add_and_norm(width)}),
                    "intermediate": nn.ModuleDict({"dense": nn.Linear(width, inner)}),
                    "output": add_and_norm(inner),
                }
            )

        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(config.vocab_size, width, padding_idx=0),
                "position_embeddings": nn.Embedding(config.max_position_embeddings, width),
                "token_type_embeddings": nn.Embedding(config.type_vocab_size, width),
                "LayerNorm": norm(),
            }
        )
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layer() for _ in range(config.num_hidden_layers))})
        self.pooler = nn.ModuleDict({"dense": nn.Linear(width, width)})

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """input_ids, attention_mask, token_type_ids: (B, S).

        Returns scores (B, A, S, S) of each layer, masked keys lowered by 10⁴, hidden states (B, S, H), the embedding's
        first, and the pooled state (B, H).
        """
        part = self.embeddings
        positions = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        hidden = (
            part["word_embeddings"](input_ids)
            + part["position_embeddings"](positions)
            + part["token_type_embeddings"](token_type_ids)
        )
        hidden = part["LayerNorm"](hidden)
        mask = (1.0 - attention_mask[:, None, None, :].to(hidden.dtype)) * -10000.0
        scores, states = [], [hidden]
        layers: Any = self.encoder["layer"]
        for layer in layers:
            own, output = layer["attention"]["self"], layer["attention"]["output"]
            query, key, value = (
                own[name](hidden).unflatten(-1, (self.heads, -1)).permute(0, 2, 1, 3)
                for name in ("query", "key", "value")
            )
            score = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(query.shape[-1]) + mask
            context = torch.matmul(F.softmax(score, dim=-1), value).permute(0, 2, 1, 3).flatten(2)
            attended = output["LayerNorm"](output["dense"](context) + hidden)
            wide = layer["intermediate"]["dense"](attended)
            wide = F.gelu(wide) if self.fused else gelu(wide)
            hidden = layer["output"]["LayerNorm"](layer["output"]["dense"](wide) + attended)
            scores.append(score)
            states.append(hidden)
        return scores, states, self.pooler["dense"](hidden[:, 0]).tanh()


def intermediate_loss(
    student: Original, teacher: Original, project: nn.Linear, mapping: Sequence[int], batch: dict[str, Tensor]
) -> Tensor:
    """The loss of the first step, by maps, over all elements of the batch."""
    inputs = [batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")]
    own_scores, own_states, _ = student(*inputs)
    with torch.no_grad():
        scores, states, _ = teacher(*inputs)
    attention = hidden = torch.zeros(())
    for own, target in zip(own_scores, mapping[1:], strict=True):
        ours, theirs = (torch.where(s <= -1e2, torch.zeros_like(s), s) for s in (own, scores[target - 1]))
        attention = attention + F.mse_loss(ours, theirs)
    for own, target in zip([project(state) for state in own_states], mapping, strict=True):
        hidden = hidden + F.mse_loss(own, states[target])
    return attention + hidden


def prediction_loss(
    student: Original, teacher: Original, heads: Sequence[nn.Linear], batch: dict[str, Tensor]
) -> Tensor:
    """The loss of the second step. heads: classifiers of student and teacher, behind a relu."""
    inputs = [batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")]
    logits = heads[0](student(*inputs)[2].relu())
    with torch.no_grad():
        target = heads[1](teacher(*inputs)[2].relu())
    return -(F.softmax(target, dim=-1) * F.log_softmax(logits, dim=-1)).mean()
