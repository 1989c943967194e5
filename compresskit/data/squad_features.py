"""SQuAD features: windows over the contexts, the same as the official featuriser's, as flat arrays of many questions.

The official one goes through a context character by character for every question about it. Here a context is cut into
words once, a word into pieces once wherever it stands (by the offsets of `tokenizers`), and the windows of a thousand
questions are index arithmetic.

Letters: E questions, N windows, S tokens of a padded window.
"""

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tokenizers
from datasets import Dataset
from numpy.typing import NDArray

from compresskit.data.squad import SquadExample

SPACES = " \t\r\n\u202f"  # what separates words here; any other white space is part of one
WORD = re.compile(f"[^{SPACES}]+")
LINE = 1000  # words that the tokenizer is given at a time
PART = 1000  # questions at a time: bounds the memory beside the result
VERSION = 1  # of the columns below and their meaning: part of the key that features are kept by
FIRST_UNIQUE_ID = 1_000_000_000


def words(context: str) -> list[str]:
    """The words that `encode` counts."""
    return WORD.findall(context)


def encode(
    examples: Sequence[SquadExample],
    tokenizer: Any,
    max_seq_len: int = 384,
    doc_stride: int = 128,
    max_query_length: int = 64,
    training: bool = True,
) -> Dataset:
    """Windows [CLS] question [SEP] pieces of the context [SEP], a row each; window k begins at piece k · `doc_stride`.

    For the model: `input_ids`, `token_type_ids`, and with `training` `start_positions`, `end_positions` of the first
    answer; 0, 0 where it is not fully inside. For answers: `example` (position in `examples`), `context_start`
    (position of the first context piece) and, for each context piece, `words` (index of its word) and `max_context`
    (true in the window that shows it with most context on its poorer side).

    An answer is its words' pieces, shrunk to the first run of them that reads like the answer's own pieces. With
    `training`, questions are left out whose answer is not in the words at its place. The windows of EfficientBERT are
    these with a `max_query_length` smaller by 2: there it counts [CLS] and [SEP] too.
    """
    room = max_seq_len - max_query_length - 3
    if room < 1 or not 1 <= doc_stride <= room:
        raise ValueError(
            f"max_seq_len {max_seq_len} leaves {room} pieces of context beside a question of max_query_length "
            f"{max_query_length}; doc_stride {doc_stride} must lie between 1 and that"
        )
    cut = _Cutter(tokenizer)
    parts = []
    for begin in range(0, len(examples), PART):
        part = examples[begin : begin + PART]
        parts.append(_windows(part, begin, cut, max_seq_len, doc_stride, max_query_length, training))
    # a name of its own: the library's would be a digest of all rows, a sixth of the time for nothing
    return Dataset(pa.concat_tables(parts).combine_chunks(), fingerprint=uuid4().hex)


# --- texts as flat arrays


@dataclass(frozen=True)
class _Pieces:
    """Pieces of many texts, one text after the other; text t has those from begins[t] to begins[t + 1]."""

    ids: NDArray
    begins: NDArray
    words: NDArray  # the word of each piece, counted over all texts; a word may have no piece
    first_word: NDArray  # of each text, and how many words there are

    @property
    def lengths(self) -> NDArray:
        """Pieces of each text."""
        return np.diff(self.begins)

    def of(self, text: int) -> list[int]:
        """The pieces of one text."""
        return self.ids[self.begins[text] : self.begins[text + 1]].tolist()


