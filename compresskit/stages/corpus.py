"""From text to pre-training instances on disk: dumps, sentences, WikiText, books, kept apart or joined."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Literal

import pandas as pd
from pydantic import Field, field_validator

from compresskit import tracking
from compresskit.data import vocabulary
from compresskit.data.corpus import chunks, documents, epoch_files, instances, prepared, shards, token_files
from compresskit.data.corpus.documents import Articles, Documents, Source
from compresskit.stages.inputs import BUNDLED, corpus_file
from compresskit.stages.params import Params
from compresskit.stages.session import Session, model_folder
from compresskit.training.progress import Progress

VOCABULARY_SENTENCES = 500_000  # of all sources together: words are counted in memory
MB = 1_000_000
NAME = r"(?!(documents|tokenizer|token_files|epoch_\d+)$)[A-Za-z0-9][\w-]*"  # of a source: a folder beside these


class CorpusParams(Params):
    """Parameters of the stage `corpus`."""

    results = ("run_id", "corpus")

    sources: dict[str, str] = {BUNDLED: BUNDLED}  # by name: a dump (.xml.bz2, .xml), a text, or a folder of books
    joined: bool = True  # one corpus of all sources; false: one for each
    vocabulary: str = ""  # a model, a folder or vocab.txt; empty: a WordPiece vocabulary is trained on the sources
    vocab_size: int = Field(4000, ge=100)  # of a vocabulary that is trained
    packing: Literal["pairs", "articles", "chunks"] = "pairs"
    max_seq_len: int = Field(128, ge=5)
    short_seq_prob: float = Field(0.1, ge=0, le=1)
    one_seq: bool = False
    masked_lm_prob: float = Field(0.0, ge=0, lt=1)
    max_predictions_per_seq: int = Field(20, ge=1)
    whole_word_mask: bool = False
    faithful: bool = False
    epochs: int = Field(3, ge=1)
    json_lines: bool = False
    out: str = ""
    seed: int = 42

    @field_validator("sources")
    @classmethod
    def _named(cls, sources: dict[str, str]) -> dict[str, str]:
        wrong = [name for name in sources if not re.fullmatch(NAME, name)]
        if wrong:
            raise ValueError(f"should map names of letters, digits, _ and - to places; {wrong[0]!r} is no such name")
        if not sources:
            raise ValueError("should name at least one source")
        return sources

    @property
    def made_epochs(self) -> int:
        """How many epochs are made: nothing about chunks is drawn, one serves all."""
        return 1 if self.packing == "chunks" else self.epochs

    def recipe(self) -> instances.Recipe:
        """What shapes a pair."""
        names = instances.Recipe.__dataclass_fields__
        return instances.Recipe(**{name: getattr(self, name) for name in names})


@dataclass
class CorpusStage:
    """The opened stage. Reading and pairing go on where a stopped run of the same parameters and sources ended."""

    params: CorpusParams
    session: Session
    sources: list[Source]
    tokenizer: Any  # None until it is trained
    stamp: dict[str, Any]
    folder: Path  # of the finished corpus
    making: Path  # where it is made; `folder` itself where an earlier run has finished it
    read_counts: dict[str, documents.Progress] = field(default_factory=dict)
    counts: list[dict[str, Any]] = field(default_factory=list)  # of instances, by epoch and source

    def describe(self) -> pd.DataFrame:
        """The sources, as they were recognised."""
        rows = [
            {
                "kind": source.kind,
                "files": len(source.files()),
                "MB": round(source.num_bytes() / MB, 2),
                "path": source.path,
            }
            for source in self.sources
        ]
        return pd.DataFrame(rows, index=pd.Index([source.name for source in self.sources], name="source"))

    def read(self) -> pd.DataFrame:
        """Tokenise all documents. Returns documents, sentences and tokens of each source."""
        if self.tokenizer is None:
            self.tokenizer = self._trained_tokenizer()
        self._keep_tokenizer(self.making)
        for source in self.sources:
            folder, size = self._documents_folder(source), math.ceil(source.num_bytes() / MB)
            notes = shards.notes(folder)
            with Progress(f"read {source.name} (MB)", size, notes[-1]["end"] // MB if notes else 0) as progress:
                counts = documents.store(
                    folder, source, self.tokenizer, lambda end, at=progress.at: at(end // MB)  # type: ignore[misc]
                )  # fmt: skip
                progress.at(size)
            self.read_counts[source.name] = counts
        return self.documents_table()

    def documents_table(self) -> pd.DataFrame:
        """Documents, sentences and tokens of each source, and their sum."""
        rows = {
            name: {"documents": count.documents, "sentences": count.sentences, "tokens": count.tokens}
            for name, count in self.read_counts.items()
        }
        table = pd.DataFrame(rows).T
        table.index.name = "source"
        if len(table) > 1:
            table.loc["all"] = table.sum()
        table["tokens per sentence"] = (table["tokens"] / table["sentences"]).round(1)
        table["sentences per document"] = (table["sentences"] / table["documents"]).round(1)
        return table

    def pack(self) -> pd.DataFrame:
        """Make the instances of every epoch. Returns how many there are of each source, and how full they are."""
        self.counts.clear()
        for part, names in self._parts().items():
            sizes = {name: self.read_counts[name].documents for name in names}
            texts = Documents(self.making / "documents" / name for name in names)
            found: Documents | Articles = texts
            if self.params.packing == "articles":
                books = [source.name for source in self.sources if source.kind == "books"]
                found = Articles(texts, sizes, books)
                sizes = found.sizes
            for epoch in range(self.params.made_epochs):
                folder = self.making / part / f"epoch_{epoch}"
                notes = shards.notes(folder)
                label = f"pack {part} epoch {epoch}".replace("  ", " ")
                with Progress(label, len(found), notes[-1]["done"] if notes else 0) as progress:
                    counts = self._write(folder, found, sizes, f"{self.params.seed} {part} {epoch}", progress)
                self.counts += [{"epoch": epoch, "source": name, **asdict(count)} for name, count in counts.items()]
                if self.params.json_lines:
                    self._write_json_lines(folder, epoch, found)
        return self.instances_table()

    def _write(
        self, folder: Path, found: Documents | Articles, sizes: dict[str, int], seed: str, progress: Progress
    ) -> Mapping[str, instances.Counts | chunks.Counts]:
        params = self.params
        if isinstance(found, Documents) and params.packing == "chunks":
            return chunks.write(folder, found, sizes, params.max_seq_len, params.faithful, progress.at)
        pieces = instances.Pieces.of(self.tokenizer)
        return instances.write(folder, found, sizes, Random(seed), params.recipe(), pieces, progress.at)

    def _write_json_lines(self, folder: Path, epoch: int, found: Documents | Articles) -> None:
        params, place = self.params, folder.parent / "token_files"
        if params.packing != "chunks" and not epoch_files.is_written(folder.parent, epoch):
            rows = shards.dataset(folder)
            epoch_files.write_epoch(folder.parent, epoch, rows, self.tokenizer, params.max_seq_len)
        elif isinstance(found, Documents) and params.packing == "chunks" and not place.exists():
            written = (
                chunks.document_chunks(found[number], params.max_seq_len, params.faithful)
                for number in range(len(found))
            )
            token_files.write(place, written, len(shards.dataset(folder)), self.tokenizer, params.faithful)

    def instances_table(self) -> pd.DataFrame:
        """Instances of each epoch and source, their share with a random next (or the tokens that were dropped), and
        their mean length.
        """
        table = pd.DataFrame(self.counts)
        if self.params.packing != "chunks":
            table["random next"] = (table.pop("random_next") / table["instances"]).round(3)
        table["tokens per instance"] = (table["tokens"] / table["instances"]).round(1)
        return table

    def examples(self, number: int = 5) -> pd.DataFrame:
        """Some instances of the first epoch as text."""
        part = next(iter(self._parts()))
        rows = shards.dataset(self.making / part / "epoch_0")
        chosen = sorted(Random(self.params.seed).sample(range(len(rows)), min(number, len(rows))))
        if self.params.packing == "chunks":
            return pd.DataFrame({"text": [self.tokenizer.decode(row["input_ids"]) for row in rows.select(chosen)]})
        shown = []
        for row in rows.select(chosen):
            cut = row["token_type_ids"].index(1)
            a, b = (self.tokenizer.decode(ids) for ids in (row["input_ids"][:cut], row["input_ids"][cut:]))
            shown.append({"A": a, "B": b, "B is": "random" if row["next_sentence_label"] else "next"})
        return pd.DataFrame(shown)

    def finish(self) -> pd.DataFrame:
        """Put the corpus in its place, log the counts; returns the row of results."""
        table = self.instances_table()
        if self.making != self.folder:
            self._write_manifests()
            os.replace(self.making, self.folder)
            self.making = self.folder
        self.session.run.table("documents", self.documents_table().reset_index())
        self.session.run.table("instances", table)
        for source in self.sources:
            identity = json.dumps(self.stamp["sources"][source.name])
            self.session.run.input(source.name, source.path, hashlib.sha256(identity.encode()).hexdigest())
        first = table[table["epoch"] == 0]
        totals = {"instances_per_epoch": int(first["instances"].sum()), "tokens_per_epoch": int(first["tokens"].sum())}
        return self.session.finish({"corpus": str(self.folder), **totals})

    def _parts(self) -> dict[str, list[str]]:
        """The corpora to make, by their folder, each with its sources."""
        names = [source.name for source in self.sources]
        return {"": names} if self.params.joined else {name: [name] for name in names}

    def _documents_folder(self, source: Source) -> Path:
        return self.making / "documents" / source.name

    def _trained_tokenizer(self) -> Any:
        if (self.making / "tokenizer").is_dir():
            return vocabulary.load_tokenizer(self.making / "tokenizer")
        share = VOCABULARY_SENTENCES // len(self.sources)
        lines = (line for source in self.sources for line in islice(_lines(source), share))
        return vocabulary.train_wordpiece(lines, self.params.vocab_size)

    def _keep_tokenizer(self, folder: Path) -> None:
        kept = folder / "tokenizer"
        if not kept.is_dir():
            unfinished = folder / "tokenizer.part"
            shutil.rmtree(unfinished, ignore_errors=True)
            self.tokenizer.save_pretrained(unfinished)
            os.replace(unfinished, kept)

    def _write_manifests(self) -> None:
        counts = {name: asdict(count) for name, count in self.read_counts.items()}
        manifest = {"format": prepared.FORMAT, **self.stamp, "parts": []}
        for part, names in self._parts().items():
            self._keep_tokenizer(self.making / part)
            of_part = {
                "documents": {name: counts[name] for name in names},
                "instances": [count for count in self.counts if count["source"] in names],
            }
            shards.write_json(self.making / part / prepared.MANIFEST, manifest | of_part)
        if not self.params.joined:
            shards.write_json(self.making / prepared.MANIFEST, manifest | {"parts": list(self._parts())})


def _lines(source: Source) -> Iterator[str]:
    return (sentence for document in source.documents() for sentence in document.sentences)


def open(params: CorpusParams) -> CorpusStage:
    """Look at the sources, start the run. Raises FileNotFoundError or ValueError before anything is written."""
    sources = [Source(name, _place(place)) for name, place in params.sources.items()]
    tokenizer = None
    if params.vocabulary:
        given = Path(params.vocabulary).expanduser()
        tokenizer = vocabulary.load_tokenizer(given if given.is_file() else model_folder(params.vocabulary))
    listed = [source for source in sources if source.kind == "token lists"]
    if listed and (params.packing != "chunks" or tokenizer is None):
        raise ValueError(
            f"source {listed[0].name}: {listed[0].path} holds lists of tokens; set `packing: chunks`, and "
            "`vocabulary` to the one they were made with"
        )
    stamp = {
        "settings": params.model_dump(mode="json", exclude={"sources", "out"}) | {"epochs": params.made_epochs},
        "sources": {source.name: source.identity() for source in sources},
        "vocabulary": _digest(tokenizer.backend_tokenizer.to_str()) if tokenizer is not None else "trained",
    }
    folder = Path(params.out).expanduser() if params.out else _default_folder(stamp)
    making = _making(folder, stamp)
    session = Session(
        "corpus", params, experiment="corpus", name=f"corpus-{'-'.join(params.sources)}", seed=params.seed
    )
    return CorpusStage(params, session, sources, tokenizer, stamp, folder, making)


def _place(place: str) -> Path:
    return corpus_file(place) if place == BUNDLED else Path(place).expanduser()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _default_folder(stamp: dict[str, Any]) -> Path:
    return tracking.project_root() / "mlruns" / "corpora" / _digest(json.dumps(stamp, sort_keys=True))


def _making(folder: Path, stamp: dict[str, Any]) -> Path:
    """Where to make the corpus: beside its place, where an earlier run may have begun it; or where it is finished.

    Raises ValueError where something else is in its place.
    """
    if folder.exists():
        if prepared.is_prepared(folder):
            found = json.loads((folder / prepared.MANIFEST).read_text(encoding="utf-8"))
            if all(found.get(name) == value for name, value in stamp.items()):
                return folder
            raise ValueError(f"{folder} holds a corpus of other sources or settings; name another folder or remove it")
        if not folder.is_dir() or any(folder.iterdir()):
            raise ValueError(f"{folder} exists and is no corpus; name another folder or remove it")
    making = folder.with_name(f".{folder.name}.unfinished")
    begun = making / "stamp.json"
    if making.exists() and not (begun.is_file() and json.loads(begun.read_text(encoding="utf-8")) == stamp):
        shutil.rmtree(making)
    making.mkdir(parents=True, exist_ok=True)
    shards.write_json(begun, stamp)
    return making
