"""TinyBERT's data augmentation: copies of a text in which words are replaced by others that fit in their place.

A word of one piece gets candidates from a masked LM that sees the text twice, with the word masked and as it is:
[CLS] masked [SEP] original [SEP]. A word of several pieces gets the nearest words of a table of word vectors; without
a masked LM every word does. Stop words, and whatever is not letters from a to z, stay.

`faithful` repeats the original code: it takes every text as lower-cased, lets special tokens, punctuation and unused
entries of the vocabulary be candidates, and drops pieces that begin with ## only after the best were chosen.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

from tokenizers import normalizers, pre_tokenizers
from transformers import BertTokenizer

from compresskit.data.word_vectors import WordVectors

COPIES = {  # attempts per text
    "cola": 30, "sst2": 20, "mrpc": 30, "stsb": 30, "qqp": 10, "mnli": 10, "mnli_mm": 10, "qnli": 20, "rte": 30,
    "wnli": 30,  # not in the original; as the other small ones
}  # fmt: skip
NUM_CANDIDATES = 15
PROBABILITY = 0.4

STOP_WORDS = tuple(
    """
    i me my myself we our ours ourselves you you're you've you'll you'd your yours yourself yourselves he him his
    himself she she's her hers herself it it's its itself they them their theirs themselves this that that'll these
    those am is are was were be been being have has had having do does did doing a an the and but if or because as until
    while of at by for with about against between into through during before after above below to from up down in out on
    off over under again further then once here there all any both each few more most other some such no nor not only
    own same so than too very s t can will just don don't should should've now d ll m o re ve y ain aren aren't couldn
    couldn't didn didn't doesn doesn't hadn hadn't hasn hasn't haven haven't isn isn't ma mightn mightn't mustn mustn't
    needn needn't shan shan't shouldn shouldn't wasn wasn't weren weren't won won't wouldn wouldn't 's 're
    """.split()  # noqa: SIM905
)
_STOP = frozenset(STOP_WORDS)
_LETTERS = re.compile(r"[A-Za-z]+")
_SPECIAL = re.compile(r"(?<!\S)(\[(?:UNK|SEP|PAD|CLS|MASK)\])(?!\S)")  # kept whole where it stands alone

Row = tuple[list[int], int, int]  # input ids, the position from which token types are 1, the masked position
Fill = Callable[[Sequence[Row]], Sequence[Sequence[int]]]  # vocabulary ids for each row, best first
Candidates = dict[int, list[str]]  # by the word's position in the text, in order


class Draws(Protocol):
    """The part of random.Random that is used."""

    def choice(self, seq: Sequence[str], /) -> str:
        """One of them."""

    def random(self) -> float:
        """A number from 0 to 1."""


@dataclass(frozen=True)
class Prepared:
    """A text's words, and how each replaceable one gets its candidates, by its position."""

    words: list[str]
    masked: dict[int, Row] = field(default_factory=dict)
    distant: list[int] = field(default_factory=list)  # nearest in the table
    out_of_reach: list[int] = field(default_factory=list)  # beyond the model's positions

    @property
    def num_tokens(self) -> int:
        """What the masked LM has to read."""
        return sum(len(row[0]) for row in self.masked.values())


