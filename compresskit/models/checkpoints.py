"""Any BERT checkpoint into our classes: folders and hub ids, transformers' files and those of the original releases.

Our parameter names are transformers' own, so loading is a table of the names that others use. Saving is whole or not
at all.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from compresskit.models.config import CompactBertConfig

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=PreTrainedModel)

RENAMED = (  # theirs, ours
    (r"LayerNorm\.gamma$", "LayerNorm.weight"),  # checkpoints converted from TensorFlow
    (r"LayerNorm\.beta$", "LayerNorm.bias"),
    (r"_embeddings\.embedding\.weight$", "_embeddings.weight"),  # AutoTinyBERT
    (r"^((bert|electra)\.)?encoder\.layers\.", r"\1encoder.layer."),  # AutoTinyBERT
    (r"^module\.", ""),  # from here on EfficientBERT
    (r"embeddings\.token_embeddings\.", "embeddings.word_embeddings."),
    (r"embeddings\.segment_embeddings\.", "embeddings.token_type_embeddings."),
    (r"^encoder\.(\d+)\.", r"encoder.layer.\1."),
    (r"^(encoder\.layer\.\d+\.attention)\.(query|key|value)\.", r"\1.self.\2."),
    (r"^(encoder\.layer\.\d+\.attention)\.(dense|layernorm)\.", r"\1.output.\2."),
    (r"\.all_ffn\.(\d+)\.", r".feed_forward.\1.ffn."),
    (r"\.ffn\.dense1\.", ".intermediate.dense."),
    (r"\.ffn\.dense2\.", ".output.dense."),
    (r"\.ffn\.layernorm\.", ".output.LayerNorm."),
    (r"^cls_pooler\.", "pooler."),
    (r"^lm_head\.(dense|layernorm)\.", r"cls.predictions.transform.\1."),
    (r"^lm_head\.lm_bias$", "cls.predictions.bias"),
    (r"^lm_head\.lm_decoder\.", "cls.predictions.decoder."),
    (r"\.layernorm\.", ".LayerNorm."),
    (r"^(bert|electra|distilbert)\.", ""),  # the prefix is put back where the class has one
)
DISTILBERT = (  # DistilBERT's, ours
    (r"^transformer\.layer\.", "encoder.layer."),
    (r"\.attention\.q_lin\.", ".attention.self.query."),
    (r"\.attention\.k_lin\.", ".attention.self.key."),
    (r"\.attention\.v_lin\.", ".attention.self.value."),
    (r"\.attention\.out_lin\.", ".attention.output.dense."),
    (r"\.sa_layer_norm\.", ".attention.output.LayerNorm."),
    (r"\.ffn\.lin1\.", ".intermediate.dense."),
    (r"\.ffn\.lin2\.", ".output.dense."),
    (r"\.output_layer_norm\.", ".output.LayerNorm."),
    (r"^pre_classifier\.", "pooler.dense."),
    (r"^vocab_transform\.", "cls.predictions.transform.dense."),
    (r"^vocab_layer_norm\.", "cls.predictions.transform.LayerNorm."),
    (r"^vocab_projector\.weight", "cls.predictions.decoder.weight"),
    (r"^vocab_projector\.bias", "cls.predictions.bias"),
)
DISTILBERT_FIELDS = {  # of its config, ours
    "dim": "hidden_size",
    "hidden_dim": "intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "activation": "hidden_act",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "seq_classif_dropout": "classifier_dropout",
}
TRAINING_ONLY = re.compile(r"(^|\.)(fit_dense|fit_denses\.\d+|dense_fit)\.")  # projections to the teacher's width
TRAINING_FILE = "training_only.safetensors"
TINYBERT_FIELDS = {"pre_trained", "training"}  # in the config of everything that TinyBERT's code has saved
BUFFERS = re.compile(r"embeddings\.(position_ids|token_type_ids)$")
HEADS = ("cls.", "classifier.", "classifiers.", "qa_outputs.")
SHARED_HEADS = {"wnli": "qnli", "mnli_mm": "mnli"}  # tasks that take another one's head, as EfficientBERT's WNLI does
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
LABELS = {"num_labels", "id2label", "label2id"}
ATTEMPTS = 100  # to take a folder's place while other processes take it, too
FILES = ["*.json", "*.safetensors", "vocab.txt"]


@dataclass
class Checkpoint:
    """A config and weights under our names; `training_only`: what only a trainer wants (TinyBERT's `fit_dense`)."""

    config: dict[str, Any]
    weights: dict[str, Tensor]
    source: str = "the checkpoint"
    training_only: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls, config: Mapping[str, Any], state_dict: Mapping[str, Tensor], source: str = "the checkpoint"
    ) -> Checkpoint:
        """Sort a state dict of any release into our names.

        A task model of the original TinyBERT or SparseBERT code, known by the projection or the config fields it
        carries, gets its relu behind the pooler, unless its config has a field `pooler_relu` that says otherwise.
        AutoTinyBERT's releases are BERT's with a field `qkv_size`; without it, it is the hidden_size. DistilBERT is a
        BERT whose token types are zero and whose pooler ends in a relu.
        Raises ValueError for a config that is not BERT's.
        """
        fields = dict(config)
        kind = fields.pop("model_type", None) or "bert"  # TinyBERT's releases name none
        if kind == "electra" and fields.pop("embedding_size", None) == fields.get("hidden_size"):
            kind = "bert"  # the same network, without a pooler
        if kind not in ("bert", "distilbert", CompactBertConfig.model_type):
            raise ValueError(
                f"{source}: model_type {kind!r} is no BERT; expected 'bert', 'distilbert' or 'compact_bert', or "
                "'electra' with an embedding_size equal to its hidden_size"
            )
        renamed: tuple[tuple[str, str], ...] = RENAMED
        if kind == "distilbert":
            fields = {DISTILBERT_FIELDS.get(name, name): value for name, value in fields.items()} | {
                "pooler_act": "relu"
            }
            renamed = (*RENAMED, *DISTILBERT)
        if fields.get("position_embedding_type", "absolute") != "absolute" or fields.get("is_decoder"):
            raise ValueError(f"{source}: only encoders with absolute positions can be loaded")
        weights: dict[str, Tensor] = {}
        training_only: dict[str, Tensor] = {}
        for name, tensor in state_dict.items():
            if BUFFERS.search(name):
                continue
            for theirs, ours in renamed:
                name = re.sub(theirs, ours, name)
            (training_only if TRAINING_ONLY.search(name) else weights)[name] = tensor
        words = weights.get("embeddings.word_embeddings.weight")
        if kind == "distilbert" and words is not None:
            weights["embeddings.token_type_embeddings.weight"] = words.new_zeros(2, words.shape[1])
        # transformers hands the fields on to what it fine-tunes, but names a model_type; AutoTinyBERT has a dense_fit
        released = "model_type" not in config and not any(name.startswith("dense_fit") for name in training_only)
        from_tinybert = any(name.startswith("fit_dense") for name in training_only) or (
            released and fields.keys() >= TINYBERT_FIELDS
        )
        if kind == "bert" and "classifier.weight" in weights and from_tinybert:
            fields.setdefault("pooler_relu", True)  # a task model of TinyBERT's or SparseBERT's code
        return cls(fields, weights, source, training_only)

    def model(self, model_class: Callable[[CompactBertConfig], Model], **changes: Any) -> Model:
        """Build `model_class` with these weights, in float32 and in evaluation mode; a head without weights starts
        at random, which is logged. `changes` replace config fields.

        Raises ValueError where shapes disagree or weights of the encoder are missing.
        """
        model = model_class(self.architecture(**changes))
        self._fill(model, changed=not changes.keys() <= LABELS)
        return model.eval()

    def for_task(self, task: str) -> Checkpoint:
        """Of a multi-task model the network with that task's head, or none where it has none; others as they are."""
        tasks = self.config.get("tasks")
        if not tasks:
            return self
        prefix = f"classifiers.{task if task in tasks else SHARED_HEADS.get(task, task)}."
        weights = {name: tensor for name, tensor in self.weights.items() if not name.startswith("classifiers.")}
        weights |= {n.replace(prefix, "classifier."): t for n, t in self.weights.items() if n.startswith(prefix)}
        fields = {name: value for name, value in self.config.items() if name not in ("tasks", *LABELS)}
        return Checkpoint(fields, weights, self.source, self.training_only)

    def architecture(self, **changes: Any) -> CompactBertConfig:
        """The config of `model`. Raises ValueError for fields that cannot be used."""
        known = CompactBertConfig.__dataclass_fields__.keys() | {"num_labels"}
        fields = {name: value for name, value in self.config.items() if name in known and name != "dtype"}
        if "classifier.weight" in self.weights and not fields.get("id2label"):
            fields["num_labels"] = self.weights["classifier.weight"].shape[0]
        if not LABELS.isdisjoint(changes):
            fields = {name: value for name, value in fields.items() if name not in LABELS}
        try:
            return CompactBertConfig(**{**fields, **changes})
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.source}: the config cannot be used: {_sentence(error)}") from error

    def _fill(self, model: PreTrainedModel, changed: bool) -> None:
        prefix = "bert." if hasattr(model, "bert") else ""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        tied = {tie for tie, to in (model._tied_weights_keys or {}).items() if parameters[tie] is parameters[to]}
        wanted = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
        given = {name if name.startswith(HEADS) else prefix + name: tensor for name, tensor in self.weights.items()}
        if "cls.predictions.bias" in given:  # older files have no second name for it
            given.setdefault("cls.predictions.decoder.bias", given["cls.predictions.bias"])
        for name in sorted(wanted.keys() & given.keys()):
            if wanted[name].shape != given[name].shape:
                remedy = "leave the config as it is" if changed else "config.json and weights do not belong together"
                raise ValueError(
                    f"{self.source}: {name} is {tuple(given[name].shape)}, but the config asks for "
                    f"{tuple(wanted[name].shape)}; {remedy}"
                )
        missing = sorted(wanted.keys() - given.keys())
        lost = [name for name in missing if not name.startswith(HEADS) and ".pooler." not in f".{name}"]
        if lost:
            raise ValueError(
                f"{self.source}: no weights for {lost[0]} and {len(lost) - 1} more; is it a BERT checkpoint?"
            )
        if missing:
            logger.warning("%s: %s start at random", self.source, ", ".join(missing))
        unused = sorted(given.keys() - wanted.keys() - tied)
        if unused:
            logger.info("%s: not needed here: %s", self.source, ", ".join(unused))
        model.load_state_dict({name: given[name] for name in wanted.keys() & given.keys()}, strict=False)


