"""The one encoder: BERT whose widths, depth and formulas stand in its config, and whose parts can run alone.

Shapes: B batch, S sequence, H hidden_size, A heads, D rows per head (qkv_size = A·D), F intermediate_size,
V vocabulary, C classes. Parameter names are those of transformers' BERT, so that its checkpoints need no translation.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.utils import ModelOutput, can_return_tuple

from compresskit.kernels import attention
from compresskit.kernels.received_attention import received_attention
from compresskit.models import feed_forward, length_front, lengths, sparse
from compresskit.models.config import CompactBertConfig
from compresskit.models.elastic import ElasticLayerNorm, ElasticLinear, check_fits, head_rows, look_up

# What the five original programs add to the score of a masked key. Transformers uses the smallest number of the dtype.
# The two differ only in reported scores and in rows without any real token.
ORIGINAL_MASK = -10000.0


@dataclass
class EncoderOutput(ModelOutput):
    """Hidden states: the embedding's output, then each layer's, (B, S, H). Attentions and scores: (B, A, S, S).

    Query and key states: (B, A, S, D) of each layer. Where tokens were dropped, hidden states, attentions, scores and
    states are those of the tokens held, and kept_positions says for each layer which these are after it, (B, n): their
    positions, those that received the most attention first, and S for a place without a token.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    attention_scores: tuple[Tensor | None, ...] | None = None
    query_states: tuple[Tensor | None, ...] | None = None
    key_states: tuple[Tensor | None, ...] | None = None
    kept_positions: tuple[Tensor, ...] | None = None


class Inside(NamedTuple):
    """What one layer's attention computed. Scores (before the mask) and probabilities only where they were built, the
    attention that each token received, (B, S), where it was asked for.
    """

    queries: Tensor
    keys: Tensor
    scores: Tensor | None
    probabilities: Tensor | None
    received: Tensor | None


class Embeddings(nn.Module):
    """Word, position and token type vectors, added and normalised."""

    def __init__(self, config: CompactBertConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = ElasticLayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None, width: int) -> Tensor:
        """input_ids, token_type_ids: (B, S).  Returns (B, S, width)."""
        seq_len = input_ids.shape[1]
        if token_type_ids is None:
            types = self.token_type_embeddings.weight[0, :width]
        else:
            types = look_up(self.token_type_embeddings, token_type_ids, width)
        words = look_up(self.word_embeddings, input_ids, width)
        return self.dropout(self.LayerNorm(words + types + self.position_embeddings.weight[:seq_len, :width]))


class TrigramEmbeddings(nn.Module):
    """LN(W [next; this; previous token's vector] + b + type + position), the embedding of EfficientBERT and MobileBERT.

    The vectors, of embedding_size, are zero beyond both ends; padding is a neighbour like any other token.
    """

    def __init__(self, config: CompactBertConfig):
        super().__init__()
        assert config.embedding_size is not None
        self.word_embeddings = nn.Embedding(config.vocab_size, config.embedding_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.dense = ElasticLinear(3 * config.embedding_size, config.hidden_size)
        self.LayerNorm = ElasticLayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None, width: int) -> Tensor:
        """input_ids, token_type_ids: (B, S).  Returns (B, S, width)."""
        seq_len = input_ids.shape[1]
        if token_type_ids is None:
            types = self.token_type_embeddings.weight[0, :width]
        else:
            types = look_up(self.token_type_embeddings, token_type_ids, width)
        words = self.word_embeddings(input_ids)
        padded = F.pad(words, (0, 0, 1, 1))
        words = self.dense(torch.cat((padded[:, 2:], words, padded[:, :-2]), -1), width)
        return self.dropout(self.LayerNorm(words + types + self.position_embeddings.weight[:seq_len, :width]))


