"""What a masked LM puts at one masked position of each row: many rows at a time, scores of that position only.

Letters: N rows, B rows of one forward pass, S the longest of them, H hidden_size, A heads, D rows per head,
V vocabulary, M fillers per row.

The scores are those of the model run on one unpadded row after the other; what makes them cheaper:
- Rows of similar length share a forward pass, long enough for the matrix products to run at full speed.
- Of the last layer only the masked position is asked for. One query q needs neither keys nor values,
      q·(Wk h + bk) = (Wkᵀq)·h + const,   Σ p (Wv h + bv) = Wv (Σ p h) + bv,   p = softmax over the positions.
- The decoder sees N states instead of N·S, many at a time.
- On the CPU the weights are laid out for oneDNN once, which otherwise happens in every product.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.models.bert import CompactBertModel, Layer
from compresskit.models.heads import CompactBertForMaskedLM

Row = tuple[Sequence[int], int, int]  # input ids, the position from which token types are 1, the masked position

BATCH_TOKENS = 1024
DECODED_AT_ONCE = 256  # rows; (256, V) scores are 30 MB
NEW_BATCH_TOKENS = 32  # a forward pass more costs as much as this many tokens (BERT-base, one core)


class MaskFiller:
    """Finds the best fillers with copies of the model's weights: later changes of the model do not arrive.

    allowed: (V,) bool, the vocabulary entries that may be chosen. dtype: torch.float32, or torch.bfloat16 for all
    layers but the last; last layer and decoder are always float32, else many fillers would score alike.
    """

    def __init__(
        self,
        model: CompactBertForMaskedLM,
        allowed: Tensor,
        num_fillers: int,
        *,
        dtype: torch.dtype = torch.float32,
        batch_tokens: int = BATCH_TOKENS,
    ):
        vocab_size = model.config.vocab_size
        if allowed.shape != (vocab_size,) or not 1 <= num_fillers <= int(allowed.sum()):
            raise ValueError(
                f"{num_fillers} fillers from {int(allowed.sum())} allowed entries of {len(allowed)}; the model has "
                f"{vocab_size}"
            )
        self.device, self.pad_token_id = model.device, model.config.pad_token_id or 0
        self.forbidden = ~allowed.to(self.device)
        self.num_fillers, self.batch_tokens = num_fillers, batch_tokens
        self.trunk = _trunk(model.bert, dtype)
        self.last: Any = copy.deepcopy(model.bert.encoder.layer[-1]).eval()
        self.head: Any = copy.deepcopy(model.cls.predictions).eval()
        if self.device.type == "cpu" and torch.backends.mkldnn.is_available():
            for layer in self.trunk.encoder.layer:
                _pack(layer, ("query", "key", "value"))
            _pack(self.last, ("query",))
            self.head.transform.dense = PackedLinear(self.head.transform.dense)
            self.head.decoder = PackedLinear(self.head.decoder)

    @torch.inference_mode()
    def __call__(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """Ids of the M best allowed fillers of each row, best first, and their scores: (N, M) int64 and float32."""
        ids = torch.zeros(len(rows), self.num_fillers, dtype=torch.int64)
        scores = torch.zeros(len(rows), self.num_fillers)
        states = torch.zeros(len(rows), self.last.config.hidden_size, device=self.device)
        for batch in batches_of_similar_length([len(row[0]) for row in rows], self.batch_tokens):
            states[batch] = self._states([rows[i] for i in batch])
        for begin in range(0, len(rows), DECODED_AT_ONCE):
            part = slice(begin, begin + DECODED_AT_ONCE)
            best = self.head(states[part]).masked_fill_(self.forbidden, -torch.inf).topk(self.num_fillers)
            ids[part], scores[part] = best.indices.cpu(), best.values.cpu()
        return ids, scores

    def _states(self, rows: Sequence[Row]) -> Tensor:
        """The encoder's output at the masked positions, (B, H)."""
        lengths = torch.tensor([len(row[0]) for row in rows])
        places = torch.arange(int(lengths.max()))
        real = places < lengths[:, None]  # (B, S)
        input_ids = torch.full(real.shape, self.pad_token_id)
        input_ids[real] = torch.tensor([token for row in rows for token in row[0]])
        types = (places >= torch.tensor([row[1] for row in rows])[:, None]).long()
        positions = torch.tensor([row[2] for row in rows])
        input_ids, types, real, positions = (t.to(self.device) for t in (input_ids, types, real, positions))

        mask = None if bool(real.all()) else real
        hidden = self.trunk(input_ids, mask, types).last_hidden_state.float()  # (B, S, H)
        return layer_at(self.last, hidden, mask, positions)


