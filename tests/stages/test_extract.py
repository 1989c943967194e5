"""`compresskit new` and `compresskit extract`: folders that load anywhere, slices equal bit for bit."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file
from typer.testing import CliRunner

from compresskit.cli import app
from compresskit.models import (
    CompactBertConfig,
    CompactBertForMaskedLM,
    CompactBertForPreTraining,
    CompactBertForSequenceClassification,
    CompactBertModel,
    checkpoints,
    presets,
)
from compresskit.search import arch_text

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "old", "mill", "##s", "river"]
SIZES = ["--num-hidden-layers=3", "--hidden-size=24", "--num-attention-heads=4", "--intermediate-size=40"]
IDS = torch.tensor([[2, 6, 7, 3, 0, 0], [2, 9, 9, 7, 5, 3]])
MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
ARCH = {
    "kd": "{'sample_layer_num': 2, 'sample_num_attention_heads': [4, 4], 'sample_hidden_size': 16, "
    "'sample_intermediate_sizes': [24, 24], 'sample_qkv_sizes': [12, 12]}",
    "mlm": "{'sample_layer_num': 2, 'sample_num_attention_heads': [2, 2], 'sample_qkv_sizes': [12, 12], "
    "'sample_hidden_size': 16, 'sample_intermediate_sizes': [24, 24]}",
}


@pytest.fixture
def vocab(tmp_path) -> str:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    return str(tmp_path / "vocab.txt")


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model.eval()


@pytest.fixture
def supernet(tmp_path, vocab) -> str:
    """A trained supernet with all heads, its vocabulary, and the projection of distillation."""
    out = tmp_path / "supernet"
    assert run("new", str(out), "--vocabulary", vocab, *SIZES).exit_code == 0
    model = randomised(checkpoints.load(CompactBertForPreTraining, out))
    fit = {"dense_fit.weight": torch.randn(32, 24), "dense_fit.bias": torch.randn(32)}
    checkpoints.save(model, out, transformers.AutoTokenizer.from_pretrained(out), fit)
    return str(out)


# --- new


def test_a_new_model_loads_through_the_auto_classes_with_its_vocabulary(tmp_path, vocab):
    out = tmp_path / "new"
    done = run("new", str(out), "--vocabulary", vocab, *SIZES, "--qkv-size=16", "--max-position-embeddings=20")
    assert (done.exit_code, done.stdout) == (0, f"{out}: 3-24-40-4-16, vocabulary 10\n")
    config = transformers.AutoConfig.from_pretrained(out)
    assert type(config) is CompactBertConfig
    assert (config.qkv_size, config.vocab_size, config.max_position_embeddings) == (16, 10, 20)
    model = transformers.AutoModel.from_pretrained(out)
    assert type(model) is CompactBertModel
    assert model.encoder.layer[0].attention.self.query.weight.shape == (16, 24)
    assert transformers.AutoTokenizer.from_pretrained(out)("Old mills.")["input_ids"] == [2, 6, 7, 8, 5, 3]
    again = checkpoints.load(CompactBertModel, out).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


def test_the_seed_decides_the_weights_and_a_folder_that_stands_stays(tmp_path, vocab):
    made = [str(tmp_path / name) for name in ("a", "b", "c")]
    for out, seed in zip(made, ("1", "1", "2"), strict=True):
        assert run("new", out, "--vocabulary", vocab, *SIZES, "--seed", seed).exit_code == 0
    a, b, c = (load_file(f"{out}/model.safetensors")["bert.pooler.dense.weight"] for out in made)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    again = run("new", made[0], "--vocabulary", vocab, *SIZES, "--seed", "3")
    assert (again.exit_code, again.stdout) == (0, f"{made[0]}: 3-24-40-4-24, vocabulary 10, was there\n")
    assert torch.equal(load_file(f"{made[0]}/model.safetensors")["bert.pooler.dense.weight"], a)
    other = run("new", made[0], "--vocabulary", vocab, *SIZES, "--qkv-size=4")
    assert other.exit_code == 1
    assert f"{made[0]} holds another model; name another folder or remove it" in other.stderr


def test_presets_and_the_published_supernet_are_made_without_weights_too(tmp_path, vocab):
    for arguments, expected in (([], "superbert"), (["--preset", "autotinybert-kd-s1"], "autotinybert-kd-s1")):
        out = tmp_path / expected
        assert run("new", str(out), "--vocabulary", vocab, "--no-weights", *arguments).exit_code == 0
        config = transformers.AutoConfig.from_pretrained(out)
        assert config.key() == presets.config(expected, vocab_size=10).key()
        assert '"qkv_size"' in (out / "config.json").read_text()
        assert not (out / "model.safetensors").exists()
        assert type(transformers.AutoModel.from_config(config.changed(num_hidden_layers=1))) is CompactBertModel
    narrower = tmp_path / "narrower"
    run("new", str(narrower), "--vocabulary", vocab, "--no-weights", "--preset=autotinybert-s4", "--hidden-size=300")
    assert transformers.AutoConfig.from_pretrained(narrower).qkv_size == 256
    done = run("new", str(out), "--vocabulary", vocab, "--preset", "autotinybert-kd-s1")
    assert "holds this model without weights; name another folder" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "autotinybert-s9"], "no preset is called 'autotinybert-s9'; did you mean autotinybert-s"),
        (["--hidden-size=24", "--num-attention-heads=5"], "qkv_size 24 is no multiple of num_attention_heads 5"),
        (["--vocabulary", "/no/such/vocab.txt"], "/no/such/vocab.txt"),
    ],
)
def test_what_cannot_be_made_is_one_sentence_and_no_folder(tmp_path, vocab, arguments, message):
    done = run("new", str(tmp_path / "out"), "--vocabulary", vocab, *arguments)
    assert done.exit_code == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path, vocab):
    (tmp_path / "file").write_text("")
    done = run("new", str(tmp_path / "file" / "out"), "--vocabulary", vocab, *SIZES)
    assert done.exit_code == 1
    assert "file/out could not be written (" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.long
def test_several_processes_that_make_the_same_folder_end_with_one_good_folder(tmp_path, vocab):
    command = [sys.executable, "-m", "compresskit.cli", "new", str(tmp_path / "out"), "--vocabulary", vocab, *SIZES]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    ended = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], ended
    assert type(transformers.AutoModel.from_pretrained(tmp_path / "out")) is CompactBertModel
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "vocab.txt"]


# --- extract


@pytest.mark.parametrize("flavour", ARCH)
def test_the_extracted_model_is_the_slice_bit_for_bit_with_config_and_vocabulary(tmp_path, supernet, flavour):
    out = tmp_path / "small"
    done = run("extract", supernet, str(out), "--arch", ARCH[flavour])
    assert done.exit_code == 0, done.stderr
    assert re.fullmatch(rf"{out}: 2-16-24-{4 if flavour == 'kd' else 2}-12, [\d,]+ parameters\n", done.stdout)

    big = checkpoints.load(CompactBertModel, supernet)
    subnet = arch_text.parse(ARCH[flavour], big.config)
    small = transformers.AutoModel.from_pretrained(out)
    assert small.config.key() == subnet.key()
    with torch.no_grad():
        in_place, taken_out = big(IDS, MASK, subnet=subnet), small(IDS, MASK)
    assert torch.equal(in_place.last_hidden_state, taken_out.last_hidden_state)
    assert torch.equal(in_place.pooler_output, taken_out.pooler_output)

    row = 3 if flavour == "kd" else 6  # per head of the supernet's 6: its leading ones, or all
    weights, source = load_file(out / "model.safetensors"), big.state_dict()
    heads = 4 if flavour == "kd" else 2
    rows = [6 * head + i for head in range(heads) for i in range(row)]
    name = "encoder.layer.1.attention.self.key.weight"
    assert torch.equal(weights[name], source[name][rows, :16])
    name = "encoder.layer.1.attention.output.dense.weight"
    assert torch.equal(weights[name], source[name][:16, rows])
    assert not [name for name in weights if name.startswith(("cls", "dense_fit"))]
    assert not (out / checkpoints.TRAINING_FILE).exists()
    assert transformers.AutoTokenizer.from_pretrained(out)("old")["input_ids"] == [2, 6, 3]


def test_heads_and_projection_come_along_on_request(tmp_path, supernet):
    out = tmp_path / "small"
    assert run("extract", supernet, str(out), "--arch", ARCH["kd"], "--heads").exit_code == 0
    big = checkpoints.load(CompactBertForPreTraining, supernet)
    small = transformers.AutoModelForPreTraining.from_pretrained(out)
    with torch.no_grad():
        in_place, taken_out = big(IDS, MASK, subnet=arch_text.parse(ARCH["kd"], big.config)), small(IDS, MASK)
    assert torch.equal(in_place.prediction_logits, taken_out.prediction_logits)
    assert torch.equal(in_place.seq_relationship_logits, taken_out.seq_relationship_logits)
    fit, whole = (checkpoints.read(folder).training_only for folder in (out, supernet))
    assert torch.equal(fit["dense_fit.weight"], whole["dense_fit.weight"][:, :16])
    assert torch.equal(fit["dense_fit.bias"], whole["dense_fit.bias"])


@pytest.mark.parametrize("kind", [CompactBertForMaskedLM, CompactBertForSequenceClassification])
def test_every_head_is_known_by_its_weights(tmp_path, vocab, kind):
    model = randomised(kind(CompactBertConfig(vocab_size=10, **CONFIG)))
    checkpoints.save(model, tmp_path / "big", transformers.BertTokenizer(vocab))
    for flag in ([], ["--heads"]):
        done = run("extract", str(tmp_path / "big"), str(tmp_path / "small"), "--hidden-size=16", *flag)
        assert done.exit_code == 0, done.stderr
        names = load_file(tmp_path / "small" / "model.safetensors").keys()
        heads = {name for name in model.state_dict() if not name.startswith("bert.")} - set(
            model._tied_weights_keys or ()
        )
        assert {name for name in names if name.startswith(("cls", "classifier"))} == (heads if flag else set())
        assert any("pooler" in name for name in names) == (kind is CompactBertForSequenceClassification)


CONFIG = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40}


def test_a_released_checkpoint_becomes_a_folder_of_ours(tmp_path, supernet, vocab):
    released = tmp_path / "released"
    released.mkdir()
    big = checkpoints.load(CompactBertModel, supernet)
    names = {name: re.sub("_embeddings.weight", "_embeddings.embedding.weight", name).replace("layer.", "layers.")
             for name in big.state_dict()}  # fmt: skip
    torch.save({f"bert.{names[n]}": t for n, t in big.state_dict().items()}, released / "pytorch_model.bin")
    fields = {name: getattr(big.config, name) for name in (*CONFIG, "qkv_size", "vocab_size")}
    (released / "config.json").write_text(str(fields).replace("'", '"'))
    (released / "vocab.txt").write_text("\n".join(WORDS))
    assert run("extract", str(released), str(tmp_path / "ours")).exit_code == 0
    ours = transformers.AutoModel.from_pretrained(tmp_path / "ours")
    assert all(torch.equal(ours.state_dict()[name], tensor) for name, tensor in big.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arch", "5-564-1054-8-512"], "5-564-1054-8-512 is no architecture; expected a dictionary"),
        (["--arch", ARCH["kd"], "--preset", "tinybert-4"], "the network is described twice"),
        (["--preset", "tinybert-4"], "the subnet's num_hidden_layers 4 exceeds the supernet's 3"),
        (["--hidden-size=25"], "the subnet's hidden_size 25 exceeds the supernet's 24"),
        (["--qkv-size=10"], "qkv_size 10 is no multiple of num_attention_heads 4"),
        (["--num-attention-heads=2"], "layer 0: the subnet's rows per head 12 exceeds the supernet's 6"),
    ],
)
def test_what_does_not_fit_is_one_sentence_and_no_folder(tmp_path, supernet, arguments, message):
    done = run("extract", supernet, str(tmp_path / "out"), *arguments)
    assert done.exit_code == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_supernet_is_not_replaced_by_its_slice_and_a_lost_vocabulary_is_named(tmp_path, supernet):
    done = run("extract", supernet, f"{supernet}/../supernet", "--hidden-size=16")
    assert "is the model itself; name another folder" in done.stderr
    for name in ("tokenizer.json", "vocab.txt"):
        (tmp_path / "supernet" / name).unlink(missing_ok=True)
    done = run("extract", supernet, str(tmp_path / "out"), "--hidden-size=16")
    assert "supernet: no vocabulary; copy the vocab.txt or tokenizer.json" in done.stderr
    (tmp_path / "supernet" / "config.json").unlink()
    assert (
        "supernet has no config.json; expected a model folder" in run("extract", supernet, str(tmp_path / "out")).stderr
    )
