"""Plain text: documents as they stand in the file, rows that lose no text."""

import pytest

from compresskit.data import corpora


def file(tmp_path, content: str | bytes):
    path = tmp_path / "corpus.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_blank_lines_divide_documents(tmp_path):
    path = file(tmp_path, "\ufeffa b .\r\nc .\r\n\r\n \n\nd .\n")
    assert list(corpora.read_documents(path)) == [["a b .", "c ."], ["d ."]]


def test_rows_hold_consecutive_sentences_of_one_document(tmp_path, tokenizer):
    path = file(tmp_path, "a b\nc d e\nf\n\ng h\n")
    rows = [tokenizer.decode(row).replace(" ", "") for row in corpora.encode(path, tokenizer, 7)["input_ids"]]
    assert rows == ["[CLS]abcde[SEP]", "[CLS]f[SEP]", "[CLS]gh[SEP]"]


def test_a_long_sentence_continues_in_the_next_row(tmp_path, tokenizer):
    path = file(tmp_path, "a\nb c d e f g h i a b c\nd\n")
    rows = corpora.encode(path, tokenizer, 6)["input_ids"][:]
    assert [len(row) for row in rows] == [3, 6, 6, 6]
    words = [token for row in rows for token in tokenizer.convert_ids_to_tokens(row[1:-1])]
    assert words == ["a", "b", "c", "d", "e", "f", "g", "h", "i", "a", "b", "c", "d"]
    assert all((row[0], row[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id) for row in rows)


def test_chunks_change_nothing(tmp_path, tokenizer, monkeypatch):
    path = file(tmp_path, "".join(f"{'a b c d e f g'[: 2 * n % 13 + 1]}\n\n" * (n % 3) + "h i\n" for n in range(50)))
    whole = corpora.encode(path, tokenizer, 8)["input_ids"][:]
    monkeypatch.setattr(corpora, "CHUNK_DOCUMENTS", 2)
    assert corpora.encode(path, tokenizer, 8)["input_ids"][:] == whole


def test_wrong_files_are_named_with_their_line(tmp_path, tokenizer):
    with pytest.raises(FileNotFoundError, match="one sentence per line"):
        list(corpora.read_documents(tmp_path / "missing.txt"))
    with pytest.raises(ValueError, match="has no text"):
        corpora.encode(file(tmp_path, "\n \n"), tokenizer, 16)
    with pytest.raises(ValueError, match="line 3: byte 0xe9 is not UTF-8"):
        corpora.encode(file(tmp_path, b"a\n\ncaf\xe9\n"), tokenizer, 16)
    with pytest.raises(ValueError, match="max_seq_len 2 leaves no room"):
        corpora.encode(file(tmp_path, "a\n"), tokenizer, 2)
