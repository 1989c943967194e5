"""The files of the original EfficientBERT: the network they hold, by its shapes, and the cut to a narrower one.

A file is a dict with `state_dict`, as best_model.bin and the pre-trained supernets are. It has no config: all but the
number of heads stands in the shapes. A searched network's file holds the whole supernet, four feed-forwards of full
width in every layer; the network itself is the subnet with its formulas (elastic.extract).
Names: `RENAMED` in checkpoints.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compresskit.models.checkpoints import Checkpoint
from compresskit.models.feed_forward import STACKS, plain

HEADS = 12  # of everything that was published
LAYER_NORM_EPS = 1e-5  # torch's default, also in its teachers; BERT has 1e-12
# Plain numbers that its metrics may be; the unpickler of tensors knows no others.
NUMPY_NUMBERS: list[Any] = [
    *((np._core.multiarray.scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),  # type: ignore[attr-defined]
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")),
]


def read(path: str | Path, num_attention_heads: int = HEADS) -> Checkpoint:
    """The checkpoint in a file. Raises FileNotFoundError, and ValueError where it is none of the original's."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; name a file of the original EfficientBERT")
    try:
        with torch.serialization.safe_globals(NUMPY_NUMBERS):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle's refusals: text, or objects, which would run code
        raise ValueError(
            f"{path} is no plain file of tensors and numbers and is not loaded; fetch it again if it is incomplete"
        ) from error
    state = found.get("state_dict", found) if isinstance(found, dict) else None
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"{path} has no state_dict of tensors; expected a file of the original EfficientBERT")
    return checkpoint(state, num_attention_heads, str(path))


def checkpoint(
    state_dict: Mapping[str, Tensor], num_attention_heads: int = HEADS, source: str = "the checkpoint"
) -> Checkpoint:
    """A state dict of the original as a checkpoint of ours: a supernet, or BERT where its layers have one feed-forward.

    The classifier of a file without a pooler is one of spans. The heads of multi-task training keep their names,
    classifiers.{task}. Raises ValueError for other names and for feed-forwards of differing number or width.
    """
    state = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    if "cls_pooler.dense.weight" not in state:
        state = {re.sub(r"^classifier\.", "qa_outputs.", name): tensor for name, tensor in state.items()}
    trigram = "embeddings.dense.weight" in state
    if trigram:  # its masked-LM head multiplies widths that differ, and was never used
        state = {name: tensor for name, tensor in state.items() if not name.startswith("lm_head.")}
    found = Checkpoint.of({"pooler_relu": False}, state, source)
    shapes = {name: tuple(tensor.shape) for name, tensor in found.weights.items()}
    layers = {int(match[1]) for name in shapes if (match := re.match(r"encoder\.layer\.(\d+)\.", name))}
    stacks = {int(match[1]) for name in shapes if (match := re.search(r"\.feed_forward\.(\d+)\.", name))}
    inner = {shape[0] for name, shape in shapes.items() if name.endswith("intermediate.dense.weight")}
    tables = [f"embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type")]
    if not layers or len(inner) != 1 or any(name not in shapes for name in tables) or len(stacks) not in (0, *STACKS):
        raise ValueError(
            f"{source}: no EfficientBERT; expected its three embeddings and one width for all feed-forwards, found "
            f"{len(layers)} layers with widths {sorted(inner)}"
        )
    (vocab_size, word_size), (positions, hidden_size), (types, _) = (shapes[name] for name in tables)
    found.config |= {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": max(layers) + 1,
        "num_attention_heads": num_attention_heads,
        "intermediate_size": inner.pop(),
        "max_position_embeddings": positions,
        "type_vocab_size": types,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": LAYER_NORM_EPS,
    }
    if trigram:
        found.config |= {"embedding": "trigram", "embedding_size": word_size}
    if stacks:
        found.config["feed_forward"] = [str(plain(len(stacks)))] * (max(layers) + 1)
        found.config["feed_forward_width"] = "min" if trigram else "max"  # as its two kinds of network have it
    return found


def shrink(found: Checkpoint, hidden_size: int, copies: int = 1) -> Checkpoint:
    """A supernet cut to a narrower one, with every layer `copies` times in a row: 6 x 540 to 6 x 360 or 12 x 360.

    Every axis of the hidden size keeps its leading entries. Heads get narrower with it, so that each takes over rows of
    several: this is another network, no subnet. The word vectors of a trigram embedding stay. Raises ValueError for a
    network that is not as wide inside its feed-forwards as outside, or for a width that its heads do not divide.
    """
    config = found.architecture()
    wide = {*config.per_layer("intermediate_size"), *config.per_layer("qkv_size")}
    if config.embedding != "trigram" or config.feed_forward is None or wide != {config.hidden_size}:
        raise ValueError(
            f"{found.source}: only a network like EfficientBERT is shrunk, with formulas, trigram embedding, one width"
        )
    if not 1 <= hidden_size <= config.hidden_size:
        raise ValueError(f"a hidden_size of {config.hidden_size} cannot be shrunk to {hidden_size}")
    smaller = {
        "hidden_size": hidden_size,
        "intermediate_size": hidden_size,
        "qkv_size": hidden_size,
        "num_attention_heads": config.per_layer("num_attention_heads")[0],
        "num_hidden_layers": copies * config.num_hidden_layers,
        "feed_forward": [text for text in config.feed_forward for _ in range(copies)],
    }
    made = Checkpoint({**found.config, **smaller}, {}, found.source)
    made.architecture()
    for name, tensor in found.weights.items():
        for copy in range(copies):
            new = re.sub(r"(?<=encoder\.layer\.)\d+", lambda m, c=copy: str(copies * int(m[0]) + c), name)  # type: ignore[misc]
            made.weights[new] = _cut(name, tensor, hidden_size)
    made.training_only = {name: _cut(name, tensor, hidden_size) for name, tensor in found.training_only.items()}
    return made


def _cut(name: str, tensor: Tensor, size: int) -> Tensor:
    if name.startswith(("encoder.", "pooler.")) or (".LayerNorm." in name and "predictions" not in name):
        return tensor[(slice(size),) * tensor.ndim].clone()
    if name.startswith("embeddings.dense."):
        return tensor[:size].clone()
    if "word_embeddings" in name or "decoder" in name or name.endswith(("bias", "transform.LayerNorm.weight")):
        return tensor.clone()  # an axis of the vocabulary, the labels, the teacher or the word vectors
    return tensor[:, :size].clone()
