"""SQuAD's official featuriser, written anew as it is: question by question, word by word, character by character.

The peer of `squad_features.encode`. A context is cut again for every question about it; pieces come from the plain
Python tokeniser of that time; maps are dictionaries from position to word. What it does not repeat is what only costs
time there: `encode_plus` and its overflow are a plain cut of lists, and the scores of the most context are not
recomputed for windows that do not hold the piece.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from compresskit.data.squad import SquadExample

LONGEST_WORD = 100  # characters; a longer one is [UNK]


class WordPiece:
    """BERT's lower-casing tokeniser in plain Python."""

    def __init__(self, vocabulary: Mapping[str, int]):
        self.ids = dict(vocabulary)
        self.special = {self.ids[name] for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")}

    def tokenize(self, text: str) -> list[str]:
        """The pieces of a text."""
        return [piece for word in basic(text) for piece in self.pieces(word)]

    def pieces(self, word: str) -> list[str]:
        """The longest pieces of a word from left to right, or [UNK]."""
        if len(word) > LONGEST_WORD:
            return ["[UNK]"]
        found, begin = [], 0
        while begin < len(word):
            end = len(word)
            while begin < end:
                piece = ("##" if begin else "") + word[begin:end]
                if piece in self.ids:
                    break
                end -= 1
            if begin == end:
                return ["[UNK]"]
            found.append(piece)
            begin = end
        return found


def basic(text: str) -> list[str]:
    """Clean text, lower-case words without accents; each punctuation mark and Chinese character is one."""
    cleaned = []
    for character in text:
        code = ord(character)
        if code == 0 or code == 0xFFFD or is_control(character):
            continue
        cleaned.append(" " if is_space(character) else f" {character} " if is_chinese(code) else character)
    words: list[str] = []
    for word in "".join(cleaned).split():
        plain = unicodedata.normalize("NFD", word.lower())
        parts: list[list[str]] = []
        begin_new = True
        for character in plain:
            if unicodedata.category(character) == "Mn":
                continue
            if is_punctuation(character):
                parts.append([character])
                begin_new = True
                continue
            if begin_new:
                parts.append([])
            begin_new = False
            parts[-1].append(character)
        words += ["".join(part) for part in parts]
    return words


def is_space(character: str) -> bool:
    """Space, tab, line ends, or a Unicode space."""
    return character in " \t\n\r" or unicodedata.category(character) == "Zs"


def is_control(character: str) -> bool:
    """Any control character but tab and line ends."""
    return character not in "\t\n\r" and unicodedata.category(character).startswith("C")


def is_punctuation(character: str) -> bool:
    """All ASCII that is no letter, digit or space, and Unicode's punctuation."""
    code = ord(character)
    ascii_mark = 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
    return ascii_mark or unicodedata.category(character).startswith("P")


def is_chinese(code: int) -> bool:
    """In a block of CJK ideographs."""
    return (
        0x4E00 <= code <= 0x9FFF
        or 0x3400 <= code <= 0x4DBF
        or 0x20000 <= code <= 0x2A6DF
        or 0x2A700 <= code <= 0x2B73F
        or 0x2B740 <= code <= 0x2B81F
        or 0x2B820 <= code <= 0x2CEAF
        or 0xF900 <= code <= 0xFAFF
        or 0x2F800 <= code <= 0x2FA1F
    )


def words_of(context: str) -> tuple[list[str], list[int]]:
    """The words of a context, and for each of its characters the word it belongs to."""
    words: list[str] = []
    word_of: list[int] = []
    after_space = True
    for character in context:
        if character in " \t\r\n\u202f":
            after_space = True
        else:
            if after_space:
                words.append(character)
            else:
                words[-1] += character
            after_space = False
        word_of.append(len(words) - 1)
    return words, word_of


def features(
    examples: Sequence[SquadExample],
    tokenizer: WordPiece,
    max_seq_len: int = 384,
    doc_stride: int = 128,
    max_query_length: int = 64,
    training: bool = True,
) -> list[dict[str, Any]]:
    """A record per window, with the names of the official featuriser; `padded` makes its lists of equal length."""
    found: list[dict[str, Any]] = []
    index = 0
    for example in examples:
        windows = example_features(example, tokenizer, max_seq_len, doc_stride, max_query_length, training)
        for window in windows:
            window |= {"example_index": index, "unique_id": 1_000_000_000 + len(found)}
            found.append(window)
        index += bool(windows)
    return found


def example_features(
    example: SquadExample,
    tokenizer: WordPiece,
    max_seq_len: int,
    doc_stride: int,
    max_query_length: int,
    training: bool,
) -> list[dict[str, Any]]:
    """The windows of one question; none where its answer is not found in training."""
    words, word_of = words_of(example.context)
    impossible = not example.answers
    if training and not impossible:
        answer, begin = example.answers[0]
        start_word, end_word = word_of[begin], word_of[min(begin + len(answer) - 1, len(word_of) - 1)]
        if " ".join(answer.split()) not in " ".join(words[start_word : end_word + 1]):
            return []

    piece_word: list[int] = []
    word_piece: list[int] = []
    pieces: list[str] = []
    for number, word in enumerate(words):
        word_piece.append(len(pieces))
        for piece in tokenizer.tokenize(word):
            piece_word.append(number)
            pieces.append(piece)

    if training and not impossible:
        first = word_piece[start_word]
        last = word_piece[end_word + 1] - 1 if end_word < len(words) - 1 else len(pieces) - 1
        first, last = shrunk(pieces, first, last, " ".join(tokenizer.tokenize(answer)))

    question = tokenizer.tokenize(example.question)[:max_query_length]
    spans: list[tuple[int, int]] = []
    while len(spans) * doc_stride < len(pieces):
        start = len(spans) * doc_stride
        spans.append((start, min(len(pieces) - start, max_seq_len - len(question) - 3)))
        if start + spans[-1][1] == len(pieces):
            break

    windows = []
    for number, (start, length) in enumerate(spans):
        shift = len(question) + 2
        tokens = ["[CLS]", *question, "[SEP]", *pieces[start : start + length], "[SEP]"]
        ids = [tokenizer.ids[token] for token in tokens]
        start_position = end_position = 0
        outside = impossible
        if training and not impossible:
            outside = not (start <= first and last < start + length)
            if not outside:
                start_position, end_position = first - start + shift, last - start + shift
        windows.append(
            {
                "qas_id": example.id,
                "tokens": tokens,
                "token_to_orig_map": {shift + i: piece_word[start + i] for i in range(length)},
                "token_is_max_context": {shift + i: has_most_context(spans, number, start + i) for i in range(length)},
                "paragraph_len": length,
                "start_position": start_position,
                "end_position": end_position,
                "is_impossible": outside,
                "cls_index": 0,
                "input_ids": ids,
                "token_type_ids": [0] * shift + [1] * (length + 1),
            }
        )
    return windows


def padded(window: dict[str, Any], tokenizer: WordPiece, max_seq_len: int) -> dict[str, list[int]]:
    """The lists that a model is given, with the mask of what is no answer."""
    ids, types = window["input_ids"], window["token_type_ids"]
    padding = max_seq_len - len(ids)
    p_mask = [1] * max_seq_len
    for place, token in enumerate(ids):
        if place == 0 or (types[place] and token not in tokenizer.special):
            p_mask[place] = 0
    return {
        "input_ids": ids + [tokenizer.ids["[PAD]"]] * padding,
        "attention_mask": [1] * len(ids) + [0] * padding,
        "token_type_ids": types + [0] * padding,
        "p_mask": p_mask,
    }


def shrunk(pieces: list[str], first: int, last: int, answer: str) -> tuple[int, int]:
    """The first part of a span of pieces that reads like the answer's; the span where none does."""
    for start in range(first, last + 1):
        for end in range(last, start - 1, -1):
            if " ".join(pieces[start : end + 1]) == answer:
                return start, end
    return first, last


def has_most_context(spans: list[tuple[int, int]], number: int, piece: int) -> bool:
    """Whether a window shows a piece with more context on its poorer side than every other."""
    best_score, best = None, None
    for index, (start, length) in enumerate(spans):
        if not start <= piece < start + length:
            continue
        score = min(piece - start, start + length - 1 - piece) + 0.01 * length
        if best_score is None or score > best_score:
            best_score, best = score, index
    return number == best