class _Cutter:
    """Cuts texts into words and pieces. BERT's tokenizer finds pieces word by word; those of a word are remembered."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.numbers: defaultdict[str, int] = defaultdict(count().__next__)  # of the words met so far
        self.ids, self.begins = np.empty(0, dtype=np.int32), np.zeros(1, dtype=np.int64)  # their pieces

    def __call__(self, texts: Sequence[str]) -> _Pieces:
        split = [WORD.findall(text) for text in texts]
        first_word = _begins([len(found) for found in split])
        number = np.array(list(map(self.numbers.__getitem__, chain.from_iterable(split))), dtype=np.int64)
        self._learn(list(self.numbers)[len(self.begins) - 1 :])
        lengths = np.diff(self.begins)[number]
        ids = self.ids[_ranges(self.begins[number], lengths)]
        return _Pieces(ids, _begins(lengths)[first_word], np.repeat(np.arange(len(number)), lengths), first_word)

    def _learn(self, new: list[str]) -> None:
        if not new:
            return
        lines = [new[begin : begin + LINE] for begin in range(0, len(new), LINE)]
        found = self.tokenizer(
            [" ".join(line) for line in lines],
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        lengths = []
        for line, offsets in zip(lines, found["offset_mapping"], strict=True):
            begins = _begins([len(word) + 1 for word in line])
            word = np.searchsorted(begins, [begin for begin, _ in offsets], side="right") - 1
            lengths.append(np.bincount(word, minlength=len(line)))
        self.ids = np.concatenate([self.ids, *(np.array(ids, dtype=np.int32) for ids in found["input_ids"])])
        self.begins = np.concatenate([self.begins, self.begins[-1] + np.cumsum(np.concatenate(lengths))])


def _begins(lengths: Sequence[int] | NDArray) -> NDArray:
    """Where each of several runs begins when they stand one after the other, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _ranges(begins: NDArray, lengths: NDArray) -> NDArray:
    """begins[0], begins[0] + 1, … (lengths[0] of them), begins[1], …"""
    ends = np.cumsum(lengths)
    return np.repeat(begins - ends + lengths, lengths) + np.arange(ends[-1] if len(ends) else 0)


def flat_lists(features: Dataset, name: str) -> tuple[NDArray, NDArray]:
    """A column of lists as one array, and where each row begins in it, (N + 1,)."""
    column = features.select_columns(name).with_format("arrow")[:].column(name).combine_chunks()
    return _begins(pc.list_value_length(column).to_numpy()), column.flatten().to_numpy(zero_copy_only=False)


# --- windows


