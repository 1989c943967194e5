"""TinyBERT's corpus step against the files its original program wrote."""

from __future__ import annotations

import json
import re
from random import Random

import pytest

from compresskit.data import vocabulary
from compresskit.data.corpus import documents, epoch_files, instances, shards
from tests.oracle_cases import Case, oracle


def tokenizer_of(case: Case, folder):
    """The case's own vocabulary, else the one that all cases of the system share."""
    vocab = case.record.get("vocab") or oracle("tinybert", "tokenizer")[0].value("vocab")
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    return vocabulary.load_tokenizer(folder / "vocab.txt")


def seed_of(case: Case) -> int:
    return int(case.record.get("seed") or re.search(r"random seed (\d+)", case.value("what"))[1])


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("tinybert", "pregenerate"), ids=str)
def test_instances_of_a_seed_are_written_as_by_the_original_program(case, tmp_path):
    tokenizer = tokenizer_of(case, tmp_path)
    (tmp_path / "corpus.txt").write_text(case.value("corpus"), encoding="utf-8")
    settings = case.value("args")
    epochs = settings.pop("epochs_to_generate")
    recipe = instances.Recipe(**settings, faithful=True)

    read = documents.store(tmp_path / "store", documents.Source("corpus", tmp_path / "corpus.txt"), tokenizer)
    found = documents.Documents([tmp_path / "store"])
    rng = Random(seed_of(case))  # one stream of numbers for all epochs
    for epoch in range(epochs):
        instances.write(
            tmp_path / str(epoch), found, {"corpus": read.documents}, rng, recipe, instances.Pieces.of(tokenizer)
        )
        rows = shards.dataset(tmp_path / str(epoch))
        epoch_files.write_epoch(tmp_path, epoch, rows, tokenizer, recipe.max_seq_len)

    for name in case.value("files"):
        case.check_value("files", name, got=(tmp_path / name).read_text(encoding="utf-8"))
    assert sorted(case.value("files")) == sorted(path.name for path in tmp_path.glob("epoch_*"))


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("tinybert", "pregenerate"), ids=str)
def test_files_of_the_original_program_are_read_as_they_stand(case, tmp_path):
    tokenizer = tokenizer_of(case, tmp_path)
    for name, text in case.value("files").items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    for name in case.value("files"):
        number = re.fullmatch(r"epoch_(\d+)\.json", name)
        if number is None:
            case.check_value("files", name, got=(tmp_path / name).read_text(encoding="utf-8"))
            continue
        lines = [
            {
                "tokens": tokenizer.convert_ids_to_tokens(row.input_ids),
                "segment_ids": row.token_type_ids,
                "is_random_next": row.next_sentence_label == 1,
                "masked_lm_positions": row.masked_lm_positions,
                "masked_lm_labels": tokenizer.convert_ids_to_tokens(row.masked_lm_ids),
            }
            for row in epoch_files.read_epoch(tmp_path, int(number[1]), tokenizer)
        ]
        case.check_value("files", name, got="".join(json.dumps(line) + "\n" for line in lines))
