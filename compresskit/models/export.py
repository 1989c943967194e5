"""Models for the world outside: plain transformers BERT where the shape allows it, and ONNX."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import BertConfig, PreTrainedModel

from compresskit.models.bert import CompactBertPreTrainedModel
from compresskit.models.config import PER_LAYER, CompactBertConfig


def bert_config(config: CompactBertConfig) -> BertConfig:
    """The same shape as a `BertConfig`; ValueError names the first field that plain BERT cannot express."""
    plain = {name: config.per_layer(name) for name in PER_LAYER}
    for name, values in plain.items():
        if len(set(values)) > 1:
            raise ValueError(f"plain BERT has one {name} for all layers, this model has {values}; save it as it is")
    if plain["qkv_size"][0] != config.hidden_size:
        raise ValueError(
            f"plain BERT needs qkv_size equal to hidden_size {config.hidden_size}, this model has "
            f"{plain['qkv_size'][0]}; save it as it is"
        )
    bert = {
        "feed_forward": None,
        "embedding": "bert",
        "pooler_act": "tanh",
        "pooler_relu": False,
        "length_config": None,
    }
    for name, expected in bert.items():
        if getattr(config, name) != expected:
            raise ValueError(f"plain BERT has no {name} {getattr(config, name)!r}; save the model as it is")
    shared = BertConfig.__dataclass_fields__.keys() & CompactBertConfig.__dataclass_fields__.keys()
    fields = {name: getattr(config, name) for name in shared - {"model_type", "architectures", "transformers_version"}}
    fields |= {name: plain[name][0] for name in ("num_attention_heads", "intermediate_size")}
    return BertConfig(**fields)


def to_bert(model: CompactBertPreTrainedModel) -> PreTrainedModel:
    """The transformers model (`BertForSequenceClassification`, …) with the same weights, dtype and numbers."""
    config = bert_config(model.config)
    if hasattr(model, "qa_outputs"):
        config.num_labels = 2  # start and end; ours has two whatever labels its config names
    twin = getattr(transformers, type(model).__name__.replace("CompactBert", "Bert"))(config)
    twin.to(device=model.device, dtype=model.dtype).load_state_dict(model.state_dict())
    return twin.train(model.training)


def to_onnx(model: CompactBertPreTrainedModel, path: Path, seq_len: int | None = None) -> None:
    """Write an ONNX graph with dynamic batch and length; one that drops tokens (`length_config`) has a fixed length.

    Inputs input_ids, attention_mask and token_type_ids, int64 (batch, sequence); outputs are the model's, by name:
    logits, start_logits and end_logits, last_hidden_state, … seq_len: to which inputs of a graph that drops tokens have
    to be padded; None: that of the model's front. Needs the extra `export`. Raises ValueError where seq_len is missing,
    and for lengths in shares, which depend on each input's own length.
    """
    names = ["input_ids", "attention_mask", "token_type_ids"]
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence")
    dynamic: dict[int, Any] = {0: batch, 1: sequence}
    example_length = 8
    if model.config.length_config:
        example_length = fixed_length(model.config, seq_len)
        dynamic = {0: batch}
    example = tuple(torch.ones(2, example_length, dtype=torch.long) for _ in names)
    model = copy.deepcopy(model).cpu().eval()
    with torch.no_grad():
        outputs = [name for name, value in model(*example).items() if isinstance(value, torch.Tensor)]
        program = torch.onnx.export(
            _Tuple(model, outputs).eval(),
            example,
            input_names=names,
            output_names=outputs,
            dynamic_shapes={"inputs": tuple(dynamic for _ in names)},
            dynamo=True,
            verbose=False,
        )
    unfinished = path.with_name(path.name + ".part")
    assert program is not None
    try:
        program.save(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def fixed_length(config: CompactBertConfig, seq_len: int | None) -> int:
    """The length of inputs to a graph that drops tokens; ValueError where it cannot be told."""
    if any(isinstance(length, float) for length in config.length_config or ()):
        raise ValueError(
            f"length_config {config.length_config} is in shares of each input's own length, which a graph cannot "
            "follow; give whole numbers of tokens"
        )
    seq_len = seq_len or (config.length_front or {}).get("seq_len")
    if not seq_len:
        raise ValueError("a graph that drops tokens takes inputs of one length; give seq_len")
    return seq_len


def to_openvino(graph: Path, path: Path) -> None:
    """Write an ONNX graph as OpenVINO's model, `path` (.xml) with its weights beside it. Needs the extra `export`."""
    import openvino

    openvino.save_model(openvino.Core().read_model(graph), path, compress_to_fp16=False)


class _Tuple(torch.nn.Module):  # the exporter wants plain tensors in and out
    def __init__(self, model: PreTrainedModel, outputs: list[str]):
        super().__init__()
        self.model, self.outputs = model, outputs

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = self.model(*inputs)
        return tuple(output[name] for name in self.outputs)