class SelfAttention(nn.Module):
    """Queries, keys and values; all heads side by side in one matrix each."""

    def __init__(self, config: CompactBertConfig, layer: int):
        super().__init__()
        qkv_size = config.per_layer("qkv_size")[layer]
        self.query = ElasticLinear(config.hidden_size, qkv_size)
        self.key = ElasticLinear(config.hidden_size, qkv_size)
        self.value = ElasticLinear(config.hidden_size, qkv_size)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def forward(
        self, hidden: Tensor, mask: Tensor | None, heads: int, rows: Any, explicit: bool, queries: Tensor | None
    ) -> tuple[Tensor, Inside]:
        """hidden: (B, S, H); mask: additive, (B, 1, 1, S); explicit: build scores and probabilities, (B, A, S, S).

        queries: 1 where a query counts for the attention received, else 0, (B, S); None: nobody asks for it.
        Returns the context, (B, S, A·D), and what it was computed from.
        """
        query, key, value = (
            linear(hidden, rows).unflatten(-1, (heads, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )  # (B, A, S, D)
        scores = probabilities = received = None
        dropout = self.dropout.p if self.training else 0.0
        if explicit:
            scores = query @ key.mT * query.shape[-1] ** -0.5
            probabilities = (scores if mask is None else scores + mask).softmax(-1)
            context = self.dropout(probabilities) @ value
            received = None if queries is None else attention.column_sums(probabilities.detach(), queries)
        elif queries is None:
            context = attention.fused(query, key, value, mask, dropout)
        else:
            context, received = received_attention(query, key, value, mask, queries, dropout)
        # with one row per head it is a view, and torch multiplies that otherwise by a parameter than by a part of one
        context = context.transpose(1, 2).flatten(2).contiguous()
        return context, Inside(query, key, scores, probabilities, received)


class AddAndNorm(nn.Module):
    """A linear layer whose output is added to the residual and normalised (post-norm)."""

    def __init__(self, in_features: int, config: CompactBertConfig):
        super().__init__()
        self.dense = ElasticLinear(in_features, config.hidden_size)
        self.LayerNorm = ElasticLayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor, columns: Any = None) -> Tensor:
        """x: (B, S, in_features); residual: (B, S, H).  Returns (B, S, H)."""
        return self.add(self.dense(x, residual.shape[-1], columns), residual)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """What follows the linear layer; may write over x.  x, residual: (B, S, H).  Returns the same shape."""
        if self.dropout.training:
            x = self.dropout(x)
        elif x.dtype == residual.dtype and feed_forward.may_overwrite():
            return self.LayerNorm(x.add_(residual))
        return self.LayerNorm(x + residual)


class Attention(nn.Module):
    """Self-attention with its output projection."""

    def __init__(self, config: CompactBertConfig, layer: int):
        super().__init__()
        self.self = SelfAttention(config, layer)
        self.output = AddAndNorm(config.per_layer("qkv_size")[layer], config)


class Intermediate(nn.Module):
    """The widening half of the feed-forward."""

    def __init__(self, config: CompactBertConfig, layer: int):
        super().__init__()
        self.dense = ElasticLinear(config.hidden_size, config.per_layer("intermediate_size")[layer])
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden: Tensor, width: int) -> Tensor:
        """hidden: (B, S, H).  Returns (B, S, width)."""
        return self.activation(self.dense(hidden, width))


class FormulaFeedForward(nn.Module):
    """One feed-forward of a layer that has a formula: LN(x + dropout(formula(x, first linear, second linear)))."""

    def __init__(self, inner_size: int, config: CompactBertConfig):
        super().__init__()
        self.intermediate = nn.ModuleDict({"dense": ElasticLinear(config.hidden_size, inner_size)})
        self.output = AddAndNorm(inner_size, config)

    def forward(self, hidden: Tensor, run: feed_forward.Run, inner_size: int | None) -> Tensor:
        """hidden: (B, S, H); inner_size: of a subnet, None: all there is.  Returns the same shape as hidden."""
        first, second, width = self.intermediate["dense"], self.output.dense, hidden.shape[-1]
        return self.output.add(run(hidden, lambda t: first(t, inner_size), lambda t: second(t, width)), hidden)


class Layer(nn.Module):
    """Attention, then feed-forward: BERT's own, or as many as the layer's formula has."""

    def __init__(self, config: CompactBertConfig, layer: int):
        super().__init__()
        self.config, self.index = config, layer
        self.attention = Attention(config, layer)
        stack, inner_size = config.feed_forward_sizes()[layer]
        if config.feed_forward is None:
            self.intermediate = Intermediate(config, layer)
            self.output = AddAndNorm(inner_size, config)
        else:
            self.feed_forward = nn.ModuleList(FormulaFeedForward(inner_size, config) for _ in range(stack))

    def forward(
        self, hidden: Tensor, mask: Tensor | None, shape: CompactBertConfig, explicit: bool
    ) -> tuple[Tensor, Inside]:
        """hidden: (B, S, H) of the config `shape`.  Returns the states and the inside of the attention."""
        hidden, inside = self.attend(hidden, mask, shape, explicit)
        return self.feed(hidden, shape), inside

    def attend(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        shape: CompactBertConfig,
        explicit: bool,
        queries: Tensor | None = None,
    ) -> tuple[Tensor, Inside]:
        """The attention with its output and norm.  hidden: (B, S, H) of the config `shape`; the rest: `SelfAttention`.

        Returns the states, (B, S, H), and the inside of the attention.
        """
        rows = head_rows(self.config, shape, self.index)
        heads = shape.per_layer("num_attention_heads")[self.index]
        context, inside = self.attention.self(hidden, mask, heads, rows, explicit, queries)
        return self.attention.output(context, hidden, rows), inside

    def feed(self, hidden: Tensor, shape: CompactBertConfig) -> Tensor:
        """What follows the attention.  hidden: (B, S, H) of the config `shape`.  Returns the same shape."""
        formulas = shape.feed_forward
        if formulas is None:
            return self.output(self.intermediate(hidden, shape.per_layer("intermediate_size")[self.index]), hidden)
        overwrite = feed_forward.may_overwrite()
        plan = feed_forward.prepare(formulas[self.index], shape.feed_forward_width, overwrite=overwrite)
        inner_size = None if shape is self.config else shape.feed_forward_sizes()[self.index][1]
        for one in islice(self.feed_forward, plan.stack):
            hidden = one(hidden, plan.run, inner_size)
        return hidden


class Encoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: CompactBertConfig):
        super().__init__()
        self.layer = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))


class Pooler(nn.Module):
    """The activation, tanh in BERT, of a linear map of the first token's state."""

    def __init__(self, config: CompactBertConfig):
        super().__init__()
        self.dense = ElasticLinear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.pooler_act]

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: (B, S, H).  Returns (B, H)."""
        return self.activation(self.dense(hidden[:, 0], hidden.shape[-1]))


class CompactBertPreTrainedModel(PreTrainedModel):
    """What all heads share: config class, initialisation, attention choice."""

    config: CompactBertConfig
    config_class = CompactBertConfig
    base_model_prefix = "bert"
    _supports_sdpa = True

    def at(self, *, speedup: float | None = None, max_latency_ms: float | None = None, **conditions: Any) -> Self:
        """This model, weights shared, with the lengths of its front that are fast enough; see `length_front.at`."""
        return length_front.at(self, speedup=speedup, max_latency_ms=max_latency_ms, **conditions)

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:  # transformers guesses it from the source, and guesses wrong
        return True


class CompactBertModel(CompactBertPreTrainedModel):
    """Embeddings, encoder and, unless `add_pooling_layer` is false, the pooler."""

    def __init__(self, config: CompactBertConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = Embeddings(config) if config.embedding == "bert" else TrigramEmbeddings(config)
        self.encoder = Encoder(config)
        self.pooler = Pooler(config) if add_pooling_layer else None
        if config.sparse:
            sparse.build(self.encoder, config.sparse)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word vectors, (V, H)."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word vectors."""
        self.embeddings.word_embeddings = value  # type: ignore[assignment]

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        subnet: CompactBertConfig | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        output_attention_scores: bool | Collection[int] = False,
        output_query_key_states: bool | Collection[int] = False,
        length_config: Sequence[int] | Sequence[float] | None = None,
        layer_config: Sequence[int] | None = None,
        padded_queries: bool = False,
        faithful: bool = False,
    ) -> EncoderOutput:
        """input_ids, token_type_ids, attention_mask (1 = real token): (B, S); no mask: all real, no types: all 0.

        subnet: run only this smaller network inside the weights. output_attentions asks for probabilities,
        output_attention_scores for the scores before the softmax, masked keys lowered by 10⁴, of all layers or of those
        named, counted from 0 (the others' are None); both compute attention explicitly. output_query_key_states asks
        in the same way for what the scores are products of. faithful: as AutoTinyBERT's released pre-training called
        it, with mask and token types in each other's place and masked keys lowered by 10⁴ in the softmax too.

        length_config: how many tokens each layer keeps, in numbers or in shares of each sequence's real tokens; more
        than there are: all; None: the config's own, which may be none; (): all. Models with a pooler always keep the
        first token. layer_config: the layers that run, from 0; a layer that is left out drops nothing. Positions of the
        output are those of the input, whatever was dropped. padded_queries: as the length-adaptive original, count
        also the attention that padding pays.
        Raises ValueError for a subnet that does not fit and for sequences longer than the position table.
        """
        config = self.config
        shape = config if subnet is None else subnet
        if subnet is not None:
            check_fits(config, subnet)
        if input_ids.shape[1] > config.max_position_embeddings:
            raise ValueError(
                f"{input_ids.shape[1]} tokens exceed max_position_embeddings {config.max_position_embeddings}; "
                "cut the input, or lower max_seq_len"
            )
        want_hidden = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        want_attentions = config.output_attentions if output_attentions is None else output_attentions
        if faithful:
            attention_mask, token_type_ids = token_type_ids, attention_mask
        every = range(shape.num_hidden_layers)
        kept = every if output_attention_scores is True else output_attention_scores or ()
        kept_factors = every if output_query_key_states is True else output_query_key_states or ()
        asked = want_attentions or config._attn_implementation == "eager"
        gradients = torch.is_grad_enabled()
        dropout = config.attention_probs_dropout_prob if self.training else 0.0

        def explicit(count: int) -> bool:
            device = input_ids.device
            return asked or not attention.fused_is_faster(count, device, gradients=gradients, dropout=dropout)

        if gradients and attention_mask is not None and not explicit(input_ids.shape[1]):
            # torch's fused attention on the CPU has wrong gradients for a row without any real token
            asked = not bool(attention_mask.any(-1).all())

        hidden = self.embeddings(input_ids, token_type_ids, shape.hidden_size)
        tokens = self._tokens(shape, input_ids, attention_mask, length_config, padded_queries)
        if layer_config is not None:
            lengths.check_layers(layer_config, shape.num_hidden_layers)
        running = every if layer_config is None else layer_config

        def masks(attention_mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
            """What is added in the softmax, and what the originals added."""
            if attention_mask is None:
                return None, None
            masked = 1 - attention_mask[:, None, None, :].to(hidden.dtype)
            lowered = masked * ORIGINAL_MASK
            return lowered if faithful else masked * torch.finfo(hidden.dtype).min, lowered

        mask, original_mask = masks(attention_mask)

        # only what is asked for is held: without gradients the rest is free as soon as the next layer has run
        all_hidden, all_attentions, all_scores, all_queries, all_keys = [hidden] if want_hidden else [], [], [], [], []
        kept_positions: list[Tensor] = []
        plain = not (gradients or self.training or asked or kept or output_query_key_states)
        if config.sparse and plain and hidden.device.type == "cpu":
            number_of_heads = shape.per_layer("num_attention_heads")
            states = sparse.run(
                self.encoder, hidden, lambda real: masks(real)[0], attention_mask, number_of_heads, running, tokens
            )
            for hidden in states:
                if want_hidden:
                    all_hidden.append(hidden)
                if tokens is not None:
                    kept_positions.append(tokens.positions)
            hidden = hidden.contiguous() if tokens is None else tokens.restored(hidden)
            return EncoderOutput(
                last_hidden_state=hidden,
                pooler_output=None if self.pooler is None else self.pooler(hidden),
                hidden_states=tuple(all_hidden) if want_hidden else None,
                kept_positions=None if tokens is None else tuple(kept_positions),
            )
        layer: Any
        for number, layer in enumerate(self.encoder.layer[: shape.num_hidden_layers]):
            if number not in running:
                continue
            built = explicit(hidden.shape[1]) or number in kept
            queries = tokens.queries(hidden.dtype) if tokens is not None and tokens.drops(number) else None
            attended, inside = layer.attend(hidden, mask, shape, built, queries)
            layer_mask = original_mask
            if tokens is not None and inside.received is not None:
                staying, leaving = tokens.drop(number, inside.received)
                tokens.leave(lengths.take(hidden, leaving))
                attended = lengths.take(attended, staying)
                mask, original_mask = masks(tokens.real)
            hidden = layer.feed(attended, shape)
            if tokens is not None:
                kept_positions.append(tokens.positions)
            if want_hidden:
                all_hidden.append(hidden)
            scores = inside.scores if number in kept else None  # (B, A, S, S) per layer: kept only where asked for
            all_scores.append(scores if scores is None or layer_mask is None else scores + layer_mask)
            if want_attentions:
                all_attentions.append(inside.probabilities)
            all_queries.append(inside.queries if number in kept_factors else None)
            all_keys.append(inside.keys if number in kept_factors else None)
            del inside, scores
        if tokens is not None:
            hidden = tokens.restored(hidden)
        return EncoderOutput(
            last_hidden_state=hidden,
            pooler_output=None if self.pooler is None else self.pooler(hidden),
            hidden_states=tuple(all_hidden) if want_hidden else None,
            attentions=tuple(all_attentions) if want_attentions else None,
            attention_scores=tuple(all_scores) if output_attention_scores else None,
            query_states=tuple(all_queries) if output_query_key_states else None,
            key_states=tuple(all_keys) if output_query_key_states else None,
            kept_positions=None if tokens is None else tuple(kept_positions),
        )

    def _tokens(
        self,
        shape: CompactBertConfig,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        length_config: Sequence[int] | Sequence[float] | None,
        padded_queries: bool,
    ) -> lengths.Tokens | None:
        """What keeps track of dropped tokens; None where none are to be dropped."""
        wanted = shape.length_config if length_config is None else length_config
        if not wanted:
            return None
        lengths.check(wanted, shape.num_hidden_layers, self.config.max_position_embeddings)
        return lengths.Tokens(
            wanted,
            None if attention_mask is None else attention_mask.bool(),
            input_ids,
            keep_first=self.pooler is not None,
            padded_queries=padded_queries,
        )
