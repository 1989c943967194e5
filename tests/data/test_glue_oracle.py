"""GLUE rows and features against those of TinyBERT's processors."""

from __future__ import annotations

import pytest

from compresskit.data import glue, vocabulary
from compresskit.data.batching import Batches
from compresskit.data.glue_tsv import read_tsv
from tests.oracle_cases import Tolerance, oracle

NAMES = {"sst-2": "sst2", "sts-b": "stsb", "mnli-mm": "mnli_mm"}  # where ours differ from theirs
BY_ROW = {"cola": 0, "sst2": 1, "mrpc": 1}  # guids count the rows of the file from here; elsewhere column 0 is the guid
MATCHED = {"mnli", "mnli_mm", "qnli"}  # dev guids say dev_matched, of the mismatched rows too
FLOAT32 = Tolerance(rtol=2**-23)  # graded labels are kept in single precision, recorded in double


def examples(task: glue.GlueTask, path, split: str) -> list[list]:
    """The rows of a file as the original lists them: guid, first and second text, label as it is written."""
    columns = read_tsv(task, path, "train")
    header = 1 if task.has_header else 0
    lines = path.read_text(encoding="utf-8").split("\n")
    prefix = "dev_matched" if split == "dev" and task.name in MATCHED else split
    found = []
    for row, (a, label, position) in enumerate(
        zip(columns["sentence1"], columns["label"], columns["idx"], strict=True)
    ):
        column_0 = lines[header + position].split("\t")[0]
        number = position + BY_ROW[task.name] if task.name in BY_ROW else column_0
        b = columns["sentence2"][row] if "sentence2" in columns else None
        found.append([f"{prefix}-{number}", a, b, f"{label:.3f}" if task.is_regression else task.labels[label]])
    return found


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("tinybert", "glue_processors"), ids=str)
def test_examples_and_features_are_those_of_the_original_processors(case, tmp_path):
    for name, text in case.value("files").items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    (tmp_path / "vocab.txt").write_text("\n".join(case.value("vocab")) + "\n", encoding="utf-8")
    tokenizer = vocabulary.load_tokenizer(tmp_path / "vocab.txt")
    length = case.value("max_seq_length")

    for name, recorded in case.value("tasks").items():
        task = glue.task_named(NAMES.get(name, name))
        folder = tmp_path / task.folder
        got = {
            "labels": list(task.labels) or [None],
            "mode": "regression" if task.is_regression else "classification",
            "dev": examples(task, folder / task.dev_file, "dev"),
            "aug": examples(task, folder / "train_aug.tsv", "aug"),
        }
        train = examples(task, folder / task.train_file, "train")
        got |= {"n_train": len(train), "train_first": train[0]}
        for field in recorded:
            case.check_value("tasks", name, field, got=got[field])

        rows = glue.encode(glue.read(task.name, tmp_path, "dev"), tokenizer, length)
        (batch,) = Batches(rows, len(rows), 0, tokenizer.pad_token_id, False, length_buckets=False, pad_to=length)
        features = {
            "input_ids": batch["input_ids"],
            "input_mask": batch["attention_mask"],
            "segment_ids": batch["token_type_ids"],
            "label_id": batch["labels"],
            "seq_length": batch["attention_mask"].sum(1),
        }
        for found in case.names(rf"{name}/(.+)"):
            tolerance = FLOAT32 if found[1] == "label_id" else None
            case.check(found[0], features[found[1]], tolerance=tolerance)