def load(model_class: type[Model], source: str | Path, **changes: Any) -> Model:
    """A model from a folder or hub id: any BERT checkpoint, or our own. See `Checkpoint.model`."""
    return read(source).model(model_class, **changes)


def save(
    model: PreTrainedModel | CompactBertConfig,
    folder: str | Path,
    tokenizer: Any = None,
    training_only: Mapping[str, Tensor] | None = None,
) -> None:
    """Write config, weights (safetensors) and, where given, the tokenizer to `folder`: all of them or nothing.

    model: a config alone is written without weights.
    training_only: what only a trainer wants, as in `Checkpoint`; it goes to a file of its own, which no one else reads.
    They are written beside `folder` and then take its place; an older model there is replaced, and of several processes
    that write the same folder at once the last one's stays. Raises OSError where
    they cannot be written, the older model then still stands, and ValueError where `folder` holds something else.
    """
    folder = Path(folder).expanduser().resolve()
    if folder.exists() and not (folder / "config.json").is_file() and not _is_empty(folder):
        raise ValueError(f"{folder} exists and is no model folder; name another one")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{folder.name}.part", dir=folder.parent) as beside, _without_bars():
            new = Path(beside) / "new"
            model.save_pretrained(new)
            if tokenizer is not None:
                tokenizer.save_pretrained(new)
            if training_only:
                save_file(
                    {name: t.detach().cpu().contiguous() for name, t in training_only.items()}, new / TRAINING_FILE
                )
            _replace(folder, new, Path(beside))
    except Exception as error:
        # the libraries that write have errors of their own, which carry the system's number in their text
        if not isinstance(error, (OSError, SafetensorError)) and "os error" not in str(error):
            raise
        raise OSError(f"{folder} could not be written ({_sentence(error)}); make room and try again") from error


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _replace(folder: Path, new: Path, beside: Path) -> None:
    """Put `new` in the place of `folder`; what is there goes to `beside`."""
    for attempt in range(1, ATTEMPTS + 1):
        old = beside / f"old{attempt}"
        try:
            with contextlib.suppress(FileNotFoundError):
                os.rename(folder, old)
            os.rename(new, folder)
            return
        except BaseException as error:  # also Ctrl-C between the two
            if old.exists() and not folder.exists():
                os.rename(old, folder)
            taken = isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST)
            if not taken or attempt == ATTEMPTS:
                raise


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def read(source: str | Path) -> Checkpoint:
    """Config and weights of a folder or hub id.

    Raises FileNotFoundError for a missing folder or file and ValueError for an unreadable one.
    """
    folder = local_folder(source)
    config, weights = read_config(folder), _read_weights(folder)
    if (folder / TRAINING_FILE).is_file():
        weights = {**_read_file(folder / TRAINING_FILE), **weights}
    return Checkpoint.of(config, weights, str(source))


