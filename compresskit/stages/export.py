"""A model for the world outside, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import transformers

from compresskit.models import checkpoints, export, sparse
from compresskit.models import heads as ours
from compresskit.stages import length_choice
from compresskit.stages.inputs import tokenizer_for
from compresskit.stages.session import model_folder

FORMATS = ("bert", "onnx", "openvino", "sparse")


def export_model(source: str, out: Path, format: str, seq_len: int = 0) -> None:
    """Write the model that `source` names to the folder `out`: as plain transformers BERT, as model.onnx, as OpenVINO's
    model.xml, or by its nonzero weights.

    source: with the lengths of a front behind it, where tokens are to be dropped (stages/length_choice.py). seq_len: of
    all inputs of a graph that drops tokens; 0: that of the front. Raises ValueError for a format or a shape that cannot
    be written, and for a model with too few zeros to be sparse.
    """
    if format not in FORMATS:
        raise ValueError(f"format {format!r} is none of {', '.join(FORMATS)}")
    folder = model_folder(source)
    found = checkpoints.read(folder)
    architecture = (found.config.get("architectures") or ["BertModel"])[0]
    name = architecture if architecture.startswith("Compact") else architecture.replace("Bert", "CompactBert", 1)
    model = length_choice.chosen(checkpoints.load(getattr(ours, name, ours.CompactBertModel), folder), source)
    tokenizer = tokenizer_for(folder, model.config.vocab_size)
    transformers.utils.logging.disable_progress_bar()
    if format == "sparse":
        checkpoints.save(sparse.to_sparse(model), out, tokenizer)
        return
    model = sparse.to_dense(model)
    if format == "bert":
        checkpoints.save(export.to_bert(model), out, tokenizer)
        return
    checkpoints.save(model, out, tokenizer)
    graph = out / "model.onnx"
    export.to_onnx(model, graph, seq_len or None)
    if format == "openvino":
        export.to_openvino(graph, out / "model.xml")
        graph.unlink()
        graph = out / "model.xml"
    print(json.dumps({"model": str(graph)}))
