"""Training on the copies of the stage augment: of the rows learned from, and of no other row."""

from __future__ import annotations

import pytest
from transformers import BertConfig, BertForSequenceClassification

from compresskit.data import augment_files, glue
from compresskit.data.vocabulary import train_wordpiece
from compresskit.stages import distill, finetune, prune

WORDS = "film plot actor scene story joke song tale part shot cast role line mood tone view".split()  # noqa: SIM905
ROWS = [f"a {a} and a {b} {i % 2}" for i, (a, b) in enumerate((a, b) for a in WORDS for b in WORDS)][:240]
CLASSES = {
    finetune: (finetune.FinetuneParams, "model"),
    distill: (distill.DistillParams, "teacher"),
    prune: (prune.PruneParams, "model"),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """SST-2 of 240 rows, a task model for it, and copies: row i has i % 3 of them, each with its own number."""
    folder = tmp_path_factory.mktemp("inputs")
    for name in ("train.tsv", "dev.tsv"):
        (folder / "SST-2").mkdir(exist_ok=True)
        lines = ["sentence\tlabel", *(f"{text}\t{i % 2}" for i, text in enumerate(ROWS))]
        (folder / "SST-2" / name).write_text("\n".join(lines) + "\n")
    copies = (
        (i, [[text, str(i % 2)], *([f"{text} again {copy} of {i}", str(i % 2)] for copy in range(i % 3))])
        for i, text in enumerate(ROWS)
    )
    augment_files.write(folder / "augmented/SST-2", ["sentence", "label"], copies, {})
    tokenizer = train_wordpiece([*ROWS, "again 0 1 2 3 4 5 6 7 8 9 of"] * 3, 200)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=16, max_position_embeddings=32)  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder


def opened(stage, inputs, **changes):
    params, model = CLASSES[stage]
    given = {model: str(inputs / "model"), "data_dir": str(inputs), "max_seq_len": 32}
    return stage.open(params(**{**given, "augmented": str(inputs / "augmented"), **changes}))


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("stage", CLASSES, ids=lambda stage: stage.__name__.rpartition(".")[2])
def test_a_stage_learns_from_its_rows_and_their_copies_and_chooses_by_others(store, inputs, stage, seed):
    splits = opened(stage, inputs, seed=seed).data.splits
    learned, chosen_by = glue.selection_split(glue.read("sst2", inputs, "train"), seed)
    rows = splits["train"].rows
    assert sorted(rows["idx"]) == sorted(i for i in learned["idx"] for _ in range(i % 3 + 1))
    assert all(row["sentence1"].startswith(ROWS[row["idx"]]) for row in rows)
    assert len(splits["train"].encoded) == len(rows)
    assert splits["selection"].rows["sentence1"][:] == chosen_by["sentence1"][:]
    assert splits["dev"].rows["sentence1"][:] == ROWS


def test_without_a_folder_the_rows_of_train_are_learned_from_as_they_are(store, inputs):
    assert len(opened(finetune, inputs, augmented="").data.train) == 120


def test_copies_of_other_data_are_refused_in_one_sentence(store, inputs, tmp_path):
    (tmp_path / "SST-2").mkdir()
    for name in ("train.tsv", "dev.tsv"):
        text = (inputs / "SST-2" / name).read_text()
        (tmp_path / "SST-2" / name).write_text(text.replace("film", "movie"))
    with pytest.raises(ValueError, match="was made from other data, so run augment with this data_dir") as error:
        opened(finetune, inputs, data_dir=str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_folder_without_copies_and_questions_are_refused(store, inputs, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no SST-2/train_aug\.tsv there; make it with the stage augment"):
        opened(finetune, inputs, augmented=str(tmp_path))
    (tmp_path / "squad").mkdir()
    for name in ("train-v1.1.json", "dev-v1.1.json"):
        entries = ",".join(
            f'{{"context": "a film {i}", "qas": [{{"id": "{i}", "question": "what ?", '
            f'"answers": [{{"text": "film", "answer_start": 2}}]}}]}}'
            for i in range(4)
        )
        (tmp_path / "squad" / name).write_text(f'{{"version": "1.1", "data": [{{"paragraphs": [{entries}]}}]}}')
    with pytest.raises(ValueError, match="squad1 has no augmented rows: a copy in other words loses its answer"):
        opened(finetune, inputs, task="squad1", data_dir=str(tmp_path))
