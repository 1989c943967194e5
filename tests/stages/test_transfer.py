"""A student of one task goes on to another: SST-2 to MNLI, as TinyBERT's accelerator variant offers it."""

from __future__ import annotations

import pytest
import torch

from compresskit import tracking
from compresskit.data import glue
from compresskit.data.vocabulary import train_wordpiece
from compresskit.models import CompactBertConfig, CompactBertForSequenceClassification, checkpoints
from compresskit.stages import distill

WORDS = "river town mill bridge old new stone tower garden wall hill road".split()  # noqa: SIM905
HUB = ["entailment", "neutral", "contradiction"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """An MNLI teacher of the hub's label order, a student of SST-2 with its projection, and MNLI rows."""
    folder = tmp_path_factory.mktemp("inputs")
    tokenizer = train_wordpiece([" ".join(WORDS)] * 5, 100)

    def save(name: str, seed: int, projection: dict[str, torch.Tensor] | None = None, **fields: object) -> None:
        config = CompactBertConfig(
            vocab_size=len(tokenizer), num_attention_heads=2, intermediate_size=16, max_position_embeddings=32, **fields
        )
        torch.manual_seed(seed)
        checkpoints.save(CompactBertForSequenceClassification(config), folder / name, tokenizer, projection)

    save("teacher", 0, num_hidden_layers=2, hidden_size=16, id2label=dict(enumerate(HUB)))
    fit_dense = {"fit_dense.weight": torch.randn(16, 8), "fit_dense.bias": torch.randn(16)}
    save("student", 1, fit_dense, num_hidden_layers=1, hidden_size=8, num_labels=2)
    (folder / "MNLI").mkdir()
    header = ["index", *(f"column {i}" for i in range(7)), "sentence1", "sentence2", "gold_label"]
    rows = [[str(i), *"-" * 7, WORDS[i % 12], WORDS[i % 7], HUB[i % 3]] for i in range(240)]
    for name in ("train.tsv", "dev_matched.tsv"):
        (folder / "MNLI" / name).write_text("\n".join("\t".join(row) for row in [header, *rows]) + "\n")
    return folder


def test_the_students_head_is_new_and_the_teachers_is_kept_in_the_tasks_order(store, inputs):
    source, teacher = (checkpoints.read(inputs / name) for name in ("student", "teacher"))
    stage = distill.open(
        distill.DistillParams(
            task="mnli", teacher=str(inputs / "teacher"), student=str(inputs / "student"), data_dir=str(inputs),
            max_seq_len=16, prediction_epochs=0, max_steps=2,
        )
    )  # fmt: skip
    labels = glue.task_named("mnli").labels
    order = [HUB.index(label) for label in labels]
    assert torch.equal(stage.teacher.classifier.weight.cpu(), teacher.weights["classifier.weight"][order])
    assert list(stage.student.config.id2label.values()) == list(labels)
    head = stage.student.classifier.weight.detach().clone()
    assert head.shape == (3, 8)
    assert torch.equal(stage.student.bert.pooler.dense.weight.cpu(), source.weights["pooler.dense.weight"])
    assert torch.equal(stage.layers.project.weight.cpu(), source.training_only["fit_dense.weight"])
    stage.train()
    assert torch.equal(stage.student.classifier.weight, head)  # the first step does not ask for answers
    saved = checkpoints.read(tracking.resolve(stage.finish()["model"].item()))
    assert saved.weights["classifier.weight"].shape == (3, 8)
    assert not torch.equal(saved.training_only["fit_dense.weight"], source.training_only["fit_dense.weight"])
