"""TinyBERT's data augmentation of a GLUE task: train_aug.tsv, the training rows with copies in other words."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random
from typing import ClassVar, Literal

import pandas as pd
import torch
from pydantic import Field

from compresskit import tracking
from compresskit.data import augment_files
from compresskit.data.augment import COPIES, Augmenter, Candidates, Fill, draw, groups, row_copies
from compresskit.data.glue import GlueTask, task_named
from compresskit.data.glue_tsv import Table
from compresskit.data.word_vectors import WordVectors, read_word_vectors
from compresskit.models import CompactBertForMaskedLM, checkpoints
from compresskit.models.fill_mask import BATCH_TOKENS, MaskFiller
from compresskit.stages.inputs import board, glue_source, tokenizer_for
from compresskit.stages.params import Params
from compresskit.stages.session import Session, model_folder, on_device
from compresskit.training.progress import Progress

KEPT_EVERY = (
    32 * BATCH_TOKENS
)  # tokens the masked LM reads, about a minute of BERT-base on a core; a kill costs as much
HEAD = "cls.predictions.transform.dense.weight"


class AugmentParams(Params):
    """Parameters of the stage `augment`."""

    results: ClassVar[tuple[str, ...]] = ("run_id", "augmented")

    task: str = "sst2"
    data_dir: str = "bundled"  # a folder or hub id; "bundled"; empty: $COMPRESSKIT_DATA
    masked_lm: str = "models:/demo-encoder@latest"  # a run, a registered model, a folder or a hub id; empty: none
    embeddings: str = ""  # a text file of word vectors in GloVe's format; empty: none
    copies: int = Field(0, ge=0)  # of each text, at most; 0: as many as TinyBERT made for the task
    num_candidates: int = Field(15, ge=1)  # per word
    probability: float = Field(0.4, gt=0, le=1)  # that a word of a copy is replaced
    precision: Literal["float32", "bfloat16"] = "float32"  # of the masked LM
    batch_tokens: int = Field(BATCH_TOKENS, ge=1)  # per forward pass; a GPU wants more
    faithful: bool = False  # the original's file byte for byte, with what it gets wrong
    max_rows: int = Field(0, ge=0)  # augment this many rows of train, for smoke tests; 0: all
    threads: int = Field(0, ge=0)  # of torch; 0: all cores
    seed: int = 42


@dataclass
class Augment:
    """The opened stage."""

    params: AugmentParams
    session: Session
    task: GlueTask
    table: Table
    augmenter: Augmenter
    fill: Fill | None
    found: augment_files.CandidateFile
    texts: dict[str, int]  # every text once, and which it is
    counts: dict[str, int] = field(default_factory=dict)

    def describe(self) -> pd.DataFrame:
        """What there is to do, and with what."""
        return pd.DataFrame(
            {
                "rows of train": [len(self.table.rows)],
                "texts": [len(self.texts)],
                "texts done before": [len(self.found)],
                "copies per text, at most": [self.copies],
                "candidates": [self.source],
            },
            index=[self.task.name],
        ).T

    @property
    def copies(self) -> int:
        """Attempts per text."""
        return self.params.copies or COPIES[self.task.name]

    @property
    def source(self) -> str:
        """Where candidates come from."""
        given = {"masked LM": self.fill is not None, "word vectors": self.augmenter.vectors is not None}
        names = [name for name, there in given.items() if there]
        return " and ".join(names) + (" only" if len(names) == 1 else "")

    def propose(self) -> None:
        """Find candidates for every word; goes on where a stopped run of the same parameters ended."""
        left = islice(self.texts, len(self.found), None)
        with Progress("augment", len(self.texts), len(self.found)) as progress:
            for group in groups(left, self.augmenter, KEPT_EVERY):
                self.found.append(self.augmenter.candidates(group, self.fill))
                progress.at(len(self.found))

    def examples(self, number: int = 3) -> pd.DataFrame:
        """The words of the first texts with their candidates."""
        lines = []
        for text, n in islice(self.texts.items(), number):
            words = self.augmenter.words(text)
            lines += [(text, words[i], ", ".join(candidates)) for i, candidates in self.found[n].items()]
        return pd.DataFrame(lines, columns=["text", "word", "candidates"])

    def write(self) -> pd.DataFrame:
        """Draw the copies and write train_aug.tsv; returns the numbers of rows and words."""
        params = self.params
        words = self._words_by_source()
        card = {
            "run_id": self.session.run.run_id,
            "task": self.task.name,
            "candidates": self.source,
            "copies": self.copies,
            **{
                name: getattr(params, name)
                for name in ("num_candidates", "probability", "precision", "faithful", "seed")
            },
        }
        rows = augment_files.write(
            self.folder / self.task.folder, self.table.header, self._rows(), card, faithful=params.faithful
        )
        self.counts = {"train_rows": len(self.table.rows), "augmented_rows": rows, **words}
        return pd.DataFrame(self.counts, index=[self.task.name])

    @property
    def folder(self) -> Path:
        """Where the file is written before it is kept."""
        return self.session.folder / "augmented"

    def _rows(self) -> Iterator[tuple[int, Iterator[list[str]]]]:
        """Position and copies of each row. By default a row's draws depend on seed and position alone."""
        columns, faithful = self.table.text_columns, self.params.faithful
        rng = Random(self.params.seed)
        with Progress("write", len(self.table.rows)) as progress:
            for done, (position, _, fields) in enumerate(self.table.rows, start=1):
                if not faithful:
                    rng = Random(f"{self.params.seed} {position}")
                texts = [self._draw(fields[column], rng) for column in columns]
                yield position, row_copies(fields, columns, texts, faithful)
                progress.at(done)

    def _draw(self, text: str, rng: Random) -> list[str]:
        candidates: Candidates = self.found[self.texts[text]]
        return draw(text, self.augmenter.words(text), candidates, self.copies, self.params.probability, rng)

    def _words_by_source(self) -> dict[str, int]:
        """Replaceable words of all texts, by where their candidates come from."""
        counts = {"masked_lm_words": 0, "neighbour_words": 0, "words_without": 0}
        for text, n in self.texts.items():
            words = self.augmenter.words(text)
            for i, candidates in self.found[n].items():
                asked = "masked_lm_words" if self.augmenter.is_masked(words[i]) else "neighbour_words"
                counts["words_without" if candidates == [words[i]] else asked] += 1
        return counts

    def finish(self) -> pd.DataFrame:
        """Keep the folder with the run; returns the row of results. `augmented` names the folder to later stages."""
        self.found.close()
        run = self.session.run
        run.artifact(self.folder, "augmented")
        result = {"task": self.task.name, "candidates": self.source, **self.counts}
        return self.session.finish({"augmented": f"runs:/{run.run_id}/augmented", **result})


