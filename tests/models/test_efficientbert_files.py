"""Files of the original EfficientBERT become models of ours, narrower ones too, from the command line."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from compresskit.cli import app
from compresskit.models import (
    CompactBertForQuestionAnswering,
    CompactBertForSequenceClassification,
    CompactBertModel,
    checkpoints,
    efficientbert,
)
from compresskit.models.feed_forward import plain

H, E, V, LAYERS = 24, 8, 10, 2
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "old", "mill", "##s", "river"]
FORMULAS = ["tanh(linear2_2(gelu(linear2_2(x,wb1)),wb2))", "linear1_3(relu(mul(linear1_3(x,wb1),x)),wb2)"]
IDS = torch.tensor([[2, 6, 7, 3, 0, 0], [2, 9, 9, 7, 5, 3]])


def original(trigram: bool = True, head: str = "glue", width: int = H) -> dict[str, Tensor]:
    """A state dict as the original saves it, with random numbers."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.token_embeddings.weight": (V, E if trigram else H),
        "embeddings.position_embeddings.weight": (20, H),
        "embeddings.segment_embeddings.weight": (2, H),
        "embeddings.layernorm.weight": (H,),
        "embeddings.layernorm.bias": (H,),
        "fit_dense.weight": (16, H),
        "fit_dense.bias": (16,),
    }
    linears = {}
    if trigram:
        linears["embeddings.dense"] = (H, 3 * E)
        shapes["lm_head.dense.weight"] = (H, H)
    for i in range(LAYERS):
        for part in ("query", "key", "value", "dense"):
            linears[f"encoder.{i}.attention.{part}"] = (H, H)
        for one in [f"all_ffn.{j}" for j in range(4)] if trigram else ["ffn"]:
            linears[f"encoder.{i}.{one}.dense1"] = (width, H)
            linears[f"encoder.{i}.{one}.dense2"] = (H, width)
            shapes |= {f"encoder.{i}.{one}.layernorm.{part}": (H,) for part in ("weight", "bias")}
        shapes |= {f"encoder.{i}.attention.layernorm.{part}": (H,) for part in ("weight", "bias")}
    if head == "glue":
        linears |= {"cls_pooler.dense": (H, H), "classifier": (3, H)}
    if head == "squad":
        linears["classifier"] = (2, H)
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    seed = torch.Generator().manual_seed(0)
    return {name: 0.2 * torch.randn(shape, generator=seed) for name, shape in shapes.items()}


def saved(folder: Path, **kind) -> Path:
    state = {f"module.{name}": tensor for name, tensor in original(**kind).items()}
    metrics = {"acc": np.float64(0.5), "best": np.float32(1), "n": np.int64(3)}
    torch.save({"state_dict": state, "epoch": 3, "step": 10, "metrics": metrics}, folder / "best_model.bin")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    return folder / "best_model.bin"


def test_a_task_models_file_is_the_supernet_with_its_head_and_projection(tmp_path):
    found = efficientbert.read(saved(tmp_path), num_attention_heads=4)
    model = found.model(CompactBertForSequenceClassification)
    theirs = original()
    assert model.config.feed_forward == [str(plain(4))] * LAYERS
    assert (model.config.embedding, model.config.embedding_size, model.config.num_labels) == ("trigram", E, 3)
    assert (model.config.layer_norm_eps, model.config.pooler_relu) == (1e-5, False)
    assert torch.equal(model.classifier.weight, theirs["classifier.weight"])
    assert torch.equal(model.bert.pooler.dense.bias, theirs["cls_pooler.dense.bias"])
    last = model.bert.encoder.layer[1].feed_forward[3]
    assert torch.equal(last.output.dense.weight, theirs["encoder.1.all_ffn.3.dense2.weight"])
    assert found.training_only.keys() == {"fit_dense.weight", "fit_dense.bias"}


