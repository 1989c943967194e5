"""Run a smaller config inside bigger weights, or take it out as a model of its own.

A subnet uses the leading layers, the leading columns of the hidden axis, the leading rows of the feed-forward, the
first n heads, and of each of these heads the leading q/n rows. This one rule covers both SuperBERT flavours of
AutoTinyBERT: MLM keeps the head size and drops heads, KD keeps the heads and shortens each of them. Where layers have
formulas, a subnet may have any others with a stack and an inner width that are there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from compresskit.models.config import PER_LAYER, SHAPE, CompactBertConfig


class HeadRows(NamedTuple):
    """The leading `size` rows of each of the first `heads` heads, which have `of` rows each in the supernet."""

    heads: int
    size: int
    of: int

    def cut(self, matrix: Tensor, dim: int = 0) -> Tensor:
        """Copies of these rows, or with dim 1 columns, side by side. By blocks: an index takes three times as long."""
        parts = matrix.unflatten(dim, (-1, self.of)).narrow(dim, 0, self.heads).narrow(dim + 1, 0, self.size)
        # of single rows this is a view still, and a product would sum it in another order
        return parts.flatten(dim, dim + 1).contiguous()


Rows = int | HeadRows  # a leading number of rows, or the leading rows of each head

# What a subnet may have less of. Everything else of its shape is the supernet's: only so is it the same network in
# place and taken out.
ELASTIC = {"num_hidden_layers", "hidden_size", *PER_LAYER, "feed_forward"}

Model = TypeVar("Model", bound=PreTrainedModel)


class ElasticLinear(nn.Linear):
    """A linear layer of which a part may be used: as many columns as the input has, and the rows asked for."""

    def forward(self, input: Tensor, rows: Rows | None = None, columns: Rows | None = None) -> Tensor:
        """input: (..., columns).  Returns (..., rows).  None: all rows; the leading columns that the input has."""
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if columns is None and rows in (None, self.out_features) and input.shape[-1] == self.in_features:
            return F.linear(input, weight, bias)
        if isinstance(rows, int) and rows != weight.shape[0]:
            weight, bias = weight[:rows], bias[:rows]
        if isinstance(columns, HeadRows):
            weight = columns.cut(weight, dim=1)
        elif input.shape[-1] != weight.shape[1]:
            weight = weight[:, : input.shape[-1]]
        if isinstance(rows, HeadRows):
            weight, bias = rows.cut(weight), rows.cut(bias)
        if not weight.is_contiguous() and input.numel() == input.shape[-1]:
            # one row alone is summed in an order that depends on the weight's layout; an extracted layer is compact
            weight = weight.contiguous()
        return F.linear(input, weight, bias)


class ElasticLayerNorm(nn.LayerNorm):
    """Layer normalisation with the leading entries of its weight and bias: as many as the input is wide."""

    def forward(self, input: Tensor) -> Tensor:
        """input: (..., width).  Returns the same shape."""
        width = input.shape[-1]
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if width != len(weight):  # a part costs two views, and two whole gradients
            weight, bias = weight[:width], bias[:width]
        return F.layer_norm(input, (width,), weight, bias, self.eps)


def look_up(table: nn.Embedding, ids: Tensor, width: int) -> Tensor:
    """The leading `width` columns of the rows `ids` of a table.  ids: (B, S).  Returns (B, S, width)."""
    if torch.is_grad_enabled():  # cut behind the look-up, whose gradient is a whole table; before it there were two
        return table(ids)[..., :width]
    return F.embedding(ids, table.weight[:, :width])


def head_rows(supernet: CompactBertConfig, subnet: CompactBertConfig, layer: int) -> Rows:
    """Which rows of q, k and v (columns of the output projection) the subnet's heads are, in order."""
    super_heads, heads = (c.per_layer("num_attention_heads")[layer] for c in (supernet, subnet))
    super_size, size = (c.per_layer("qkv_size")[layer] // n for c, n in ((supernet, super_heads), (subnet, heads)))
    return heads * size if size == super_size else HeadRows(heads, size, super_size)


def check_fits(supernet: CompactBertConfig, subnet: CompactBertConfig) -> None:
    """Raise ValueError, naming layer and field, where the subnet needs what the supernet does not have."""
    if supernet.sparse:
        raise ValueError("a sparse model has no subnets; make it dense first (models.sparse.to_dense)")
    for name in SHAPE:
        if name not in ELASTIC and getattr(subnet, name) != getattr(supernet, name):
            raise ValueError(
                f"the subnet's {name} {getattr(subnet, name)!r} is not the supernet's {getattr(supernet, name)!r}; "
                "make it with changed() of the supernet's config"
            )
    for name in ("num_hidden_layers", "hidden_size"):
        if getattr(subnet, name) > getattr(supernet, name):
            raise ValueError(
                f"the subnet's {name} {getattr(subnet, name)} exceeds the supernet's {getattr(supernet, name)}"
            )
    if (subnet.feed_forward is None) != (supernet.feed_forward is None):
        raise ValueError("a network with formulas and one without are not inside one another; give both, or neither")
    sizes = ("num_attention_heads",) if supernet.feed_forward else ("num_attention_heads", "intermediate_size")
    parts = list(zip(supernet.feed_forward_sizes(), subnet.feed_forward_sizes(), strict=False))
    for layer in range(subnet.num_hidden_layers):
        limits = {name: supernet.per_layer(name)[layer] for name in sizes}
        wanted = {name: subnet.per_layer(name)[layer] for name in sizes}
        if supernet.feed_forward:
            for number, name in enumerate(("stack of feed-forwards", "inner width")):
                limits[name], wanted[name] = parts[layer][0][number], parts[layer][1][number]
        qkv = subnet.per_layer("qkv_size")[layer] // wanted["num_attention_heads"]
        limits["rows per head"] = supernet.per_layer("qkv_size")[layer] // limits["num_attention_heads"]
        wanted["rows per head"] = qkv
        for name, limit in limits.items():
            if wanted[name] > limit:
                raise ValueError(f"layer {layer}: the subnet's {name} {wanted[name]} exceeds the supernet's {limit}")


def extract(model: Model, subnet: CompactBertConfig, layers: Sequence[int] | None = None) -> Model:
    """A new model of the same class that holds copies of the subnet's weights, heads included.

    layers: the layers of `model`, counted from 0, that become the subnet's; None: the leading ones. Equal bit for bit
    to running the subnet in place; dtype, device and mode are the model's. Raises ValueError where the subnet does not
    fit, the layers are not as many as it has, or the labels are not the model's.
    """
    supernet = cast(CompactBertConfig, model.config)
    chosen = list(range(subnet.num_hidden_layers)) if layers is None else list(layers)
    if layers is not None:
        if len(chosen) != subnet.num_hidden_layers or not all(0 <= i < supernet.num_hidden_layers for i in chosen):
            raise ValueError(
                f"layers {chosen} for a subnet of {subnet.num_hidden_layers} layers; give as many, each from 0 to "
                f"{supernet.num_hidden_layers - 1}"
            )
        widths: dict[str, Any] = {name: [supernet.per_layer(name)[i] for i in chosen] for name in PER_LAYER}
        if supernet.feed_forward is not None:
            widths["feed_forward"] = [supernet.feed_forward[i] for i in chosen]
        supernet = supernet.changed(num_hidden_layers=len(chosen), **widths)
    check_fits(supernet, subnet)
    if subnet.num_labels != supernet.num_labels:
        raise ValueError(f"the subnet has {subnet.num_labels} labels, the model {supernet.num_labels}")
    small = type(model)(subnet.changed(attn_implementation=supernet._attn_implementation))
    if getattr(model, "pooler", small) is None:
        small.pooler = None  # type: ignore[assignment]
    small.to(device=model.device, dtype=model.dtype)  # type: ignore[call-arg]  # transformers' wrapper hides `self`
    big = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, target in small.named_parameters():
            source = big[re.sub(r"(?<=encoder\.layer\.)\d+", lambda m: str(chosen[int(m[0])]), name)]
            target.copy_(_part(name, source, target.shape, supernet, subnet))
    return small.train(model.training)


def keep_layers(model: Model, layers: Sequence[int]) -> Model:
    """A new model of these layers of `model`, counted from 1, as wide as they are, with its embeddings and heads.

    Raises ValueError for a layer that the model does not have.
    """
    config = cast(CompactBertConfig, model.config)
    if not all(1 <= layer <= config.num_hidden_layers for layer in layers):
        count = config.num_hidden_layers
        raise ValueError(f"layers {list(layers)} of a model of {count} layers; each is from 1 to {count}")
    chosen = [layer - 1 for layer in layers]
    widths: dict[str, list] = {name: [getattr(config, name)[i] for i in chosen]
                               for name in (*PER_LAYER, "feed_forward", "length_config")
                               if isinstance(getattr(config, name), list)}  # fmt: skip
    return extract(model, config.changed(num_hidden_layers=len(chosen), **widths), chosen)


def _part(
    name: str, source: Tensor, shape: torch.Size, supernet: CompactBertConfig, subnet: CompactBertConfig
) -> Tensor:
    in_head = re.search(r"layer\.(\d+)\.attention\.(self\.(query|key|value)|output\.dense)\.(weight|bias)", name)
    if in_head:
        rows = head_rows(supernet, subnet, int(in_head[1]))
        if isinstance(rows, HeadRows) and in_head[3]:
            source = rows.cut(source)
        elif isinstance(rows, HeadRows) and in_head[4] == "weight":
            source = rows.cut(source, dim=1)
    return source[tuple(slice(length) for length in shape)]