def open(params: AugmentParams) -> Augment:
    """Read the task, the masked LM and the word vectors, start the run.

    Raises ValueError where neither masked LM nor word vectors are named, and for a model without a masked-LM head.
    """
    task = task_named(params.task)
    if not params.masked_lm and not params.embeddings:
        raise ValueError("masked_lm and embeddings are both empty; candidates come from at least one of them")
    source = glue_source(params.data_dir)
    table = augment_files.train_table(task, source, params.faithful)
    if params.max_rows:
        table = Table(table.header, table.text_columns, table.label_column, table.rows[: params.max_rows])
    vectors = read_word_vectors(params.embeddings) if params.embeddings else None
    session = Session(
        "augment",
        params,
        experiment=board(params.task, params.data_dir),
        name=f"augment-{params.task}-{params.seed}",
        seed=params.seed,
        threads=params.threads,
    )
    augmenter, fill, model_digest = _sources(params, vectors)
    texts: dict[str, int] = {}
    for _, _, fields in table.rows:
        for column in table.text_columns:
            texts.setdefault(fields[column], len(texts))
    made_from = {
        "texts": _digest("\n".join(texts).encode()),
        "masked_lm": model_digest,
        "word_vectors": vectors and _digest("\n".join(vectors.words).encode(), vectors.directions.data),
    }
    found = augment_files.CandidateFile(session.folder / "candidates.jsonl", made_from)
    session.run.input(params.task, source, _digest("\n".join(texts).encode()))
    return Augment(params, session, task, table, augmenter, fill, found, texts)


def _sources(params: AugmentParams, vectors: WordVectors | None) -> tuple[Augmenter, Fill | None, str | None]:
    """The finder of candidates, the masked LM it asks, and the latter's digest."""
    make = partial(Augmenter, vectors=vectors, num_candidates=params.num_candidates, faithful=params.faithful)
    if not params.masked_lm:
        return make(None), None, None
    found = checkpoints.read(model_folder(params.masked_lm))
    if HEAD not in found.weights:
        raise ValueError(
            f"{params.masked_lm} has no masked-LM head; train one with `compresskit run pretrain --set model=…`, or "
            "leave masked_lm empty and name embeddings"
        )
    model = found.model(CompactBertForMaskedLM)
    tokenizer = tokenizer_for(model_folder(params.masked_lm), model.config.vocab_size)
    augmenter = make(tokenizer, max_length=model.config.max_position_embeddings)
    allowed = torch.zeros(model.config.vocab_size, dtype=torch.bool)
    allowed[sorted(augmenter.allowed())] = True
    filler = MaskFiller(
        on_device(model),
        allowed,
        min(params.num_candidates, int(allowed.sum())),
        dtype=getattr(torch, params.precision),
        batch_tokens=params.batch_tokens,
    )
    folder = checkpoints.local_folder(model_folder(params.masked_lm))
    return augmenter, lambda rows: filler(rows)[0].tolist(), tracking.folder_digest(folder)


def _digest(*parts: bytes | memoryview) -> str:
    """The first 16 hex digits of a SHA-256."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()[:16]
