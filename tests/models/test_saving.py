"""Saving a model is whole or not at all, whatever stands there and whoever else writes."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import transformers

from compresskit.models import (
    CompactBertConfig,
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


class Words:
    """A tokenizer as far as saving goes."""

    def save_pretrained(self, folder: Path) -> None:
        (Path(folder) / "vocab.txt").write_text("[PAD]\n")


@contextmanager
def no_file_over(size: int) -> Iterator[None]:
    """As on a full disk: writing fails once a file has `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def small_model(seed: int = 0) -> CompactBertModel:
    torch.manual_seed(seed)
    return CompactBertModel(CompactBertConfig(**SHAPE))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_saving_writes_config_weights_and_tokenizer_and_says_nothing(tmp_path, capfd):
    checkpoints.save(small_model(), tmp_path / "new" / "model", Words())
    assert sorted(content(tmp_path)) == [f"new/model/{n}" for n in ("config.json", "model.safetensors", "vocab.txt")]
    assert capfd.readouterr() == ("", "")
    assert transformers.utils.logging.is_progress_bar_enabled()


def test_saving_replaces_an_older_model_whole(tmp_path):
    folder = tmp_path / "model"
    checkpoints.save(small_model(), folder, Words())
    checkpoints.save(small_model(1), folder)
    assert sorted(content(tmp_path)) == ["model/config.json", "model/model.safetensors"]
    assert torch.equal(
        checkpoints.load(CompactBertModel, folder).pooler.dense.weight, small_model(1).pooler.dense.weight
    )


def test_a_projection_saved_with_a_model_is_found_again_and_transformers_never_sees_it(tmp_path, caplog, capfd):
    """Nor is the model taken for one of TinyBERT's own, which would have a relu."""
    torch.manual_seed(0)
    model = CompactBertForSequenceClassification(CompactBertConfig(**SHAPE, num_labels=3)).eval()
    kept = {"fit_denses.0.weight": torch.randn(5, 24), "fit_denses.0.bias": torch.randn(5)}
    checkpoints.save(model, tmp_path / "model", training_only=kept)
    found = checkpoints.read(tmp_path / "model")
    assert found.training_only.keys() == kept.keys()
    assert all(torch.equal(found.training_only[name], tensor) for name, tensor in kept.items())
    assert found.weights.keys() == checkpoints.Checkpoint.of(SHAPE, model.state_dict()).weights.keys()
    assert found.model(CompactBertForSequenceClassification).config.pooler_relu is False
    capfd.readouterr()
    with caplog.at_level(logging.WARNING), torch.no_grad():
        loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
        torch.testing.assert_close(loaded(IDS, MASK).logits, model(IDS, MASK).logits)
    assert not caplog.records
    assert "fit_dense" not in "".join(capfd.readouterr())
    checkpoints.save(model, tmp_path / "model")
    assert checkpoints.read(tmp_path / "model").training_only == {}


def test_an_empty_folder_is_filled_and_a_folder_of_other_things_is_left_alone(tmp_path):
    checkpoints.save(small_model(), tmp_path)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    with pytest.raises(ValueError, match="thesis exists and is no model folder; name another one"):
        checkpoints.save(small_model(), tmp_path / "thesis")
    assert content(tmp_path / "thesis") == {"chapter1.txt": b"years of work"}


class LongWords:
    """A tokenizer that the disk does not hold; the error is that of the tokenizers library."""

    def save_pretrained(self, folder: Path) -> None:
        raise Exception("No space left on device (os error 28)")


@pytest.mark.parametrize("there", [False, True], ids=["new", "replacing"])
@pytest.mark.parametrize("what", ["weights", "tokenizer"])
def test_a_full_disk_is_an_oserror_and_leaves_only_what_was_there(what, there, tmp_path):
    folder = tmp_path / "model"
    if there:
        checkpoints.save(small_model(), folder, Words())
    before = content(tmp_path)
    limit, tokenizer = (8_000, None) if what == "weights" else (10_000_000, LongWords())
    with (
        no_file_over(limit),
        pytest.raises(OSError, match=r"model could not be written \(.*; make room and try again") as e,
    ):
        checkpoints.save(small_model(1), folder, tokenizer)
    assert "\n" not in str(e.value)
    assert content(tmp_path) == before
    assert list(tmp_path.iterdir()) == ([folder] if there else [])


@pytest.mark.parametrize("renames_before", [0, 1])
def test_an_interrupt_while_taking_the_place_leaves_the_older_model(renames_before, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    checkpoints.save(small_model(), folder)
    before, rename, calls = content(tmp_path), os.rename, []

    def interrupted(source, target):
        calls.append(source)
        if len(calls) == renames_before + 1:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(small_model(1), folder)
    assert content(tmp_path) == before


def test_processes_that_save_to_one_folder_at_once_leave_one_good_model(tmp_path, monkeypatch):
    """Threads stand for processes; they meet before every rename."""
    rename, meet = os.rename, threading.Barrier(4)

    def together(source, target):
        with contextlib.suppress(threading.BrokenBarrierError):
            meet.wait(timeout=0.2)
        rename(source, target)

    monkeypatch.setattr(os, "rename", together)
    small = [small_model(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for saved in [pool.submit(checkpoints.save, model, tmp_path / "model", Words()) for model in small]:
            saved.result()
    assert sorted(content(tmp_path)) == [f"model/{n}" for n in ("config.json", "model.safetensors", "vocab.txt")]
    kept = checkpoints.load(CompactBertModel, tmp_path / "model")
    assert any(torch.equal(kept.pooler.dense.weight, model.pooler.dense.weight) for model in small)


def test_a_mistake_of_the_caller_is_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(AttributeError):
        checkpoints.save(small_model(), tmp_path / "model", tokenizer=3)
    assert list(tmp_path.iterdir()) == []
