"""AutoTinyBERT's own files of pre-training text: train_doc_tokens_ngrams_<i>.json, one {"tokens": […]} per line.

A line is a chunk of a document, without special tokens; nothing says which chunks a document had.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from compresskit.data.corpora import Document

FILES = 28
NAME = re.compile(r"train_doc_tokens_ngrams_(\d+)\.json")


def files(folder: Path) -> list[Path]:
    """The files of a folder in the order of their numbers; none where it has no such file."""
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def read_documents(path: str | Path, start: int = 0) -> Iterator[Document]:
    """The lines of a file, or of the files of a folder, from number `start` on, each as a document of one sentence.

    The sentence is a list of tokens; a line without any gives a document without sentences. Raises ValueError with file
    and line for what is no list of tokens.
    """
    path = Path(path)
    number = end = 0
    for file in files(path) if path.is_dir() else [path]:
        with file.open("rb") as lines:
            for line, content in enumerate(lines, 1):
                end += len(content)
                if number >= start:
                    tokens = _tokens(content, f"{file} line {line}")
                    yield Document([tokens] if tokens else [], end)
                number += 1


def _tokens(content: bytes, place: str) -> list[str]:
    try:
        tokens = json.loads(content)["tokens"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f'{place}: expected {{"tokens": […]}}, one JSON object per line ({error})') from None
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise ValueError(f"{place}: 'tokens' is no list of tokens; expected pieces of a vocabulary, as text")
    return tokens


def ids(sentences: Iterable[list[str]], vocab: dict[str, int]) -> list[list[int]]:
    """The ids of lists of tokens. Raises ValueError for one that is not in the vocabulary."""
    try:
        return [[vocab[token] for token in tokens] for tokens in sentences]
    except KeyError as error:
        raise ValueError(
            f"token {error.args[0]!r} is not in the vocabulary; it must be the one the files were made with"
        ) from None


def write(folder: Path, documents: Iterable[Iterable[list[int]]], count: int, tokenizer: Any, faithful: bool) -> None:
    """Write the chunks of documents, dealt round the files, into the new folder `folder`: all files or none.

    documents: each the chunks of one document. count: chunks in all; no more files are made than that. faithful: always
    28 files, of which a document's last chunk and the next chunk share one, as the original deals them.
    """
    unfinished = folder.with_name(folder.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    total = FILES if faithful else max(1, min(FILES, count))
    with ExitStack() as stack:
        names = (unfinished / f"train_doc_tokens_ngrams_{number}.json" for number in range(total))
        opened = [stack.enter_context(name.open("w", encoding="ascii", newline="\n")) for name in names]
        number = 0
        for chunks in documents:
            for chunk, following in pairwise(chain(chunks, [None])):
                tokens = tokenizer.convert_ids_to_tokens(chunk)
                opened[number % total].write(json.dumps({"tokens": tokens}) + "\n")
                number += not faithful or following is not None
    os.replace(unfinished, folder)