def _windows(
    examples: Sequence[SquadExample],
    first_example: int,
    cut: _Cutter,
    max_seq_len: int,
    doc_stride: int,
    max_query_length: int,
    training: bool,
) -> pa.Table:
    """The windows of a part of the questions; `first_example`: the position of its first one."""
    index = {context: c for c, context in enumerate(dict.fromkeys(example.context for example in examples))}
    contexts, questions = cut(list(index)), cut([example.question for example in examples])
    context = np.array([index[example.context] for example in examples])  # (E,) from here on
    pieces, asked = contexts.lengths[context], np.minimum(questions.lengths, max_query_length)
    room = max_seq_len - asked - 3
    number = np.where(pieces > 0, 1 - (np.minimum(room - pieces, 0) // doc_stride), 0)
    if training:
        first, last, found = _answers(examples, context, contexts, cut)
        number = np.where(found, number, 0)

    e = np.repeat(np.arange(len(examples)), number)  # (N,) from here on
    start = _ranges(np.zeros_like(number), number) * doc_stride
    size = np.minimum(room[e], pieces[e] - start)
    question, length = asked[e], asked[e] + size + 3
    begins = _begins(length)
    head = begins[:-1]
    shown = _ranges(contexts.begins[context[e]] + start, size)  # the context pieces of all windows

    ids = np.empty(begins[-1], dtype=np.int32)
    ids[head] = cut.tokenizer.cls_token_id
    ids[head + question + 1] = ids[begins[1:] - 1] = cut.tokenizer.sep_token_id
    ids[_ranges(head + 1, question)] = questions.ids[_ranges(questions.begins[e], question)]
    ids[_ranges(head + question + 2, size)] = contexts.ids[shown]
    types = np.zeros(begins[-1], dtype=np.int8)
    types[_ranges(head + question + 2, size + 1)] = 1

    columns = {"input_ids": _lists(begins, ids), "token_type_ids": _lists(begins, types)}
    if training:
        inside = (start <= first[e]) & (first[e] <= last[e]) & (last[e] < start + size)
        for name, position in (("start_positions", first), ("end_positions", last)):
            columns[name] = pa.array(np.where(inside, position[e] - start + question + 2, 0))
    own_words = contexts.words[shown] - np.repeat(contexts.first_word[context[e]], size)
    columns |= {
        "example": pa.array(e + first_example),
        "context_start": pa.array(question + 2),
        "words": _lists(_begins(size), own_words.astype(np.int32)),
        "max_context": _lists(_begins(size), _has_most_context(e, start, size)),
    }
    return pa.table(columns)


def _lists(begins: NDArray, values: NDArray) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(begins.astype(np.int32)), pa.array(values))


def _has_most_context(e: NDArray, start: NDArray, size: NDArray) -> NDArray:
    """For each piece of each window whether no other window of the question shows it with more context.

    That is min(pieces to its left, to its right) + 0.01 · window size; the first of equals has it.
    """
    best = np.ones(size.sum(), dtype=bool)
    several = np.flatnonzero(np.isin(e, e[start > 0]))  # windows of questions that have more than one
    if not len(several):
        return best
    e, start, n = e[several], start[several], size[several]
    left = _ranges(np.zeros_like(n), n)
    score = np.minimum(left, np.repeat(n - 1, n) - left) + np.repeat(0.01 * n, n)
    reach = np.zeros(e.max() + 1, dtype=np.int64)
    np.maximum.at(reach, e, start + n)
    piece = _ranges(_begins(reach)[e] + start, n)  # the same number for the same piece of the same question
    highest = np.full(reach.sum(), -np.inf)
    np.maximum.at(highest, piece, score)
    candidates = np.flatnonzero(score == highest[piece])
    _, first = np.unique(piece[candidates], return_index=True)
    chosen = np.zeros(len(score), dtype=bool)
    chosen[candidates[first]] = True
    best[_ranges(_begins(size)[several], n)] = chosen
    return best


# --- answers


def _answers(
    examples: Sequence[SquadExample], context: NDArray, contexts: _Pieces, cut: _Cutter
) -> tuple[NDArray, NDArray, NDArray]:
    """Of each question: first and last piece of its first answer, counted in its context (−1, −1 without an answer),
    and whether it is found in the words at its place (true without an answer).
    """
    first, last = np.full((2, len(examples)), -1)
    found = np.ones(len(examples), dtype=bool)
    asked = [e for e, example in enumerate(examples) if example.answers]
    answers = cut([examples[e].answers[0][0] for e in asked])
    known, begins, shown = "", np.empty(0), [""]
    for number, e in enumerate(asked):
        text, begin = examples[e].answers[0]
        if examples[e].context != known:
            known = examples[e].context
            matches = list(WORD.finditer(known))
            begins, shown = np.array([match.start() for match in matches]), [match.group() for match in matches]
        end = min(begin + len(text), len(known)) - 1
        word_from, word_to = (
            np.searchsorted(begins, [begin, end], side="right") - 1
        )  # a space belongs to the word before
        found[e] = word_from >= 0 and " ".join(text.split()) in " ".join(shown[word_from : word_to + 1])
        c = context[e]
        low = np.searchsorted(contexts.words, contexts.first_word[c] + word_from)
        high = np.searchsorted(contexts.words, contexts.first_word[c] + word_to, side="right")
        skipped, kept = _shrunk(contexts.ids[low:high].tolist(), answers.of(number))
        first[e] = low - contexts.begins[c] + skipped
        last[e] = first[e] + kept - 1
    return first, last, found


def _shrunk(pieces: list[int], answer: list[int]) -> tuple[int, int]:
    """Where in `pieces` the answer's own ones first stand, and how many there are; all of `pieces` where nowhere."""
    n = len(answer)
    if n:
        for begin in range(len(pieces) - n + 1):
            if pieces[begin : begin + n] == answer:
                return begin, n
    return 0, len(pieces)


# --- kept on disk


def encode_kept(
    folder: str | Path,
    examples: Sequence[SquadExample],
    tokenizer: Any,
    max_seq_len: int = 384,
    doc_stride: int = 128,
    max_query_length: int = 64,
    training: bool = True,
) -> Dataset:
    """`encode`, or what an earlier call with the same questions, tokenizer and settings left in `folder`.

    A file of features is named by a digest of all that they follow from, and appears whole or not at all.
    """
    settings = {
        "max_seq_len": max_seq_len,
        "doc_stride": doc_stride,
        "max_query_length": max_query_length,
        "training": training,
    }
    place = Path(folder) / f"{digest(examples, tokenizer, settings)}.arrow"
    if not place.is_file():
        table = encode(examples, tokenizer, **settings).data.table
        place.parent.mkdir(parents=True, exist_ok=True)
        unfinished = place.with_name(f".{place.stem}.{uuid4().hex}.part")
        try:
            with unfinished.open("wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table)
            os.replace(unfinished, place)
        finally:
            unfinished.unlink(missing_ok=True)
    return Dataset.from_file(str(place))


def digest(examples: Sequence[SquadExample], tokenizer: Any, settings: dict[str, Any]) -> str:
    """24 hex digits of a SHA-256 over the questions as they were read, the tokenizer whole, and the settings."""
    total = hashlib.sha256()
    head = {"version": VERSION, "tokenizers": tokenizers.__version__, **settings}
    head |= {"cls": tokenizer.cls_token_id, "sep": tokenizer.sep_token_id}
    total.update(json.dumps(head, sort_keys=True).encode())
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend |= {"truncation": None, "padding": None}  # a state that the last call left behind
    total.update(json.dumps(backend, sort_keys=True).encode())
    context = None
    for example in examples:
        if example.context != context:
            context = example.context
            total.update(b"\0context " + hashlib.sha256(context.encode()).digest())
        total.update(json.dumps([example.id, example.question, example.answers]).encode())
    return total.hexdigest()[:24]


# --- the official form


def padded_arrays(features: Dataset, tokenizer: Any, max_seq_len: int) -> dict[str, NDArray]:
    """The windows as (N, S) int64 arrays: input_ids, attention_mask, token_type_ids, and p_mask: 1 where no answer can
    be, that is at the question, padding and special tokens except [CLS], which says that there is none.
    """
    begins, ids = flat_lists(features, "input_ids")
    rows, lengths = len(features), np.diff(begins)
    place = _ranges(np.arange(rows) * max_seq_len, lengths)  # of each token, in an array laid flat
    names = ("input_ids", "attention_mask", "token_type_ids", "p_mask")
    fills = (tokenizer.pad_token_id, 0, 0, 1)
    arrays = {n: np.full(rows * max_seq_len, fill, dtype=np.int64) for n, fill in zip(names, fills, strict=True)}
    arrays["input_ids"][place] = ids
    arrays["attention_mask"][place] = 1
    types = flat_lists(features, "token_type_ids")[1]
    arrays["token_type_ids"][place] = types
    arrays["p_mask"][place] = (types == 0) | np.isin(ids, tokenizer.all_special_ids)
    arrays["p_mask"][::max_seq_len] = 0
    return {name: array.reshape(rows, max_seq_len) for name, array in arrays.items()}


def official_records(features: Dataset, examples: Sequence[SquadExample], tokenizer: Any) -> list[dict[str, Any]]:
    """The windows as the official featuriser names and counts them, a record each. Without targets these are 0."""
    numbers = {e: i for i, e in enumerate(dict.fromkeys(features["example"]))}  # questions left out are not counted
    return [
        _record(row, number, numbers[row["example"]], examples[row["example"]], tokenizer)
        for number, row in enumerate(features)
    ]


def _record(
    row: dict[str, Any], number: int, example_index: int, example: SquadExample, tokenizer: Any
) -> dict[str, Any]:
    positions = range(row["context_start"], row["context_start"] + len(row["words"]))
    start, end = row.get("start_positions", 0), row.get("end_positions", 0)
    return {
        "unique_id": FIRST_UNIQUE_ID + number,
        "example_index": example_index,
        "qas_id": example.id,
        "tokens": tokenizer.convert_ids_to_tokens(row["input_ids"]),
        "token_to_orig_map": dict(zip(positions, row["words"], strict=True)),
        "token_is_max_context": dict(zip(positions, row["max_context"], strict=True)),
        "paragraph_len": len(positions),
        "start_position": start,
        "end_position": end,
        "is_impossible": not start if "start_positions" in row else not example.answers,
        "cls_index": 0,
    }