def layer_at(layer: Layer, hidden: Tensor, mask: Tensor | None, positions: Tensor) -> Tensor:
    """One layer's output at one position of each row.

    hidden: (B, S, H); mask: (B, S) bool, true on real tokens; positions: (B,).  Returns (B, H).
    """
    attention, heads = layer.attention.self, layer.config.per_layer("num_attention_heads")[layer.index]
    own = hidden[torch.arange(len(hidden), device=hidden.device), positions]
    query = attention.query(own).unflatten(-1, (heads, -1))  # (B, A, D)
    keys, values = (linear.weight.unflatten(0, (heads, -1)) for linear in (attention.key, attention.value))  # (A, D, H)
    scores = torch.einsum("bad,adh->bah", query, keys) @ hidden.mT * query.shape[-1] ** -0.5  # (B, A, S)
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None], -torch.inf)
    mixed = scores.softmax(-1) @ hidden  # (B, A, H)
    context = torch.einsum("bah,adh->bad", mixed, values).flatten(1) + attention.value.bias
    attended = layer.attention.output(context, own)
    return layer.feed(attended, layer.config)


def batches_of_similar_length(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Positions in `lengths`, by length, cut where padding would cost more than a forward pass of its own.

    A batch has at most `batch_tokens` tokens with its padding, or one row.
    """
    batches: list[list[int]] = []
    longest = 0
    for position in sorted(range(len(lengths)), key=lengths.__getitem__):
        length = lengths[position]
        size = len(batches[-1]) if batches else 0
        if batches and size * (length - longest) <= NEW_BATCH_TOKENS and (size + 1) * length <= batch_tokens:
            batches[-1].append(position)
        else:
            batches.append([position])
        longest = length
    return batches


def _trunk(encoder: CompactBertModel, dtype: torch.dtype) -> CompactBertModel:
    """A copy of the encoder without its last layer."""
    trunk = copy.deepcopy(encoder)
    trunk.encoder.layer = trunk.encoder.layer[:-1]
    if dtype == torch.bfloat16 and trunk.device.type == "cpu":
        if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
            raise ValueError("this CPU multiplies no bfloat16 numbers; use float32")
        trunk.set_attn_implementation("eager")  # torch's fused attention is the slower one in bfloat16
    return nn.Module.to(trunk, dtype).eval()


def _pack(layer: Any, attention: Sequence[str]) -> None:
    """Lay out the weights of a layer for oneDNN, of its attention those that are named."""
    for name in attention:
        setattr(layer.attention.self, name, PackedLinear(getattr(layer.attention.self, name)))
    layer.attention.output.dense = PackedLinear(layer.attention.output.dense)
    if layer.config.feed_forward is not None:
        for one in layer.feed_forward:
            one.intermediate["dense"] = PackedLinear(one.intermediate["dense"])
            one.output.dense = PackedLinear(one.output.dense)
        return
    layer.output.dense = PackedLinear(layer.output.dense)
    gelu = layer.config.hidden_act == "gelu"
    layer.intermediate.dense = PackedLinear(layer.intermediate.dense, gelu)
    if gelu:
        layer.intermediate.activation = nn.Identity()


class PackedLinear(nn.Module):
    """A whole linear layer, optionally followed by gelu, with its weight as oneDNN multiplies it.  Inference only."""

    def __init__(self, linear: nn.Linear, gelu: bool = False):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = linear.bias.detach()
        self.after: tuple[str, list, str] = ("gelu", [], "none") if gelu else ("none", [], "")  # the erf form

    def forward(self, input: Tensor, *whole: object) -> Tensor:
        """input: (..., in); whole: what an elastic layer is asked for, here always all of it.  Returns (..., out)."""
        return torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, *self.after)
