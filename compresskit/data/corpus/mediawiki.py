"""Articles of a MediaWiki dump (`pages-articles`, .xml.bz2 or .xml) as documents of sentences, read as a stream.

Memory is that of the longest page. The XML is read by expat with declarations of entities refused, so that a small file
cannot unfold into a large one.
"""

import bz2
import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple
from xml.parsers import expat

from compresskit.data.corpora import Document
from compresskit.data.corpus import sentences, wikitext

BLOCK_BYTES = 1 << 20  # of XML handed to the parser at a time
MAX_PAGE_CHARACTERS = 1 << 26  # MediaWiki itself stores no page above 2 MB
REDIRECT = re.compile(r"\s*#\s*redirect", re.IGNORECASE)
FILE, CATEGORY = "6", "14"  # namespaces whose links are not shown


class Page(NamedTuple):
    """An article: its title, its markup, and how many bytes of the file had been read when it ended."""

    title: str
    markup: str
    end: int


def read_documents(path: str | Path, start: int = 0) -> Iterator[Document]:
    """The articles from number `start` on, each as the sentences of its prose; an article without prose has none.

    Raises as read_pages does.
    """
    dump = _Dump(Path(path))
    for number, page in enumerate(dump.pages()):
        if number >= start:
            yield Document(article_sentences(page.markup, dump.hidden), page.end)


def read_pages(path: str | Path) -> Iterator[Page]:
    """The pages of namespace 0 that are no redirects, in the order of the dump.

    Raises FileNotFoundError; ValueError with the place where the file is damaged, cut short, or no MediaWiki dump.
    """
    return _Dump(Path(path)).pages()


def article_sentences(markup: str, hidden: frozenset[str] = wikitext.HIDDEN_NAMESPACES) -> list[str]:
    """The whole sentences of an article's prose that can be read as they stand."""
    found = (sentence for line in wikitext.paragraphs(markup, hidden) for sentence in sentences.split(line))
    return [sentence for sentence in found if sentences.whole(sentence) and wikitext.readable(sentence)]


class _Dump:
    """A parse in progress: which element is open, and what is known of the page around it."""

    def __init__(self, path: Path):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; expected a MediaWiki dump, pages-articles.xml.bz2")
        self.path = path
        self.hidden = wikitext.HIDDEN_NAMESPACES
        self._open: list[str] = []
        self._text: list[str] = []
        self._characters = 0
        self._namespace = ""  # number of the one that siteinfo is naming
        self._page: dict[str, str] = {}
        self._done: list[tuple[str, str]] = []
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters_of
        self._parser.StartDoctypeDeclHandler = self._refuse_doctype

    def pages(self) -> Iterator[Page]:
        with self.path.open("rb") as raw:
            compressed = raw.read(3) == b"BZh"
            raw.seek(0)
            with bz2.open(raw) if compressed else nullcontext(raw) as stream:
                final = False
                while not final:
                    block = self._read(stream, raw)
                    final = not block
                    self._parse(block, final)
                    for title, markup in self._done:
                        yield Page(title, markup, raw.tell())
                    self._done.clear()

    def _read(self, stream: IO[bytes], raw: BinaryIO) -> bytes:
        try:
            return stream.read(BLOCK_BYTES)
        except (OSError, EOFError) as error:
            raise ValueError(
                f"{self.path}: damaged or cut short near byte {raw.tell()} of the bz2 data ({error}); fetch it again"
            ) from None

    def _parse(self, block: bytes, final: bool) -> None:
        try:
            self._parser.Parse(block, final)
        except expat.ExpatError as error:
            raise ValueError(
                f"{self.path} line {error.lineno}: {expat.ErrorString(error.code)}; expected a whole MediaWiki dump, "
                ".xml.bz2 or .xml"
            ) from None

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if not self._open and name != "mediawiki":
            raise ValueError(f"{self.path}: the first element is <{name}>; a MediaWiki dump begins with <mediawiki>")
        self._open.append(name)
        self._text, self._characters = [], 0
        if name == "namespace":
            self._namespace = attributes.get("key", "")
        elif name == "page":
            self._page = {}
        elif name == "redirect":
            self._page["redirect"] = attributes.get("title", "")

    def _characters_of(self, text: str) -> None:
        if self._open[-1] in ("title", "ns", "model", "text", "namespace"):
            self._characters += len(text)
            if self._characters > MAX_PAGE_CHARACTERS:
                raise ValueError(
                    f"{self.path} line {self._parser.CurrentLineNumber}: <{self._open[-1]}> has more than "
                    f"{MAX_PAGE_CHARACTERS} characters; no wiki stores such a page"
                )
            self._text.append(text)

    def _end(self, name: str) -> None:
        self._open.pop()
        if name == "namespace" and self._namespace in (FILE, CATEGORY):
            self.hidden |= {"".join(self._text).strip().lower()}
        elif name in ("title", "ns", "model", "text"):
            self._page[name] = "".join(self._text)
        elif name == "page" and self._is_article():
            self._done.append((self._page.get("title", ""), self._page["text"]))
        self._text = []

    def _is_article(self) -> bool:
        page = self._page
        return (
            page.get("ns", "0").strip() == "0"
            and page.get("model", "wikitext") == "wikitext"
            and "redirect" not in page
            and bool(page.get("text"))
            and not REDIRECT.match(page["text"])
        )

    def _refuse_doctype(self, name: str, *rest: object) -> None:
        raise ValueError(f"{self.path}: it declares a document type {name!r}, which a MediaWiki dump never does")
