"""Data augmentation in its faithful setting: candidates, draws and files recorded from the original code."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch

from compresskit.data import augment, augment_files, vocabulary
from compresskit.data.glue_tasks import TASKS
from compresskit.data.word_vectors import read_word_vectors
from compresskit.models import CompactBertForMaskedLM
from compresskit.models.checkpoints import Checkpoint
from compresskit.models.fill_mask import MaskFiller
from tests.oracle_cases import EXACT, Case, Tolerance, oracle


class Recorded:
    """Python's generator, and what was drawn from it."""

    def __init__(self, seed: int):
        self.rng, self.draws = Random(seed), []

    def choice(self, seq):
        self.draws.append(["choice", self.rng.choice(seq)])
        return self.draws[-1][1]

    def random(self):
        self.draws.append(["u", self.rng.random()])
        return self.draws[-1][1]


class Original:
    """The augmentation of one case."""

    def __init__(self, case: Case, folder: Path):
        (folder / "vocab.txt").write_text("\n".join(case.value("vocab")) + "\n")
        (folder / "vectors.txt").write_text("\n".join(case.value("glove_lines")) + "\n")
        model = Checkpoint.of(case.config(), case.arrays("masked_lm/")).model(CompactBertForMaskedLM)
        tokenizer = vocabulary.load_tokenizer(folder / "vocab.txt")
        self.vectors = read_word_vectors(folder / "vectors.txt", case.value("glove_vocab_size"))
        self.augmenter = augment.Augmenter(tokenizer, self.vectors, case.value("M"), faithful=True)
        allowed = torch.zeros(model.config.vocab_size, dtype=torch.bool)
        allowed[list(self.augmenter.allowed())] = True
        self.filler = MaskFiller(model, allowed, case.value("M"))
        self.copies, self.probability = case.value("N"), case.value("p")

    def pieces(self, words: list[str]) -> list[str]:
        return [self.augmenter.pieces[id] for word in words for id in self.augmenter.ids(word)]

    def candidates(self, text: str) -> augment.Candidates:
        return self.augmenter.candidates([self.augmenter.prepare(text)], lambda rows: self.filler(rows)[0].tolist())[0]

    def draw(self, text: str, rng: Recorded) -> list[str]:
        words, candidates = self.augmenter.words(text), self.candidates(text)
        return augment.draw(text, words, candidates, self.copies, self.probability, rng)


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("tinybert", "augmentation"), ids=str)
def test_candidates_draws_and_files_are_those_of_the_original_code(case, tmp_path):
    original = Original(case, tmp_path)
    case.check_value("stop_words", got=list(augment.STOP_WORDS))
    directions = torch.from_numpy(original.vectors.directions)
    case.check("emb_norm", directions, tolerance=Tolerance(atol=1e-6), equal_nan=True)

    for n, recorded in enumerate(case.value("candidate_cases")):
        text, place = recorded["sentence"], ("candidate_cases", n)
        words = original.augmenter.words(text)
        case.check_value(*place, "basic_tokens", got=words)
        case.check_value(*place, "pieces", got=original.pieces(words))
        found = {str(position): proposed for position, proposed in original.candidates(text).items()}
        case.check_value(*place, "candidates", got=found)

    for n, recorded in enumerate(case.value("augment_cases")):
        rng = Recorded(recorded["python_random_seed"])
        case.check_value("augment_cases", n, "output", got=original.draw(recorded["sentence"], rng))
        case.check_value("augment_cases", n, "draws", got=rng.draws, tolerance=EXACT)

    for name, recorded in case.value("processor_cases").items():
        task = next(task for task in TASKS.values() if task.folder == name)
        source = tmp_path / task.folder
        source.mkdir()
        (source / "train.tsv").write_text(recorded["train_tsv"], encoding="utf-8", newline="")
        table = augment_files.train_table(task, tmp_path, faithful=True)
        rng = Recorded(recorded["python_random_seed"])
        rows = (
            (
                position,
                list(
                    augment.row_copies(
                        fields,
                        table.text_columns,
                        [original.draw(fields[column], rng) for column in table.text_columns],
                        faithful=True,
                    )
                ),
            )
            for position, _, fields in table.rows
        )
        augment_files.write(source, table.header, rows, {}, faithful=True)
        written = (source / "train_aug.tsv").read_bytes().decode()
        case.check_value("processor_cases", name, "train_aug_tsv", got=written)
        case.check_value("processor_cases", name, "draws", got=rng.draws, tolerance=EXACT)
