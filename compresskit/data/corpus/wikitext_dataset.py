"""The raw text of the WikiText data sets (wiki.train.raw), and text laid out like it, as documents of sentences.

A line is a heading, ` = Title = ` for an article and ` = = Section = = ` below it, or a whole paragraph. Marks inside
words and numbers stand apart between @: `well @-@ known`, `1 @,@ 000`. Some files have <unk> for rare words.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from compresskit.data.corpora import Document, decoded
from compresskit.data.corpus import sentences

TITLE = re.compile(r"= (?!=)(.*[^=\s]) =")
HEADING = re.compile(r"= .+ =")
APART = re.compile(r" @([-,.])@ ")
BEGINNING = 1 << 12  # bytes in which the first title must stand


def is_wikitext(path: Path) -> bool:
    """Whether the first line that is not blank is an article's title."""
    with path.open("rb") as file:
        beginning = file.read(BEGINNING).decode("utf-8-sig", errors="replace").lstrip()
    return TITLE.fullmatch(beginning.partition("\n")[0].strip()) is not None


def read_documents(path: str | Path, start: int = 0) -> Iterator[Document]:
    """The articles from number `start` on, each as the sentences of its paragraphs, headings left out.

    Read as a stream. Raises ValueError, with the line, for bytes that are not UTF-8.
    """
    path = Path(path)
    found: list[str] | None = None  # sentences of the open article
    number = end = 0
    with path.open("rb") as file:
        for line, content in enumerate(file, 1):
            text = decoded(content, path, line).strip()
            if TITLE.fullmatch(text):
                if found is not None:
                    if number >= start:
                        yield Document(found, end)
                    number += 1
                found = []
            elif text and not HEADING.fullmatch(text) and found is not None and number >= start:
                found += sentences.split(APART.sub(r"\1", text).replace("<unk>", "[UNK]"))
            end += len(content)
    if found is not None and number >= start:
        yield Document(found, end)
