"""Plain text for pre-training: one sentence per line, a blank line between documents."""

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Dataset

CHUNK_DOCUMENTS = 500  # tokenised at a time
TOKEN_LIST = re.compile(rb'\{\s*"tokens"\s*:\s*\[')  # how a line of AutoTinyBERT's files begins


class Document(NamedTuple):
    """The sentences of one document, possibly none, and how many bytes of its source had been read when it ended.

    A sentence is text, or a list of tokens where the source has such.
    """

    sentences: list[Any]
    end: int


def read_documents(path: str | Path) -> Iterator[list[str]]:
    """The documents of a file, each the list of its sentences, read as a stream.

    Raises FileNotFoundError; ValueError with the line number for bytes that are not UTF-8, and for a file without text
    or with lists of tokens in its place.
    """
    return (document.sentences for document in read_sentence_file(path))


def read_sentence_file(path: str | Path, start: int = 0) -> Iterator[Document]:
    """The documents of a file from number `start` on, with how far they reach in it. Raises as read_documents does."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected text with one sentence per line")
    sentences: list[str] = []
    number = 0  # documents so far
    with path.open("rb") as file:
        for line, text in enumerate(file, 1):
            if line == 1 and TOKEN_LIST.match(text):
                raise ValueError(
                    f"{path} holds lists of tokens, not text; make a corpus of it with the stage corpus and "
                    "`packing: chunks`"
                )
            sentence = decoded(text, path, line).strip()
            if sentence:
                sentences.append(sentence)
            elif sentences:
                if number >= start:
                    yield Document(sentences, file.tell())
                sentences = []
                number += 1
        if sentences:
            if number >= start:
                yield Document(sentences, file.tell())
            number += 1
    if not number:
        raise ValueError(f"{path} has no text; expected one sentence per line, a blank line between documents")


def decoded(line: bytes, path: Path, number: int) -> str:
    """Line `number` of a file as text; ValueError, with its place, where it is not UTF-8."""
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise ValueError(f"{path} line {number}: byte {byte:#04x} is not UTF-8; convert the file first") from None


def encode(path: str | Path, tokenizer: Any, max_seq_len: int) -> Dataset:
    """`input_ids` of at most `max_seq_len` tokens: [CLS], as many consecutive sentences of a document as fit, [SEP].

    A sentence longer than a row is continued in the next one; no text is lost. Takes 4 bytes of memory per token and
    a few thousand sentences at a time beside them.
    """
    if max_seq_len < 3:
        raise ValueError(f"max_seq_len {max_seq_len} leaves no room for text; give at least 3")
    documents = read_documents(path)
    chunks = []
    while part := list(islice(documents, CHUNK_DOCUMENTS)):
        sentences = iter(
            tokenizer(
                [sentence for document in part for sentence in document],
                add_special_tokens=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )["input_ids"]
        )
        rows = [
            [tokenizer.cls_token_id, *row, tokenizer.sep_token_id]
            for document in part
            for row in pack(islice(sentences, len(document)), max_seq_len - 2)
        ]
        chunks.append(pa.array([np.array(row, dtype=np.int32) for row in rows], type=pa.list_(pa.int32())))
    return Dataset(pa.table({"input_ids": pa.chunked_array(chunks)}))


def pack(sentences: Iterable[list[int]], room: int) -> Iterator[list[int]]:
    """Rows of at most `room` tokens from consecutive sentences; a longer one is continued in the next row."""
    row: list[int] = []
    for sentence in sentences:
        if len(row) + len(sentence) > room and row:
            yield row
            row = []
        row = row + sentence
        if len(row) > room:
            cut = (len(row) - 1) // room * room
            for begin in range(0, cut, room):
                yield row[begin : begin + room]
            row = row[cut:]
    if row:
        yield row
