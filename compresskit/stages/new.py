"""A model that has learned nothing yet, from the command line: config, vocabulary and, unless left out, weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from compresskit.data import vocabulary
from compresskit.models import CompactBertConfig, CompactBertForPreTraining, checkpoints, presets
from compresskit.stages.session import model_folder


def new_model(out: Path, source: str, preset: str, sizes: dict[str, int], weights: bool, seed: int) -> str:
    """Make the folder `out`; returns what it holds, in a line.

    source: of the vocabulary, a vocab.txt, a folder or a model. sizes: fields that replace those of the preset; without
    a preset, those of AutoTinyBERT's supernet, and qkv_size is then hidden_size. weights: random, of that seed, with
    the heads for masked words and next sentences. Several processes may make the same folder at once. Raises ValueError
    where the sizes do not fit together, and where `out` holds anything else than such a model.
    """
    given = Path(source).expanduser()
    tokenizer = vocabulary.load_tokenizer(given if given.is_file() else model_folder(source))
    vocab_size = max(tokenizer.get_vocab().values()) + 1
    changes = {"vocab_size": vocab_size, "pad_token_id": tokenizer.pad_token_id, **sizes}
    if not preset and "hidden_size" in sizes:
        changes.setdefault("qkv_size", sizes["hidden_size"])
    config = presets.config(preset or "superbert", **changes)
    config.architectures = [CompactBertForPreTraining.__name__]
    described = f"{presets.notation(config)}, vocabulary {vocab_size}"
    if _stands(out, config, tokenizer, weights):
        return f"{described}, was there"
    if weights:
        torch.manual_seed(seed)
        checkpoints.save(CompactBertForPreTraining(config), out, tokenizer)
    else:
        checkpoints.save(config, out, tokenizer)
    return described


def _stands(out: Path, config: CompactBertConfig, tokenizer: Any, weights: bool) -> bool:
    """Whether `out` is this model already, made earlier or by another process."""
    if not (out / "config.json").is_file():
        return False
    found = CompactBertConfig.from_pretrained(out)
    if found.key() != config.key() or vocabulary.load_tokenizer(out).get_vocab() != tokenizer.get_vocab():
        raise ValueError(f"{out} holds another model; name another folder or remove it")
    if weights and not (out / "model.safetensors").is_file():
        raise ValueError(f"{out} holds this model without weights; name another folder or remove it")
    return True
