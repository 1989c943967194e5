"""Tokenised documents on disk: one row per document, read memory-mapped, however large the corpus is.

A row has the ids of all its sentences after each other (`input_ids`) and where each of them ends (`sentence_ends`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa

from compresskit.data import corpora
from compresskit.data.corpora import Document
from compresskit.data.corpus import books, mediawiki, shards, token_files, wikitext_dataset

SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32())), ("sentence_ends", pa.list_(pa.int32()))])
SENTENCES_AT_ONCE = 2_000  # tokenised together
BOOK_SENTENCES = 20  # of a book that are one of EfficientBERT's documents
WHOLE = -1  # an article of all sentences of a document

READERS: dict[str, Callable[[Path, int], Iterator[Document]]] = {
    "MediaWiki dump": mediawiki.read_documents,
    "sentences": corpora.read_sentence_file,
    "books": books.read_books,
    "WikiText": wikitext_dataset.read_documents,
    "token lists": token_files.read_documents,
}


@dataclass(frozen=True)
class Source:
    """Where documents come from: a dump, sentences, WikiText's raw text, books, or AutoTinyBERT's token lists."""

    name: str
    path: Path

    @property
    def kind(self) -> str:
        """By what the path is. A folder holds token lists where a file is named as those are, else books; .bz2 or .xml
        is a dump, .json or .jsonl token lists; another file is WikiText where it begins with a title, else sentences.
        """
        if self.path.is_dir():
            return "token lists" if token_files.files(self.path) else "books"
        suffix = self.path.suffix.lower()
        if suffix in (".bz2", ".xml"):
            return "MediaWiki dump"
        if suffix in (".json", ".jsonl"):
            return "token lists"
        return "WikiText" if self.path.is_file() and wikitext_dataset.is_wikitext(self.path) else "sentences"

    def files(self) -> list[Path]:
        """Its files. Raises FileNotFoundError where there are none."""
        if self.path.is_dir():
            return token_files.files(self.path) or books.book_files(self.path)
        if not self.path.is_file():
            raise FileNotFoundError(f"source {self.name}: {self.path}: no such file or folder")
        return [self.path]

    def num_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files())

    def documents(self, start: int = 0) -> Iterator[Document]:
        """Its documents from number `start` on."""
        return READERS[self.kind](self.path, start)

    def identity(self) -> dict[str, Any]:
        """What tells whether it is still the same: its files with their sizes and times."""
        stated = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in self.files()]
        return {"kind": self.kind, "files": [list(entry) for entry in stated]}


@dataclass
class Progress:
    """How far a source was read, and what was in it."""

    read: int = 0  # documents of the source, with those that had no sentence
    documents: int = 0
    sentences: int = 0
    tokens: int = 0
    end: int = 0  # bytes of the source
    whole: bool = False


def store(folder: Path, source: Source, tokenizer: Any, advance: Callable[[int], None] = lambda end: None) -> Progress:
    """Tokenise the documents of a source into `folder`, going on where an earlier call was stopped.

    advance gets the bytes of the source read so far. Takes the memory of a few thousand sentences, or of the longest
    document. Raises ValueError where the source has no sentence at all, and what its reader raises.
    """
    done = shards.notes(folder)
    progress = Progress(**done[-1]) if done else Progress()
    if progress.whole:
        return progress
    encode = _looked_up(source, tokenizer) if source.kind == "token lists" else _tokenised(tokenizer)
    with shards.Writer(folder, SCHEMA) as writer:
        for part in _grouped(source.documents(progress.read)):
            progress.read += len(part)
            kept = [document.sentences for document in part if document.sentences]
            if kept:
                ids, ends = _encoded(kept, encode)
                writer.add([ids, ends])
                progress.tokens += len(ids.values)
            progress.documents += len(kept)
            progress.sentences += sum(map(len, kept))
            progress.end = part[-1].end
            advance(progress.end)
            if writer.due:
                writer.commit(asdict(progress))
        if not progress.documents:
            raise ValueError(f"source {source.name}: {source.path} has no sentence; expected {source.kind}")
        progress.whole = True
        writer.commit(asdict(progress))
    return progress


def _grouped(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Runs of documents with about SENTENCES_AT_ONCE sentences."""
    part: list[Document] = []
    size = 0
    for document in documents:
        part.append(document)
        size += len(document.sentences) + 1
        if size >= SENTENCES_AT_ONCE:
            yield part
            part, size = [], 0
    if part:
        yield part


Encode = Callable[[list[Any]], list[list[int]]]  # sentences to the ids of their tokens


def _tokenised(tokenizer: Any) -> Encode:
    def encode(sentences: list[str]) -> list[list[int]]:
        return tokenizer(
            sentences,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]

    return encode


def _looked_up(source: Source, tokenizer: Any) -> Encode:
    vocab = tokenizer.get_vocab()

    def encode(sentences: list[list[str]]) -> list[list[int]]:
        try:
            return token_files.ids(sentences, vocab)
        except ValueError as error:
            raise ValueError(f"source {source.name}: {source.path}: {error}") from None

    return encode


