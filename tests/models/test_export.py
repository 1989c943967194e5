"""Plain transformers BERT and ONNX: the same numbers without compresskit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from compresskit import models
from compresskit.models import CompactBertConfig, CompactBertForSequenceClassification, checkpoints, export

SHAPE = {
    "vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40,
    "max_position_embeddings": 20, "num_labels": 3,
}  # fmt: skip
IDS = torch.tensor([[2, 7, 11, 3, 0, 0], [2, 9, 9, 14, 5, 3], [2, 1, 1, 1, 1, 3]])
MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])
TYPES = torch.tensor([[0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0]])
OURS = [name for name in models.__all__ if name not in ("CompactBertConfig", "CompactBertForMultitask")]


def network(model_class: type, **changes):
    torch.manual_seed(0)
    model = model_class(CompactBertConfig(**{**SHAPE, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model


@pytest.mark.parametrize("name", OURS)
@torch.no_grad()
def test_plain_bert_has_the_same_class_of_head_and_the_same_numbers(name):
    ours = network(getattr(models, name), hidden_act="relu", layer_norm_eps=1e-6).double()
    theirs = export.to_bert(ours)
    assert type(theirs) is getattr(transformers, name.replace("CompactBert", "Bert"))
    assert not theirs.training
    got, expected = theirs(IDS, MASK, TYPES), ours(IDS, MASK, TYPES)
    for key in expected:
        torch.testing.assert_close(got[key], expected[key], rtol=0, atol=1e-10)


def test_names_of_labels_and_dropout_go_along():
    names = {0: "bad", 1: "good", 2: "odd"}
    config = CompactBertConfig(**{**SHAPE, "num_labels": 3}, hidden_dropout_prob=0.3).changed(
        id2label=names, label2id={name: i for i, name in names.items()}
    )
    plain = export.bert_config(config)
    assert (plain.id2label, plain.hidden_dropout_prob, plain.model_type) == (names, 0.3, "bert")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": [4, 2]}, r"one num_attention_heads for all layers, this model has \[4, 2\]"),
        ({"qkv_size": [24, 20]}, r"one qkv_size for all layers, this model has \[24, 20\]"),
        ({"intermediate_size": [40, 41]}, r"one intermediate_size for all layers, this model has \[40, 41\]"),
        ({"qkv_size": 20}, "needs qkv_size equal to hidden_size 24, this model has 20"),
        ({"pooler_relu": True}, "plain BERT has no pooler_relu True"),
        ({"feed_forward": ["linear1_1(gelu(linear1_1(x,wb1)),wb2)"] * 2}, r"plain BERT has no feed_forward \['linear"),
        ({"embedding": "trigram", "embedding_size": 8}, "plain BERT has no embedding 'trigram'"),
    ],
    ids=str,
)
def test_what_plain_bert_cannot_express_is_refused_by_field(changes, message):
    with pytest.raises(ValueError, match=message):
        export.bert_config(CompactBertConfig(**{**SHAPE, **changes}))


def test_lists_of_one_number_are_plain():
    plain = export.bert_config(CompactBertConfig(**{**SHAPE, "num_attention_heads": [4, 4], "qkv_size": [24, 24]}))
    assert (plain.num_attention_heads, plain.intermediate_size) == (4, 40)


WITHOUT_US = """
import sys
sys.modules["compresskit"] = None  # importing it fails
import torch
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).eval()
batch = torch.load(sys.argv[2])
with torch.no_grad():
    torch.save((type(model).__name__, model(**batch).logits), sys.argv[3])
"""


def test_the_exported_folder_loads_in_a_process_without_compresskit(tmp_path):
    ours = network(CompactBertForSequenceClassification)
    checkpoints.save(export.to_bert(ours), tmp_path / "plain")
    batch = {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": TYPES}
    torch.save(batch, tmp_path / "batch.pt")
    command = [sys.executable, "-c", WITHOUT_US, *(str(tmp_path / name) for name in ("plain", "batch.pt", "logits.pt"))]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    name, logits = torch.load(tmp_path / "logits.pt")
    assert name == "BertForSequenceClassification"
    with torch.no_grad():
        torch.testing.assert_close(logits, ours(**batch).logits, rtol=0, atol=1e-6)
    again = checkpoints.load(CompactBertForSequenceClassification, tmp_path / "plain")
    assert torch.equal(again.classifier.weight, ours.classifier.weight)


def run_onnx(path: Path, **inputs: torch.Tensor) -> dict[str, np.ndarray]:
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {name: t.numpy() for name, t in inputs.items()}), strict=True))


def check_onnx(model, folder: Path, expected_names: list[str]) -> None:
    path = folder / "model.onnx"
    model.train()
    export.to_onnx(model, path)
    assert model.training  # as it was
    assert list(folder.iterdir()) == [path]
    model.eval()
    for rows, length in ((3, 6), (1, 2), (2, 1), (5, 20)):
        ids = torch.randint(60, (rows, length), generator=torch.Generator().manual_seed(length))
        mask = (torch.arange(length) < torch.arange(rows)[:, None] + 1).long()
        batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids % 2}
        found = run_onnx(path, **batch)
        assert list(found) == expected_names
        with torch.no_grad():
            expected = model(**batch)
        for name, array in found.items():
            np.testing.assert_allclose(array, expected[name].numpy(), rtol=0, atol=2e-5)


@pytest.mark.long
@pytest.mark.parametrize("width", ["min", "max"])
def test_onnx_of_formulas_has_their_numbers_at_any_batch_and_length(width, tmp_path):
    pytest.importorskip("onnxscript")
    inner = {"min": 12, "max": 48}[width]
    changes = {
        "feed_forward": [
            "tanh(linear2_2(gelu(linear2_2(max(x,tanh(x)),wb1)),wb2))",
            "add(leaky_relu(linear1_1(elu(mul(linear1_1(x,wb1),x)),wb2)),swish(x))",
        ],
        "feed_forward_width": width,
        "intermediate_size": inner,
        "embedding": "trigram",
        "embedding_size": 8,
    }
    check_onnx(network(CompactBertForSequenceClassification, **changes), tmp_path, ["logits"])


@pytest.mark.long
def test_onnx_of_an_uneven_classifier_has_its_numbers_at_any_batch_and_length(tmp_path):
    pytest.importorskip("onnxscript")
    changes = {"num_attention_heads": [4, 2], "qkv_size": [20, 10], "intermediate_size": [40, 7], "pooler_relu": True}
    check_onnx(network(CompactBertForSequenceClassification, **changes), tmp_path, ["logits"])


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("CompactBertModel", ["last_hidden_state", "pooler_output"]),
        ("CompactBertForQuestionAnswering", ["start_logits", "end_logits"]),
        ("CompactBertForPreTraining", ["prediction_logits", "seq_relationship_logits"]),
    ],
)
def test_onnx_of_every_kind_of_head_names_its_outputs(name, outputs, tmp_path):
    pytest.importorskip("onnxscript")
    check_onnx(network(getattr(models, name)), tmp_path, outputs)
