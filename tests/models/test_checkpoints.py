"""Any BERT checkpoint loads, our own come back unchanged, bad ones are refused."""

from __future__ import annotations

import itertools
import json
import logging
import os
import pickle
import re
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from compresskit import models
from compresskit.models import (
    CompactBertConfig,
    CompactBertForMaskedLM,
    CompactBertForPreTraining,
    CompactBertForSequenceClassification,
    CompactBertModel,
    checkpoints,
)

SHAPE = {
    "vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40,
    "max_position_embeddings": 20,
}  # fmt: skip
IDS = torch.tensor([[2, 7, 11, 3, 0, 0], [2, 9, 9, 14, 5, 3]])
MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
OURS = [name for name in models.__all__ if name not in ("CompactBertConfig", "CompactBertForMultitask")]  # no Auto


@pytest.fixture(scope="module")
def bert() -> transformers.BertForPreTraining:
    torch.manual_seed(0)
    model = transformers.BertForPreTraining(transformers.BertConfig(**SHAPE, hidden_dropout_prob=0)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model


def save_config(folder: Path, config: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))


def weights_of(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def as_bin(folder: Path, model, rename=lambda name: name, **config) -> None:
    """The layout of original releases: config.json and a plain state dict, names changed by `rename`."""
    save_config(folder, {"model_type": "bert", **SHAPE, **config})
    torch.save({rename(name): tensor for name, tensor in weights_of(model).items()}, folder / "pytorch_model.bin")


def as_bin_shards(folder: Path, model) -> None:
    save_config(folder, {"model_type": "bert", **SHAPE})
    weights = weights_of(model)
    shard = {name: f"pytorch_model-0000{i % 2 + 1}-of-00002.bin" for i, name in enumerate(weights)}
    for file in set(shard.values()):
        torch.save({name: tensor for name, tensor in weights.items() if shard[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shard}))


def tensorflow_name(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def autotinybert_name(name: str) -> str:
    return re.sub(r"(\w+_embeddings)\.weight", r"\1.embedding.weight", name).replace(
        "encoder.layer.", "encoder.layers."
    )


def without_model_type(folder: Path, model) -> None:
    as_bin(folder, model)
    extra = {
        "emb_size": 312,
        "cell": {},
        "structure": [],
        "pre_trained": "",
        "training": "",
        "gradient_checkpointing": False,
    }
    save_config(folder, {**SHAPE, **extra})


LAYOUTS = {
    "safetensors": lambda f, m: m.save_pretrained(f),
    "float16 safetensors": lambda f, m: m.half().save_pretrained(f),
    "bfloat16 safetensors": lambda f, m: m.to(torch.bfloat16).save_pretrained(f),
    "sharded safetensors": lambda f, m: m.save_pretrained(f, max_shard_size="9KB"),
    "pytorch_model.bin": as_bin,
    "sharded bin": as_bin_shards,
    "gamma and beta": lambda f, m: as_bin(f, m, tensorflow_name),
    "base model": lambda f, m: m.bert.save_pretrained(f),
    "base model, bin": lambda f, m: as_bin(f, m.bert),
    "base model, bin, with prefix": lambda f, m: as_bin(f, m.bert, lambda name: f"bert.{name}"),
    "autotinybert": lambda f, m: as_bin(f, m.bert, lambda name: f"bert.{autotinybert_name(name)}"),
    "autotinybert without prefix": lambda f, m: as_bin(f, m.bert, autotinybert_name),
    "electra prefix": lambda f, m: as_bin(f, m.bert, lambda name: f"electra.{autotinybert_name(name)}"),
    "heads under the prefix": lambda f, m: as_bin(f, m, lambda name: name.replace("cls.", "bert.cls.")),
    "no model_type, fields of others": without_model_type,
}  # fmt: skip


SPELLINGS = list(itertools.product(("layer", "layers"), ("", ".embedding"), ("", "bert.", "electra."), (False, True)))


def spelled(name: str, layer: str, embedding: str, prefix: str, from_tensorflow: bool) -> str:
    """Our name of a parameter as a release may spell it."""
    name = re.sub(r"_embeddings\.weight$", f"_embeddings{embedding}.weight", name)
    name = tensorflow_name(name) if from_tensorflow else name
    return prefix + name.replace("encoder.layer.", f"encoder.{layer}.")


def test_released_subnets_load_in_every_spelling_with_their_qkv_size(tmp_path):
    """config.json is BERT's with a field qkv_size; names with or without prefix, in one of two spellings each."""
    model = CompactBertModel(CompactBertConfig(**SHAPE, qkv_size=16))
    released = {"hidden_size": 24, "qkv_size": 16, "type_vocab_size": 2, "attention_probs_dropout_prob": 0.1}
    for number, spelling in enumerate(SPELLINGS):
        weights = {spelled(name, *spelling): tensor for name, tensor in weights_of(model).items()}
        for file in ("pytorch_model.bin", "model.safetensors"):
            folder = tmp_path / f"{number}-{file}"
            save_config(folder, {**SHAPE, **released})
            (torch.save if file.endswith("bin") else save_file)(weights, folder / file)
            loaded = checkpoints.load(CompactBertModel, folder)
            assert loaded.config.key() == model.config.key()
            for name, tensor in loaded.state_dict().items():
                assert torch.equal(tensor, model.state_dict()[name]), (spelled(name, *spelling), name)


def test_a_release_without_qkv_size_has_that_of_its_hidden_size(tmp_path):
    as_bin(tmp_path, transformers.BertModel(transformers.BertConfig(**SHAPE)), autotinybert_name)
    assert checkpoints.load(CompactBertModel, tmp_path).config.per_layer("qkv_size") == [24] * 3


def test_an_electra_as_wide_inside_as_its_embedding_is_a_teacher(tmp_path):
    theirs = transformers.ElectraForPreTraining(transformers.ElectraConfig(**SHAPE, embedding_size=24)).eval()
    theirs.save_pretrained(tmp_path)
    ours = checkpoints.read(tmp_path).model(lambda config: CompactBertModel(config, add_pooling_layer=False))
    with torch.no_grad():
        expected = theirs.electra(IDS, MASK).last_hidden_state
        torch.testing.assert_close(ours(IDS, MASK).last_hidden_state, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_bert_folder_loads_without_loss_in_float32(bert, layout, tmp_path):
    model = transformers.BertForPreTraining(bert.config)
    model.load_state_dict(bert.state_dict())
    LAYOUTS[layout](tmp_path, model)
    expected = {name: tensor.float() for name, tensor in weights_of(model.bert).items()}
    loaded = checkpoints.load(CompactBertModel, tmp_path)
    assert loaded.dtype is torch.float32
    assert not loaded.training
    assert loaded.state_dict().keys() == expected.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    if "base model" not in layout and not layout.startswith(("auto", "electra")):
        heads = checkpoints.load(CompactBertForPreTraining, tmp_path)
        with torch.no_grad():
            theirs, ours = model.float().eval()(IDS, MASK), heads(IDS, MASK)
        torch.testing.assert_close(ours.prediction_logits, theirs.prediction_logits, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.seq_relationship_logits, theirs.seq_relationship_logits, rtol=0, atol=1e-5)


def test_a_new_head_is_random_and_said_so_and_what_is_not_needed_is_left(bert, tmp_path, caplog):
    bert.save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, "compresskit"):
        model = checkpoints.load(CompactBertForSequenceClassification, tmp_path, num_labels=5, classifier_dropout=0.3)
    assert f"{tmp_path}: classifier.bias, classifier.weight start at random" in caplog.text
    assert "not needed here: cls.predictions.bias" in caplog.text
    assert model.classifier.weight.shape == (5, 24)
    assert model.classifier.weight.any()
    assert model.config.classifier_dropout == 0.3
    assert torch.equal(model.bert.pooler.dense.weight, bert.bert.pooler.dense.weight)


def test_the_number_of_labels_is_that_of_the_classifier_where_the_config_is_silent(tmp_path):
    task_model = transformers.BertForSequenceClassification(transformers.BertConfig(**SHAPE, num_labels=4))
    as_bin(tmp_path, task_model)
    model = checkpoints.load(CompactBertForSequenceClassification, tmp_path)
    assert model.config.num_labels == 4
    assert torch.equal(model.classifier.weight, task_model.classifier.weight)


def test_names_of_labels_come_along(tmp_path):
    names = {0: "contradiction", 1: "entailment", 2: "neutral"}
    config = transformers.BertConfig(**SHAPE, id2label=names, label2id={name: i for i, name in names.items()})
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    assert checkpoints.load(CompactBertForSequenceClassification, tmp_path).config.id2label == names


def test_projections_of_a_trainer_are_kept_apart():
    state = weights_of(transformers.BertModel(transformers.BertConfig(**SHAPE)))
    extra = {
        "fit_dense.weight": torch.ones(5, 24), "fit_dense.bias": torch.ones(5),
        "fit_denses.0.weight": torch.ones(5, 24), "fit_denses.3.bias": torch.zeros(5),
        "bert.dense_fit.weight": torch.ones(7, 24),
    }  # fmt: skip
    found = checkpoints.Checkpoint.of(SHAPE, state | extra)
    assert found.training_only.keys() == {name.removeprefix("bert.") for name in extra}
    assert found.weights.keys() == state.keys()
    assert torch.equal(found.training_only["dense_fit.weight"], torch.ones(7, 24))


@pytest.mark.parametrize(
    ("config", "extra", "relu"),
    [
        ({}, {}, False),  # fine-tuned with transformers
        ({}, {"fit_dense.weight": torch.ones(5, 24)}, True),
        ({"pre_trained": "", "training": ""}, {}, True),
        ({"pre_trained": "", "training": "", "pooler_relu": False}, {}, False),
        ({"pooler_relu": True}, {}, True),
        ({"model_type": "bert", "pre_trained": "", "training": ""}, {}, False),  # a general one, tuned by transformers
        ({}, {"dense_fit.weight": torch.ones(7, 24)}, False),  # AutoTinyBERT
        ({"pre_trained": "", "training": ""}, {"dense_fit.weight": torch.ones(7, 24)}, False),  # the same
    ],
)
def test_the_relu_of_tinyberts_task_models_is_known_by_their_projection_or_config_or_named_there(config, extra, relu):
    state = weights_of(transformers.BertForSequenceClassification(transformers.BertConfig(**SHAPE, num_labels=3)))
    found = checkpoints.Checkpoint.of({**SHAPE, **config}, state | extra)
    model = found.model(CompactBertForSequenceClassification)
    assert (model.config.pooler_relu, model.config.num_labels) == (relu, 3)
    pooled = model.bert(IDS, MASK).pooler_output
    expected = model.classifier(pooled.relu() if relu else pooled)
    torch.testing.assert_close(model(IDS, MASK).logits, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "shape", [{}, {"qkv_size": [16, 8, 32], "num_attention_heads": [4, 2, 4]}], ids=["even", "per layer"]
)
@pytest.mark.parametrize("name", OURS)
def test_our_own_folder_comes_back_exactly_also_through_the_auto_classes(name, shape, tmp_path):
    model = getattr(models, name)(CompactBertConfig(**{**SHAPE, **shape}, num_labels=3)).eval()
    checkpoints.save(model, tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs")
    auto = getattr(transformers, name.replace("CompactBert", "Auto" if name.endswith("Model") else "AutoModel"))
    for folder in (tmp_path / "ours", tmp_path / "theirs"):
        for again in (auto.from_pretrained(folder), checkpoints.load(type(model), folder)):
            assert type(again) is type(model)
            assert again.config.key() == model.config.key()
            for key, tensor in model.state_dict().items():
                assert torch.equal(again.state_dict()[key], tensor), key
            with torch.no_grad():
                for a, b in zip(model(IDS, MASK).values(), again(IDS, MASK).values(), strict=True):
                    assert torch.equal(a, b)


def test_a_decoder_of_its_own_stays_its_own(tmp_path):
    model = CompactBertForMaskedLM(CompactBertConfig(**SHAPE, tie_word_embeddings=False)).eval()
    checkpoints.save(model, tmp_path / "model")
    again = checkpoints.load(CompactBertForMaskedLM, tmp_path / "model")
    assert not torch.equal(again.cls.predictions.decoder.weight, again.bert.embeddings.word_embeddings.weight)
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key


def test_a_tied_decoder_follows_the_word_vectors_of_the_file(bert, tmp_path):
    as_bin(tmp_path, bert)
    state = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    state["cls.predictions.decoder.weight"] = torch.zeros(60, 24)
    torch.save(state, tmp_path / "pytorch_model.bin")
    model = checkpoints.load(CompactBertForPreTraining, tmp_path)
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, bert.bert.embeddings.word_embeddings.weight)


# ---- the hub


@pytest.fixture
def offline_hub(tmp_path, monkeypatch) -> Path:
    """An empty hub cache, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.mark.parametrize("layout", ["safetensors", "pytorch_model.bin"])
def test_a_hub_id_loads_from_the_cache(bert, layout, offline_hub):
    repository = offline_hub / "models--some-org--tiny-bert"
    LAYOUTS[layout](repository / "snapshots" / "abc123", bert)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123")
    model = checkpoints.load(CompactBertModel, "some-org/tiny-bert")
    assert torch.equal(model.pooler.dense.weight, bert.bert.pooler.dense.weight)


@pytest.mark.usefixtures("offline_hub")
def test_a_hub_id_that_cannot_be_fetched_is_one_sentence():
    with pytest.raises(
        FileNotFoundError, match="some-org/absent is no folder here and could not be fetched from the hub"
    ) as e:
        checkpoints.load(CompactBertModel, "some-org/absent")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("source", ["/no/such/folder", "../nothing", "a/b/c"])
def test_a_path_that_is_no_folder_is_not_looked_up(source):
    with pytest.raises(FileNotFoundError, match="is no folder; name a model folder or a hub id such as org/model"):
        checkpoints.load(CompactBertModel, source)


def test_a_file_is_no_model_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("weights.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"weights.bin is no folder; name a model folder"):
        checkpoints.load(CompactBertModel, "weights.bin")


# ---- bad files


class Bomb:
    """What a pickle does when it is opened carelessly."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "plain pickle"])
def test_a_pickle_with_code_is_refused_and_not_run(legacy, tmp_path):
    save_config(tmp_path, SHAPE)
    marker = tmp_path / "ran"
    path = tmp_path / "pytorch_model.bin"
    if legacy:
        path.write_bytes(pickle.dumps({"bert.pooler.dense.weight": Bomb(marker)}, protocol=2))
    else:
        torch.save({"bert.pooler.dense.weight": Bomb(marker)}, path)
    with pytest.raises(ValueError, match=r"pytorch_model.bin is no plain file of tensors and is not loaded"):
        checkpoints.load(CompactBertModel, tmp_path)
    assert not marker.exists()
    pickle.loads(path.read_bytes()) if legacy else torch.load(path, weights_only=False)
    assert marker.exists()  # the file was dangerous


def broken(change):
    """A good folder, then one thing changed."""

    def build(folder: Path) -> None:
        transformers.BertModel(transformers.BertConfig(**SHAPE)).save_pretrained(folder)
        change(folder)

    return build


def with_config(**fields):
    def change(folder: Path) -> None:
        save_config(folder, {**json.loads((folder / "config.json").read_text()), **fields})

    return broken(change)


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def swapped_for_bin(content: bytes):
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(content)

    return broken(change)


def saved_as_bin(content: object):
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        torch.save(content, folder / "pytorch_model.bin")

    return broken(change)


def with_index(text: str):
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(text)

    return broken(change)


def without_layer(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({n: t for n, t in weights.items() if "layer.1." not in n}, folder / "model.safetensors")


BAD = {
    "no config": (broken(lambda f: (f / "config.json").unlink()), FileNotFoundError,
                  "has no config.json; expected a model folder"),
    "broken config": (broken(lambda f: (f / "config.json").write_text('{"hidden_size": 24,\n oops')), ValueError,
                      r"config.json is no JSON: .*line 2 column 2"),
    "binary config": (broken(lambda f: (f / "config.json").write_bytes(b"\xff\xfe")), ValueError, "is no JSON"),
    "list as config": (broken(lambda f: (f / "config.json").write_text("[1]")), ValueError, "a JSON object .* list"),
    "no weights": (broken(lambda f: (f / "model.safetensors").unlink()), FileNotFoundError,
                   "has neither model.safetensors nor pytorch_model.bin"),
    "incomplete safetensors": (broken(truncate), ValueError, r"model.safetensors cannot be read \(.*is it complete"),
    "empty safetensors": (broken(lambda f: (f / "model.safetensors").write_bytes(b"")), ValueError, "cannot be read"),
    "empty bin": (swapped_for_bin(b""), ValueError, "pytorch_model.bin cannot be read .*is it complete"),
    "pointer instead of bin": (swapped_for_bin(b"version https://git-lfs.github.com/spec/v1\noid 0\n"), ValueError,
                               "no plain file of tensors and is not loaded: fetch it again if it is incomplete"),
    "more than a state dict": (saved_as_bin({"epoch": 3, "model": {}}), ValueError, "holds more than named tensors"),
    "a list of tensors": (saved_as_bin([torch.ones(2)]), ValueError, "holds more than named tensors"),
    "broken index": (with_index("{"), ValueError, "index.json names no weight files"),
    "index without map": (with_index("{}"), ValueError, "index.json names no weight files"),
    "missing shard": (with_index('{"weight_map": {"x": "model-00001-of-00002.safetensors"}}'), FileNotFoundError,
                      "model-00001-of-00002.safetensors is missing, though the index beside it names it"),
    "no encoder": (broken(lambda f: save_file({"x": torch.ones(1)}, f / "model.safetensors")), ValueError,
                   r"no weights for embeddings.LayerNorm.bias and \d+ more; is it a BERT checkpoint"),
    "a layer missing": (broken(without_layer), ValueError,
                        r"no weights for encoder.layer.1.attention.output.LayerNorm.bias and 15 more"),
    "other width": (with_config(hidden_size=28), ValueError,
                    r"embeddings.LayerNorm.bias is \(24,\), but the config asks for \(28,\); config.json and weights"),
    "other vocabulary": (with_config(vocab_size=61), ValueError,
                         r"embeddings.word_embeddings.weight is \(60, 24\), but the config asks for \(61, 24\)"),
    "heads that do not divide": (with_config(num_attention_heads=5), ValueError,
                                 "config cannot be used: layer 0: qkv_size 24 is no multiple of num_attention_heads 5"),
    "text for a number": (with_config(hidden_size="24"), ValueError, "config cannot be used: hidden_size is '24'"),
    "unknown activation": (with_config(hidden_act="gelu9"), ValueError, "config cannot be used: hidden_act is 'gelu9'"),
    "labels as a list": (with_config(id2label=["a", "b"]), ValueError, "config cannot be used"),
    "narrow electra": (with_config(model_type="electra", embedding_size=12), ValueError,
                       "model_type 'electra' is no BERT; expected .* an embedding_size equal to its hidden_size"),
    "roberta": (with_config(model_type="roberta"), ValueError, "model_type 'roberta' is no BERT; expected 'bert', '"),
    "relative positions": (with_config(position_embedding_type="relative_key"), ValueError, "with absolute positions"),
    "decoder": (with_config(is_decoder=True), ValueError, "only encoders with absolute positions can be loaded"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_folder_is_one_clear_sentence_that_names_it(case, tmp_path):
    build, error, message = BAD[case]
    build(tmp_path)
    with pytest.raises(error, match=message) as refused:
        checkpoints.load(CompactBertModel, tmp_path)
    assert str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_changes_that_do_not_fit_the_weights_are_not_blamed_on_the_file(bert, tmp_path):
    bert.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"but the config asks for \(30, 24\); leave the config as it is"):
        checkpoints.load(CompactBertModel, tmp_path, max_position_embeddings=30)