class Augmenter:
    """Finds candidates. tokenizer: of the masked LM, None: no masked LM; vectors None: no table.

    max_length: the masked LM's positions; longer input is cut, and words beyond it are left as they are.
    Raises ValueError where there is neither.
    """

    def __init__(
        self,
        tokenizer: Any | None,
        vectors: WordVectors | None,
        num_candidates: int = NUM_CANDIDATES,
        *,
        max_length: int = 512,
        faithful: bool = False,
    ):
        if tokenizer is None and vectors is None:
            raise ValueError("neither a masked LM nor word vectors; augmentation needs one of them")
        self.vectors, self.num_candidates = vectors, num_candidates
        self.max_length, self.faithful = max_length, faithful
        self.has_model = tokenizer is not None
        self._normalizer: Any = normalizers.BertNormalizer()
        self._splitter: Any = pre_tokenizers.BertPreTokenizer()
        if tokenizer is None:
            return
        if faithful:
            tokenizer = BertTokenizer(vocab=tokenizer.get_vocab())
        self._normalizer = tokenizer.backend_tokenizer.normalizer
        self.pieces = {id: piece for piece, id in tokenizer.get_vocab().items()}
        self._cls, self._sep, self._mask = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id
        model = tokenizer.backend_tokenizer.model  # the vocabulary ids of one word:
        self.ids = lru_cache(maxsize=100_000)(lambda word: tuple(piece.id for piece in model.tokenize(word)))

    def allowed(self) -> set[int]:
        """The vocabulary ids that the masked LM may choose: whole words without punctuation or symbols, which leaves
        out ##pieces, [SEP] and [unused0] alike; all where faithful.
        """
        if self.faithful:
            return set(self.pieces)
        return {id for id, piece in self.pieces.items() if all(unicodedata.category(c)[0] not in "PS" for c in piece)}

    def words(self, text: str) -> list[str]:
        """BERT's basic tokens: split at blanks and punctuation, lower-cased if the tokenizer is."""
        words = []
        for part in _SPECIAL.split(text):
            if _SPECIAL.fullmatch(part):
                words.append(part)
            else:
                split = self._splitter.pre_tokenize_str(self._normalizer.normalize_str(part))
                words += [word for word, _ in split]
        return words

    def is_masked(self, word: str) -> bool:
        """Whether the masked LM is asked about this word, rather than the table."""
        return self.has_model and len(self.ids(word)) == 1

    def prepare(self, text: str) -> Prepared:
        """Which words can be replaced, and what the masked LM has to be asked."""
        words = self.words(text)
        replaceable = [i for i, w in enumerate(words) if _LETTERS.fullmatch(w) and w.lower() not in _STOP]
        if not self.has_model:
            return Prepared(words, distant=replaceable)
        pieces = [self.ids(word) for word in words]
        original = [id for word in pieces for id in word]
        prepared = Prepared(words)
        starts, start = [], 1
        for word in pieces:
            starts.append(start)
            start += len(word)
        for i in replaceable:
            at = starts[i]
            if len(pieces[i]) > 1:
                prepared.distant.append(i)
            elif at >= self.max_length:
                prepared.out_of_reach.append(i)
            else:
                ids = [self._cls, *original, self._sep, *original, self._sep][: self.max_length]
                ids[at] = self._mask
                prepared.masked[i] = (ids, len(original) + 2, at)
        return prepared

    def candidates(self, prepared: Sequence[Prepared], fill: Fill | None) -> list[Candidates]:
        """The candidates of every replaceable word, at least the word itself. fill: the masked LM, asked once."""
        rows = [row for one in prepared for row in one.masked.values()]
        filled = iter(fill(rows) if rows and fill else ())
        asked = {self._entry(one.words[i]) for one in prepared for i in one.distant}
        near = self.vectors.neighbours(sorted(asked), self.num_candidates) if self.vectors else {}
        found = []
        for one in prepared:
            lists: Candidates = {i: self._fillers(next(filled)) for i in one.masked}
            for i in one.distant:
                words = near.get(self._entry(one.words[i]), [])
                lists[i] = [word.title() for word in words] if one.words[i].istitle() else words
            lists |= {i: [] for i in one.out_of_reach}
            found.append({i: lists[i] or [one.words[i]] for i in sorted(lists)})
        return found

    def _fillers(self, ids: Iterable[int]) -> list[str]:
        return [piece for piece in (self.pieces[id] for id in ids) if not piece.startswith("##")]

    def _entry(self, word: str) -> str:
        """How the table writes a word."""
        return word if self.vectors is None or word in self.vectors.row else word.lower()


def groups(texts: Iterable[str], augmenter: Augmenter, tokens: int, most: int = 2000) -> Iterator[list[Prepared]]:
    """Texts in order, together until the masked LM has about `tokens` tokens to read, or there are `most`."""
    group: list[Prepared] = []
    waiting = 0
    for text in texts:
        group.append(augmenter.prepare(text))
        waiting += group[-1].num_tokens
        if waiting >= tokens or len(group) == most:
            yield group
            group, waiting = [], 0
    if group:
        yield group


def draw(
    text: str, words: Sequence[str], candidates: Candidates, copies: int, probability: float, rng: Draws
) -> list[str]:
    """The text and up to `copies` different copies: in each, every word that has candidates is drawn one, uniformly,
    and takes it with `probability`.
    """
    texts = [text]
    for _ in range(copies):
        copy = list(words)
        for i, proposed in candidates.items():
            candidate = rng.choice(proposed)
            if rng.random() < probability:
                copy[i] = candidate
        joined = " ".join(copy)
        if joined not in texts:
            texts.append(joined)
    return texts


def row_copies(
    fields: Sequence[str], columns: Sequence[int], texts: Sequence[Sequence[str]], faithful: bool
) -> Iterator[list[str]]:
    """A row and its copies, each with one text replaced; texts: for each of `columns` what `draw` gave.

    faithful: as the original, which leaves the last copy of the first text in place while it replaces the second, and
    gives the row itself once per column.
    """
    row = list(fields)
    if not faithful:
        yield list(row)
    for column, copies in zip(columns, texts, strict=True):
        for text in copies if faithful else copies[1:]:
            row[column] = text
            yield list(row)
        if not faithful:
            row[column] = fields[column]
