"""Word vectors from a text file, and the words whose vectors point the same way.

V words of the table, D numbers per word, W words asked about.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

MAX_WORDS = 100_000  # such files begin with the most frequent words; TinyBERT reads as many
ASKED_AT_ONCE = 64


@dataclass(frozen=True)
class WordVectors:
    """directions: (V, D) float64 rows of length 1; a word without a direction has a row of NaN and no neighbours."""

    words: list[str]
    directions: np.ndarray

    @cached_property
    def row(self) -> dict[str, int]:
        """Which row belongs to a word; of a word that stands there twice, the later one."""
        return {word: row for row, word in enumerate(self.words)}

    def neighbours(self, words: Iterable[str], number: int) -> dict[str, list[str]]:
        """The `number` words of largest cosine, largest first, for each of `words` that the table has."""
        known = [word for word in dict.fromkeys(words) if word in self.row]
        found = {}
        for begin in range(0, len(known), ASKED_AT_ONCE):
            asked = known[begin : begin + ASKED_AT_ONCE]
            rows = [self.row[word] for word in asked]
            cosines = self.directions[rows] @ self.directions.T  # (W, V)
            cosines[np.arange(len(rows)), rows] = -np.inf  # the word itself
            for word, cosine in zip(asked, cosines, strict=True):
                # numpy's default sort, as in the original: which of two equal words comes first is its choice
                nearest = np.argsort(-cosine)[:number]  # NaN comes last
                found[word] = [self.words[i] for i in nearest if np.isfinite(cosine[i])]
        return found


def read_word_vectors(path: str | Path, max_words: int = MAX_WORDS) -> WordVectors:
    """The first `max_words` lines of a file in GloVe's format: `word v1 … vD`, separated by blanks or tabs.

    A first line with two whole numbers (word2vec's header) is skipped, a word may contain blanks, `<unk>` gets no
    direction, and of a word's lines the last one counts. Raises FileNotFoundError or ValueError with file and line.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; embeddings names a text file of word vectors such as GloVe's")
    words: list[str] = []
    row: dict[str, int] = {}
    vectors = np.zeros((0, 0))
    for number, fields in _fields(path):
        if not words:
            if number == 1 and len(fields) == 2 and all(field.isdigit() for field in fields):
                continue
            vectors = np.zeros((max_words, len(fields) - 1))
        size = vectors.shape[1]
        if size == 0 or len(fields) <= size:
            raise ValueError(
                f"{path} line {number}: {len(fields)} fields where a word and {size or 'its'} numbers should stand; "
                "the format is that of GloVe's text files"
            )
        word = " ".join(fields[:-size])
        if word in row:
            vectors[row[word]] = 0
        if word != "<unk>":
            vectors[len(words)] = _numbers(fields[-size:], path, number)
        row[word] = len(words)
        words.append(word)
        if len(words) == max_words:
            break
    if not words:
        raise ValueError(f"{path} holds no word vectors; expected lines of a word and its numbers")
    vectors = vectors[: len(words)]
    with np.errstate(invalid="ignore"):  # 0/0 where there is no direction
        vectors /= np.sqrt((vectors**2).sum(1))[:, None]
    return WordVectors(words, vectors)


def _fields(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number, from 1, and fields of each line that is not blank."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                byte = line[error.start]
                raise ValueError(
                    f"{path} line {number}: byte {byte:#04x} is not UTF-8; word vectors are read from a text file"
                ) from None
            fields = [field for field in text.rstrip("\r\n").replace("\t", " ").split(" ") if field]
            if fields:
                yield number, fields


def _numbers(fields: list[str], path: Path, line: int) -> list[float]:
    try:
        numbers = [float(field) for field in fields]
    except ValueError:
        wrong = next(field for field in fields if not _is_number(field))
        raise ValueError(
            f"{path} line {line}: {wrong[:40]!r} is no number; expected a word and {len(fields)} numbers"
        ) from None
    if not np.isfinite(numbers).all():
        raise ValueError(f"{path} line {line}: a vector with infinite or undefined numbers; expected finite ones")
    return numbers


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
