"""The architecture is this config: the shape of a model, of a supernet, and of every network inside it."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from compresskit.models import feed_forward, length_front, lengths

PER_LAYER = ("num_attention_heads", "qkv_size", "intermediate_size")

# What decides the shape of the network. Dropout, label names and initialisation are settings of a training run.
SHAPE = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    *PER_LAYER,
    "feed_forward",
    "feed_forward_width",
    "embedding",
    "embedding_size",
    "max_position_embeddings",
    "type_vocab_size",
    "hidden_act",
    "layer_norm_eps",
    "pooler_act",
    "pooler_relu",
)


@strict
class CompactBertConfig(PreTrainedConfig):
    """BERT's own fields, and those in which the compressed networks differ from it.

    num_attention_heads, qkv_size and intermediate_size: one number, or a list with one number per layer.
    qkv_size: width of all heads together, a multiple of num_attention_heads; None: hidden_size.
    feed_forward: None for BERT's own, or one formula per layer (models/feed_forward.py), which says how many
        feed-forwards the layer has and which part of intermediate_size each is wide; feed_forward_width: what a binary
        operator of a formula does with unequal widths ("min" cuts, "max" pads, "max-faithful" pads as the original).
    embedding: "bert", or "trigram": three neighbouring token vectors of embedding_size, mapped to hidden_size.
    pooler_act: of the first token's state, behind the pooler's linear map: "tanh", as in BERT, or another activation,
        such as "relu" in DistilBERT.
    pooler_relu: relu between pooler and classifier, as in the task models of TinyBERT and SparseBERT.
    length_config: how many tokens each layer keeps where a call does not say it; see models/lengths.py.
    length_front: the length configs that a search found, and what each costs; see models/length_front.py.
    sparse: the linear layers that are stored by their nonzero weights, by their names in the encoder, each with [rows,
        columns, blocks of values, rows of a block, row pointers]; models/sparse.py makes it.
    tasks: the heads of a multi-task model, by the names of the tasks, each with its number of outputs.
    Raises ValueError where the numbers do not fit together.
    """

    model_type = "compact_bert"

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int | list[int] = 12
    qkv_size: int | list[int] | None = None
    intermediate_size: int | list[int] = 3072
    feed_forward: list[str] | None = None
    feed_forward_width: str = "min"
    embedding: str = "bert"
    embedding_size: int | None = None
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    pooler_act: str = "tanh"
    pooler_relu: bool = False
    length_config: list[int] | list[float] | None = None
    length_front: dict[str, Any] | None = None
    sparse: dict[str, list[int]] | None = None
    tasks: dict[str, int] | None = None
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        """Complete the defaults and refuse shapes that cannot be built."""
        super().__post_init__(**kwargs)
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings", "type_vocab_size"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected a whole number of at least 1")
        for name in PER_LAYER:
            if any(not isinstance(value, int) or value < 1 for value in self.per_layer(name)):
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected whole numbers of at least 1")
        heads = self.per_layer("num_attention_heads")
        for layer, (width, number) in enumerate(zip(self.per_layer("qkv_size"), heads, strict=True)):
            if width % number:
                raise ValueError(f"layer {layer}: qkv_size {width} is no multiple of num_attention_heads {number}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            rate = getattr(self, name)
            if not (rate is None and name == "classifier_dropout") and not (
                isinstance(rate, (int, float)) and 0 <= rate <= 1
            ):
                raise ValueError(f"{name} is {rate!r}; expected a number from 0 to 1")
        for name in ("hidden_act", "pooler_act"):
            if getattr(self, name) not in ACT2FN:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected an activation such as 'gelu' or 'relu'")
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(f"pad_token_id {self.pad_token_id} is outside a vocabulary of {self.vocab_size}")
        if self.feed_forward is not None and len(self.feed_forward) != self.num_hidden_layers:
            raise ValueError(f"feed_forward has {len(self.feed_forward)} formulas for {self.num_hidden_layers} layers")
        feed_forward.check_width(self.feed_forward_width)
        if self.feed_forward is not None:
            self._check_formulas()
        if self.embedding not in ("bert", "trigram"):
            raise ValueError(f"embedding is {self.embedding!r}; expected 'bert' or 'trigram'")
        if self.length_config is not None:
            lengths.check(self.length_config, self.num_hidden_layers, self.max_position_embeddings)
        if self.length_front is not None:
            length_front.check(self.length_front, self.num_hidden_layers, self.max_position_embeddings)
        trigram, size = self.embedding == "trigram", self.embedding_size
        if trigram and (not isinstance(size, int) or size < 1):
            raise ValueError(f"embedding_size is {size!r}; a trigram embedding needs the width of its token vectors")
        if not trigram and size is not None:
            raise ValueError(f"embedding 'bert' has no embedding_size {size}: its token vectors are hidden_size wide")

    def _check_formulas(self) -> None:
        """Write the formulas in their one form, and refuse those that cannot run."""
        formulas = []
        for layer, (text, wide) in enumerate(
            zip(self.feed_forward or (), self.per_layer("intermediate_size"), strict=True)
        ):
            try:
                formula = feed_forward.parse(text)
                formulas.append(str(formula))
                ratio = int((formula.size_index or "1_1").split("_")[1])
                if wide < ratio:
                    raise ValueError(f"formula {formula}: 1/{ratio} of an intermediate_size of {wide} is nothing")
                feed_forward.check_runs(formula, self.hidden_size, wide // ratio, self.feed_forward_width)  # type: ignore[arg-type]
            except ValueError as error:
                raise ValueError(f"layer {layer}: {error}") from None
        self.feed_forward = formulas

    def per_layer(self, name: str) -> list[int]:
        """One value per layer of num_attention_heads, qkv_size or intermediate_size."""
        value = getattr(self, name)
        if value is None:
            value = self.hidden_size
        if not isinstance(value, (list, tuple)):
            return [value] * self.num_hidden_layers
        if len(value) != self.num_hidden_layers:
            raise ValueError(f"{name} has {len(value)} values for {self.num_hidden_layers} layers")
        return list(value)

    def feed_forward_sizes(self) -> list[tuple[int, int]]:
        """How many feed-forwards each layer has, and their inner width."""
        wide = self.per_layer("intermediate_size")
        if self.feed_forward is None:
            return [(1, size) for size in wide]
        plans = [feed_forward.prepare(text, self.feed_forward_width) for text in self.feed_forward]
        return [(plan.stack, size // plan.ratio) for plan, size in zip(plans, wide, strict=True)]

    def brief(self, name: str) -> int | list[int]:
        """A field as a table shows it: one number where all layers have the same."""
        values = self.per_layer(name) if name in PER_LAYER else [getattr(self, name)]
        return values[0] if len(set(values)) == 1 else values

    def key(self) -> tuple:
        """The shape as a hashable value: equal for equal networks, however their sizes were written down."""

        def plain(name: str) -> Any:
            value = self.per_layer(name) if name in PER_LAYER else getattr(self, name)
            if self.feed_forward is not None and name == "intermediate_size":  # an inner width can be written in
                value = self.feed_forward_sizes()  # several ways, as one half of 8 or all of 4
            if self.feed_forward is not None and name == "feed_forward":
                value = [str(feed_forward.parse(text).resized(None)) for text in self.feed_forward]
            return tuple(value) if isinstance(value, list) else value

        return tuple((name, plain(name)) for name in SHAPE)

    def changed(self, **changes: Any) -> CompactBertConfig:
        """A copy with other values: a subnet of this network, or the same network with other settings."""
        if "num_hidden_layers" in changes:  # per-layer lists keep their leading layers
            for name in (*PER_LAYER, "feed_forward", "length_config"):
                value = getattr(self, name)
                if name not in changes and isinstance(value, list):
                    changes[name] = value[: changes["num_hidden_layers"]]
        if not changes.keys().isdisjoint(SHAPE):  # another network has another front
            changes.setdefault("length_front", None)
        if "hidden_size" in changes and self.qkv_size is None:  # a width never follows the hidden size unasked
            changes.setdefault("qkv_size", self.per_layer("qkv_size")[0])
        fields = {name: value for name, value in self.to_dict().items() if name != "model_type"}
        if "num_labels" in changes or "id2label" in changes:  # the old labels would speak against the new
            fields = {name: value for name, value in fields.items() if name not in ("id2label", "label2id")}
        attention = self._attn_implementation  # to_dict leaves it out; a subnet computes as its supernet does
        return CompactBertConfig(**{**fields, "attn_implementation": attention, **changes})