def test_a_bert_like_file_and_one_of_spans_load_too(tmp_path):
    found = efficientbert.checkpoint(original(trigram=False, width=32), 4)
    model = found.model(CompactBertForSequenceClassification)
    assert (model.config.feed_forward, model.config.intermediate_size, model.config.embedding) == (None, 32, "bert")
    spans = efficientbert.checkpoint(original(head="squad"), 4).model(CompactBertForQuestionAnswering)
    assert torch.equal(spans.qa_outputs.weight, original(head="squad")["classifier.weight"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {"a": 1}}, "has no state_dict of tensors"),
        (
            {"state_dict": {"encoder.0.attention.query.weight": torch.zeros(2, 2)}},
            "no EfficientBERT; expected its three",
        ),
        ({"state_dict": {}, "run": pytest.raises}, "is no plain file of tensors and numbers and is not loaded"),
    ],
)
def test_other_files_are_refused_and_nothing_in_them_is_run(tmp_path, content, message):
    torch.save(content, tmp_path / "best_model.bin")
    with pytest.raises(ValueError, match=f"best_model.bin.*{message}"):
        efficientbert.read(tmp_path / "best_model.bin")
    with pytest.raises(FileNotFoundError, match=r"nothing\.bin is no file"):
        efficientbert.read(tmp_path / "nothing.bin")


@pytest.mark.parametrize(
    ("width", "message"), [(25, "cannot be shrunk to 25"), (18, "no multiple of num_attention_heads")]
)
def test_a_width_that_there_is_not_is_refused(width, message):
    with pytest.raises(ValueError, match=message):
        efficientbert.shrink(efficientbert.checkpoint(original(), 4), width)


def test_only_a_network_of_one_width_is_shrunk():
    with pytest.raises(ValueError, match="only a network like EfficientBERT is shrunk"):
        efficientbert.shrink(efficientbert.checkpoint(original(trigram=False), 4), 12)


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_extract_takes_a_file_shrinks_it_and_keeps_what_the_formulas_use(tmp_path):
    file = str(saved(tmp_path))
    done = run("extract", file, str(tmp_path / "net"), "--arch", ", ".join(FORMULAS), "--heads")
    assert done.exit_code == 0, done.output
    searched = checkpoints.load(CompactBertForSequenceClassification, tmp_path / "net")
    assert searched.config.feed_forward_sizes() == [(2, 12), (1, 8)]
    whole = efficientbert.read(file).model(CompactBertForSequenceClassification)
    subnet = whole.config.changed(feed_forward=FORMULAS)
    with torch.no_grad():
        assert torch.equal(searched(IDS).logits, whole(IDS, subnet=subnet).logits)
    assert checkpoints.read(tmp_path / "net").training_only["fit_dense.weight"].shape == (16, H)

    done = run("extract", file, str(tmp_path / "deep"), "--shrink", f"{2 * LAYERS}x12", "--heads")
    assert (done.exit_code, re.search(r"4-12-12-12-12, [\d,]+ parameters", done.stdout) is not None) == (0, True)
    deep = checkpoints.load(CompactBertModel, tmp_path / "deep")
    for i in range(2 * LAYERS):
        value = original()[f"encoder.{i // 2}.attention.value.weight"]
        assert torch.equal(deep.encoder.layer[i].attention.self.value.weight, value[:12, :12])
    assert checkpoints.read(tmp_path / "deep").training_only["fit_dense.weight"].shape == (16, 12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shrink", "wide"], "--shrink wide: expected layers and hidden size, as in 6x360"),
        (["--shrink", "3x12"], "3 is no multiple of the model's 2 layers"),
        (["--arch", FORMULAS[0]], "feed_forward has 1 formulas for 2 layers"),
        (["--arch", "tanh(x), relu(x)"], "layer 0: formula tanh(x): it uses wb1 0 times"),
        (["--vocabulary", "nowhere/at/all"], "no such file or folder"),
    ],
)
def test_what_extract_refuses_leaves_no_folder(tmp_path, arguments, message):
    done = run("extract", str(saved(tmp_path)), str(tmp_path / "out"), *arguments)
    assert done.exit_code == 1
    assert message in done.stderr.replace("\n", " ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["efficientbert-tiny", "efficientbert-tinybert6"])
def test_new_makes_the_published_networks(tmp_path, name):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    sizes = ["--hidden-size=24", "--qkv-size=24", "--num-attention-heads=4", "--num-hidden-layers=3"]
    out, vocabulary = str(tmp_path / "new"), str(tmp_path / "vocab.txt")
    done = run("new", out, "--vocabulary", vocabulary, "--preset", name, *sizes, "--intermediate-size=24")
    assert done.exit_code == 0, done.output
    model = checkpoints.load(CompactBertModel, out)
    assert [len(layer.feed_forward) for layer in model.encoder.layer] == [4, 2, 1]
    assert model(IDS).last_hidden_state.shape == (2, 6, 24)