def read_config(folder: Path) -> dict[str, Any]:
    """The fields of config.json; ValueError with line and column where it is no JSON object."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no config.json; expected a model folder as save_pretrained writes it")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: expected a JSON object with the model's fields, found {type(fields).__name__}")
    return fields


def local_folder(source: str | Path) -> Path:
    """The folder itself, or the downloaded files of a hub id."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or not HUB_ID.fullmatch(str(source)):
        raise FileNotFoundError(f"{source} is no folder; name a model folder or a hub id such as org/model")
    from huggingface_hub import snapshot_download

    try:
        fetched = Path(snapshot_download(str(source), allow_patterns=FILES))
        if not any(fetched.glob("*.safetensors")):
            fetched = Path(snapshot_download(str(source), allow_patterns=[*FILES, "pytorch_model*.bin"]))
        return fetched
    except Exception as error:  # the hub raises a dozen kinds: no network, no such repository, no access
        raise FileNotFoundError(
            f"{source} is no folder here and could not be fetched from the hub: {_sentence(error)}"
        ) from error


def _read_weights(folder: Path) -> dict[str, Tensor]:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return _read_file(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            try:
                shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{index} names no weight files ({_sentence(error)}); fetch it again") from error
            return {key: value for shard in shards for key, value in _read_file(folder / Path(shard).name).items()}
    raise FileNotFoundError(f"{folder} has neither model.safetensors nor pytorch_model.bin")


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, though the index beside it names it; fetch the model again")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, EOFError, RuntimeError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({_sentence(error)}); is it complete?") from error
    except Exception as error:  # pickle's refusals: text, or objects, which would run code
        raise ValueError(
            f"{path} is no plain file of tensors and is not loaded: fetch it again if it is incomplete, or convert it "
            "to safetensors where it comes from"
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise ValueError(f"{path} holds more than named tensors; expected the state dict of a model")
    return weights


def _sentence(error: BaseException) -> str:
    """An error of another library on one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__
