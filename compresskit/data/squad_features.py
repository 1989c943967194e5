"""SQuAD features: windows over the contexts, the same as the official featuriser's, as flat arrays of many questions.

The official one goes through a context character by character for every question about it. Here a context is cut into
words and pieces once, by the offsets of `tokenizers`, and the windows of a thousand questions are index arithmetic.
Letters: E questions, N windows, S tokens of a padded window.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tokenizers
from datasets import Dataset, load_from_disk
from numpy.typing import NDArray

from compresskit.data.squad import SquadExample

SPACES = " \t\r\n\u202f"  # what separates words here; any other white space is part of one
WORD = re.compile(f"[^{SPACES}]+")
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
    parts = []
    for begin in range(0, len(examples), PART):
        part = examples[begin : begin + PART]
        questions = _pieces([example.question for example in part], tokenizer).cut(max_query_length)
        parts.append(_windows(part, begin, questions, tokenizer, max_seq_len, doc_stride, training))
    return Dataset(pa.concat_tables(parts).combine_chunks())


# --- texts as flat arrays


@dataclass(frozen=True)
class _Pieces:
    """Pieces of many texts, one text after the other; text t has those from begins[t] to begins[t + 1]."""

    ids: NDArray
    begins: NDArray
    characters: NDArray | None = None  # where each piece begins in its text

    @property
    def lengths(self) -> NDArray:
        return np.diff(self.begins)

    def of(self, text: int) -> list[int]:
        return self.ids[self.begins[text] : self.begins[text + 1]].tolist()

    def cut(self, length: int) -> "_Pieces":
        """At most so many pieces of each text."""
        kept = np.minimum(self.lengths, length)
        return _Pieces(self.ids[_ranges(self.begins[:-1], kept)], _begins(kept))


def _pieces(texts: list[str], tokenizer: Any, offsets: bool = False) -> _Pieces:
    found = tokenizer(
        texts,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_offsets_mapping=offsets,
        verbose=False,
    )
    begins = _begins([len(ids) for ids in found["input_ids"]])
    ids = np.fromiter((i for text in found["input_ids"] for i in text), np.int32, begins[-1])
    characters = None
    if offsets:
        characters = np.fromiter((begin for text in found["offset_mapping"] for begin, _ in text), np.int64, begins[-1])
    return _Pieces(ids, begins, characters)


@dataclass(frozen=True)
class _Contexts:
    """Contexts in words and pieces. Words are counted over all of them; context c has those from first_word[c] on."""

    pieces: _Pieces
    piece_words: NDArray  # the word of each piece
    character_words: NDArray  # that of each character; of a space the word before it
    first_character: NDArray
    first_word: NDArray  # (C + 1,)


def _contexts(texts: list[str], tokenizer: Any) -> _Contexts:
    pieces = _pieces(texts, tokenizer, offsets=True)
    first_character = _begins([len(text) for text in texts])
    codes = np.frombuffer("".join(texts).encode("utf-32-le"), dtype=np.uint32)
    space = np.isin(codes, [ord(space) for space in SPACES])
    begins_word = ~space
    begins_word[1:] &= space[:-1]
    heads = first_character[:-1][np.diff(first_character) > 0]
    begins_word[heads] = ~space[heads]
    count = np.cumsum(begins_word)
    character_words = count - 1
    assert pieces.characters is not None
    piece_words = character_words[np.repeat(first_character[:-1], pieces.lengths) + pieces.characters]
    first_word = np.concatenate([[0], count])[first_character]
    return _Contexts(pieces, piece_words, character_words, first_character, first_word)


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
    questions: _Pieces,
    tokenizer: Any,
    max_seq_len: int,
    doc_stride: int,
    training: bool,
) -> pa.Table:
    """The windows of a part of the questions; `first_example`: the position of its first one."""
    index = {context: c for c, context in enumerate(dict.fromkeys(example.context for example in examples))}
    contexts = _contexts(list(index), tokenizer)
    context = np.array([index[example.context] for example in examples])  # (E,)
    pieces = contexts.pieces.lengths[context]
    room = max_seq_len - questions.lengths - 3
    number = np.where(pieces > 0, 1 - (np.minimum(room - pieces, 0) // doc_stride), 0)
    if training:
        first, last, found = _answers(examples, context, contexts, tokenizer)
        number = np.where(found, number, 0)

    e = np.repeat(np.arange(len(examples)), number)  # (N,) from here on
    start = _ranges(np.zeros_like(number), number) * doc_stride
    size = np.minimum(room[e], pieces[e] - start)
    question, length = questions.lengths[e], questions.lengths[e] + size + 3
    begins = _begins(length)
    head = begins[:-1]
    shown = _ranges(contexts.pieces.begins[context[e]] + start, size)  # the context pieces of all windows

    ids = np.empty(begins[-1], dtype=np.int32)
    ids[head] = tokenizer.cls_token_id
    ids[head + question + 1] = ids[begins[1:] - 1] = tokenizer.sep_token_id
    ids[_ranges(head + 1, question)] = questions.ids[_ranges(questions.begins[e], question)]
    ids[_ranges(head + question + 2, size)] = contexts.pieces.ids[shown]
    types = np.zeros(begins[-1], dtype=np.int8)
    types[_ranges(head + question + 2, size + 1)] = 1

    columns = {"input_ids": _lists(begins, ids), "token_type_ids": _lists(begins, types)}
    if training:
        inside = (start <= first[e]) & (first[e] <= last[e]) & (last[e] < start + size)
        for name, position in (("start_positions", first), ("end_positions", last)):
            columns[name] = pa.array(np.where(inside, position[e] - start + question + 2, 0))
    own_words = contexts.piece_words[shown] - np.repeat(contexts.first_word[context[e]], size)
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
    examples: Sequence[SquadExample], context: NDArray, contexts: _Contexts, tokenizer: Any
) -> tuple[NDArray, NDArray, NDArray]:
    """Of each question: first and last piece of its first answer, counted in its context (−1, −1 without an answer),
    and whether it is found in the words at its place (true without an answer).
    """
    first, last = np.full((2, len(examples)), -1)
    found = np.ones(len(examples), dtype=bool)
    asked = np.flatnonzero([bool(example.answers) for example in examples])
    if not len(asked):
        return first, last, found
    texts = [examples[e].answers[0][0] for e in asked]
    begin = np.array([examples[e].answers[0][1] for e in asked])
    end = begin + np.array([len(text) for text in texts]) - 1
    c = context[asked]
    base, characters = contexts.first_character[c], np.diff(contexts.first_character)[c]
    known = (begin >= 0) & (begin < characters)
    word_from, word_to = (
        contexts.character_words[base + np.clip(position, 0, np.maximum(characters - 1, 0))]
        for position in (begin, end)
    )
    piece_from = np.searchsorted(contexts.piece_words, word_from) - contexts.pieces.begins[c]
    piece_to = np.searchsorted(contexts.piece_words, word_to, side="right") - 1 - contexts.pieces.begins[c]
    own = [words(text) for text in dict.fromkeys(examples[e].context for e in asked)]
    number = {k: i for i, k in enumerate(dict.fromkeys(c.tolist()))}
    answers = _pieces(texts, tokenizer)
    for i, e in enumerate(asked):
        w = contexts.first_word[c[i]]
        spoken = " ".join(own[number[c[i]]][word_from[i] - w : word_to[i] - w + 1]) if word_from[i] >= w else ""
        found[e] = known[i] and " ".join(texts[i].split()) in spoken
        offset = contexts.pieces.begins[c[i]]
        shown = contexts.pieces.ids[offset + piece_from[i] : offset + piece_to[i] + 1].tolist()
        skipped, kept = _shrunk(shown, answers.of(i))
        first[e], last[e] = piece_from[i] + skipped, piece_from[i] + skipped + kept - 1
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

    A folder of features is named by a digest of all that they follow from, and appears whole or not at all.
    """
    settings = {
        "max_seq_len": max_seq_len,
        "doc_stride": doc_stride,
        "max_query_length": max_query_length,
        "training": training,
    }
    place = Path(folder) / digest(examples, tokenizer, settings)
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
        try:
            encode(examples, tokenizer, **settings).save_to_disk(making)
            making.chmod(0o755)
            os.replace(making, place)
        except OSError:
            if not place.is_dir():  # else another process was faster, with the same content
                raise
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return load_from_disk(place)


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