def _encoded(documents: list[list[Any]], encode: Encode) -> tuple[pa.ListArray, pa.ListArray]:
    """The columns input_ids and sentence_ends of the documents."""
    sentences = [sentence for document in documents for sentence in document]
    pieces: list[list[int]] = []
    for begin in range(0, len(sentences), SENTENCES_AT_ONCE):
        pieces += encode(sentences[begin : begin + SENTENCES_AT_ONCE])
    ids = np.concatenate([np.array(piece, dtype=np.int32) for piece in pieces])
    ends = np.cumsum([len(piece) for piece in pieces])  # of the sentences, in ids
    last = np.cumsum([0, *map(len, documents)])  # the number of sentences before each document, and of all
    starts = np.concatenate([[0], ends])[last]  # of the documents, in ids
    own = ends - np.repeat(starts[:-1], np.diff(last))
    return _lists(ids, starts), _lists(own.astype(np.int32), last)


def _lists(values: np.ndarray, offsets: np.ndarray) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))


class Sentences:
    """The sentences of one document as lists of ids, taken from the disk when they are asked for."""

    __slots__ = ("_ends", "_ids")

    def __init__(self, ids: np.ndarray, ends: np.ndarray):
        self._ids, self._ends = ids, ends

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[list[int]]:
        return (self[number] for number in range(len(self)))

    @property
    def num_tokens(self) -> int:
        return len(self._ids)

    def __getitem__(self, number: int) -> list[int]:
        begin = self._ends[number - 1] if number else 0
        return self._ids[begin : self._ends[number]].tolist()


class Documents:
    """The documents of one or several folders, as one sequence."""

    def __init__(self, folders: Iterable[Path]):
        columns = [
            [(column.offsets.to_numpy(), column.values.to_numpy()) for column in batch.columns]
            for folder in folders
            for batch in shards.batches(folder)
        ]
        self._ids = [ids for ids, _ in columns]  # (offsets, values) of each record batch
        self._ends = [ends for _, ends in columns]
        self._first_document = np.cumsum([0, *(len(offsets) - 1 for offsets, _ in self._ids)]).tolist()
        self._first_sentence = np.cumsum([0, *(int(offsets[-1]) for offsets, _ in self._ends)]).tolist()

    def __len__(self) -> int:
        return self._first_document[-1]

    @property
    def num_sentences(self) -> int:
        return self._first_sentence[-1]

    def __getitem__(self, number: int) -> Sentences:
        batch = bisect_right(self._first_document, number) - 1
        row = number - self._first_document[batch]
        (ids_at, ids), (ends_at, ends) = self._ids[batch], self._ends[batch]
        return Sentences(ids[ids_at[row] : ids_at[row + 1]], ends[ends_at[row] : ends_at[row + 1]])

    def draw_other(self, number: int, rng: Random) -> Sentences:
        """Another document than `number`, each as probable as it has sentences: one draw, no list of them all."""
        batch = bisect_right(self._first_document, number) - 1
        row = number - self._first_document[batch]
        at = self._ends[batch][0]
        end = self._first_sentence[batch] + int(at[row + 1])
        drawn = rng.randrange(end, end + self.num_sentences - int(at[row + 1] - at[row])) % self.num_sentences
        batch = bisect_right(self._first_sentence, drawn) - 1
        row = int(np.searchsorted(self._ends[batch][0], drawn - self._first_sentence[batch], side="right")) - 1
        return self[self._first_document[batch] + row]


class Articles:
    """Documents without sentences: all of one is one piece of text, and of a book every BOOK_SENTENCES sentences are.

    This is EfficientBERT's corpus: a document gives one instance, and its B always comes from another one. `sizes`: the
    number of articles of each source, in their order.
    """

    def __init__(self, documents: Documents, sizes: Mapping[str, int], books: Collection[str]):
        """sizes: documents of each source, in their order; books: the sources that are cut."""
        self._documents, self.sizes = documents, dict.fromkeys(sizes, 0)
        spans, first = [], 0  # document, first sentence
        for name, size in sizes.items():
            part = np.arange(first, first + size)
            if name in books:
                counts = [-(-len(documents[int(number)]) // BOOK_SENTENCES) for number in part]
                begins = np.concatenate([np.arange(count) * BOOK_SENTENCES for count in counts])
                spans.append(np.stack([np.repeat(part, counts), begins], 1))
            else:
                spans.append(np.stack([part, np.full(size, WHOLE)], 1))
            self.sizes[name] = len(spans[-1])
            first += size
        self._spans = np.concatenate(spans)

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, number: int) -> list[list[int]]:
        document, begin = (int(value) for value in self._spans[number])
        sentences = self._documents[document]
        chosen = range(len(sentences)) if begin == WHOLE else range(begin, min(begin + BOOK_SENTENCES, len(sentences)))
        return [[piece for sentence in chosen for piece in sentences[sentence]]]

    def draw_other(self, number: int, rng: Random) -> list[list[int]]:
        """Another article than `number`, all equally probable."""
        drawn = rng.randrange(len(self) - 1)
        return self[drawn + (drawn >= number)]
