"""Books, one .txt each, as documents of sentences: wrapped lines are joined, a blank line ends a paragraph."""

import re
from collections.abc import Iterator
from pathlib import Path

from compresskit.data.corpora import Document, decoded
from compresskit.data.corpus import sentences

FRAME_START = re.compile(r"\*\*\* ?start of th(e|is) project gutenberg", re.IGNORECASE)  # what comes before is no book
FRAME_END = re.compile(r"\*\*\* ?end of th(e|is) project gutenberg|end of (the )?project gutenberg", re.IGNORECASE)


def read_books(folder: str | Path, start: int = 0) -> Iterator[Document]:
    """The books of a folder and of those below it, in the order of their names, from number `start` on.

    Raises FileNotFoundError where there is no folder or no .txt in it; ValueError, with file and line, for bytes that
    are not UTF-8.
    """
    end = 0
    for number, path in enumerate(book_files(folder)):
        end += path.stat().st_size
        if number >= start:
            yield Document(_sentences(path), end)


def book_files(folder: str | Path) -> list[Path]:
    """The .txt files of a folder and of those below it. Raises FileNotFoundError where there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected one with a .txt file per book")
    found = sorted(path for path in folder.rglob("*.txt") if path.is_file())
    if not found:
        raise FileNotFoundError(f"{folder}: no .txt file in it; expected one per book")
    return found


def _sentences(path: Path) -> list[str]:
    paragraphs: list[list[str]] = [[]]
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            text = decoded(line, path, number).strip()
            if FRAME_START.match(text):
                paragraphs = [[]]
            elif FRAME_END.match(text):
                break
            elif text:
                paragraphs[-1].append(text)
            elif paragraphs[-1]:
                paragraphs.append([])
    found = (sentence for lines in paragraphs for sentence in sentences.split(" ".join(lines)))
    return [sentence for sentence in found if sentences.ended(sentence) and not sentence.isupper()]
