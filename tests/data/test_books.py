"""A folder of books: wrapped prose to sentences, one document per file."""

import pytest

from compresskit.data.corpus import books

GUTENBERG = """The Project Gutenberg EBook of A Book

*** START OF THIS PROJECT GUTENBERG EBOOK A BOOK ***

CHAPTER I.

It was a dark
night. Mr. Brown
slept.

   Then it rained!

*** END OF THIS PROJECT GUTENBERG EBOOK A BOOK ***
Licence text follows here.
"""


def folder(tmp_path, **files: str | bytes):
    for name, content in files.items():
        (tmp_path / f"{name}.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp_path


def test_each_file_is_a_document_of_sentences_without_headings_and_frame(tmp_path):
    place = folder(
        tmp_path, b="\ufeffOne line.\r\nGoes on\r\nhere.\r\n\r\nA heading\r\n\r\nThe end.", a=GUTENBERG, c=""
    )
    (tmp_path / "notes.md").write_text("No book.")
    found = list(books.read_books(place))
    assert [document.sentences for document in found] == [
        ["It was a dark night.", "Mr. Brown slept.", "Then it rained!"],
        ["One line.", "Goes on here.", "The end."],
        [],
    ]
    assert found[-1].end == sum(path.stat().st_size for path in tmp_path.glob("*.txt"))


def test_books_below_the_folder_are_read_and_earlier_ones_skipped(tmp_path):
    (tmp_path / "author").mkdir()
    folder(tmp_path / "author", x="It was x.")
    folder(tmp_path, b="It was b.")
    assert [d.sentences for d in books.read_books(tmp_path)] == [["It was x."], ["It was b."]]
    assert [d.sentences for d in books.read_books(tmp_path, 1)] == [["It was b."]]


def test_wrong_folders_and_bytes_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none: no such folder; expected one with a \.txt file per book"):
        list(books.read_books(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match=r"no \.txt file in it"):
        list(books.read_books(tmp_path))
    folder(tmp_path, latin=b"A caf\xe9.\n")
    with pytest.raises(ValueError, match=r"latin\.txt line 1: byte 0xe9 is not UTF-8; convert the file first"):
        list(books.read_books(tmp_path))