def official_features(
    features: Dataset, examples: Sequence[SquadExample], tokenizer: Any, max_seq_len: int
) -> tuple[list[dict[str, Any]], dict[str, NDArray]]:
    """The windows as the official featuriser names and counts them: a record each, and padded arrays, (N, S) int64.

    Arrays: input_ids, attention_mask, token_type_ids, p_mask (1 where no answer can be: question, padding and special
    tokens except [CLS], which says that there is none). Without targets in `features` they are 0 in the records.
    """
    begins, ids = flat_lists(features, "input_ids")
    real = np.arange(max_seq_len) < np.diff(begins)[:, None]
    arrays = {
        "input_ids": np.full(real.shape, tokenizer.pad_token_id),
        "token_type_ids": np.zeros(real.shape, np.int64),
    }
    arrays["input_ids"][real] = ids
    arrays["token_type_ids"][real] = flat_lists(features, "token_type_ids")[1]
    arrays["attention_mask"] = real.astype(np.int64)
    context = np.arange(max_seq_len) >= np.array(features["context_start"])[:, None]
    answerable = real & context & ~np.isin(arrays["input_ids"], tokenizer.all_special_ids)
    answerable[:, 0] = True
    arrays["p_mask"] = (~answerable).astype(np.int64)
    numbers = {e: i for i, e in enumerate(dict.fromkeys(features["example"]))}  # questions left out are not counted
    records = [
        _record(row, number, numbers[row["example"]], examples[row["example"]], tokenizer)
        for number, row in enumerate(features)
    ]
    return records, arrays


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
