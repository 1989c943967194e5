"""A step of AutoTinyBERT's distillation the published way: the peer of benchmarks/super_step.py.

The teacher runs with gradients, so that the backward pass goes through it too; maps and states of all layers of both
models are built and kept; tables and matrices are cut and indexed wherever they are used; the graph is retained. Mask
and token types are in each other's place, as in the released program. gelu and LayerNorm are torch's own, which the
original need not have been as fast as. Weights carry BERT's names, so ours load. Held to the recorded numbers of the
original by tests/test_autotinybert_peer.py.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.tinybert_original import Original


class SuperOriginal(Original):
    """A supernet of the kd flavour, of which each call runs one subnet."""

    def __init__(self, config: Any):
        super().__init__(config, fused=True)
        self.qkv_size, self.eps = config.hidden_size, config.layer_norm_eps

    def forward(  # type: ignore[override]
        self, input_ids: Tensor, attention_mask: Tensor, subnet: Any
    ) -> tuple[list[Tensor], list[Tensor]]:
        """input_ids, attention_mask: (B, S).  Returns scores, (B, A, S, S), and states, (B, S, H), of all layers."""
        width, inner, heads = subnet.hidden_size, subnet.per_layer("intermediate_size")[0], self.heads
        size = subnet.per_layer("qkv_size")[0] // heads
        index = torch.cat([torch.arange(size) + head * (self.qkv_size // heads) for head in range(heads)])

        def norm(x: Tensor, layer: Any) -> Tensor:
            return F.layer_norm(x, (width,), layer.weight[:width], layer.bias[:width], self.eps)

        tables: Any = self.embeddings

        def table(name: str, ids: Tensor) -> Tensor:
            return F.embedding(ids, tables[name].weight[:, :width])

        positions = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        hidden = table("word_embeddings", input_ids) + table("position_embeddings", positions)
        hidden = norm(hidden + table("token_type_embeddings", attention_mask), tables["LayerNorm"])
        scores, states = [], []
        layers: Any = self.encoder["layer"]
        for layer in layers[: subnet.num_hidden_layers]:
            own, output = layer["attention"]["self"], layer["attention"]["output"]
            query, key, value = (
                F.linear(hidden, own[name].weight[:, :width][index], own[name].bias[index])
                .unflatten(-1, (heads, -1))
                .permute(0, 2, 1, 3)
                for name in ("query", "key", "value")
            )
            score = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(size)
            context = torch.matmul(F.softmax(score, dim=-1), value).permute(0, 2, 1, 3).flatten(2)
            dense = output["dense"]
            attended = norm(
                F.linear(context, dense.weight[:width][:, index], dense.bias[:width]) + hidden, output["LayerNorm"]
            )
            dense = layer["intermediate"]["dense"]
            wide = F.gelu(F.linear(attended, dense.weight[:inner, :width], dense.bias[:inner]))
            dense = layer["output"]["dense"]
            hidden = norm(
                F.linear(wide, dense.weight[:width, :inner], dense.bias[:width]) + attended,
                layer["output"]["LayerNorm"],
            )
            scores.append(score)
            states.append(hidden)
        return scores, states


def last_layer_losses(
    scores: Tensor, states: Tensor, project: nn.Linear, teacher_scores: Tensor, teacher_states: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention and representation loss of the last layers, over all elements."""
    ours, theirs = (torch.where(s <= -1e2, torch.zeros_like(s), s) for s in (scores, teacher_scores))
    fitted = F.linear(states, project.weight[:, : states.shape[-1]], project.bias)
    return F.mse_loss(ours, theirs), F.mse_loss(fitted, teacher_states)


def step_loss(
    student: SuperOriginal, teacher: Original, project: nn.Linear, subnet: Any, batch: dict[str, Tensor]
) -> Tensor:
    """The loss of one subnet, whose graph reaches into the teacher."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    scores, states = student(ids, mask, subnet)
    teacher_scores, teacher_states, _ = teacher(ids, torch.ones_like(mask), mask)
    return sum(last_layer_losses(scores[-1], states[-1], project, teacher_scores[-1], teacher_states[-1]))  # type: ignore[return-value]
