"""Tables of word vectors: every way such files are written, and the nearest words."""

from __future__ import annotations

import numpy as np
import pytest

from compresskit.data.word_vectors import read_word_vectors

LINES = ["the 1 0 0", "cat 3 4 0", "dog 0.3 0.41 0", "stone 0 0 -2", "film -1 -1 0.5"]


@pytest.fixture
def write(tmp_path):
    def write_file(text: str | bytes):
        path = tmp_path / "vectors.txt"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write_file


def test_words_and_directions_are_read(write):
    table = read_word_vectors(write("\n".join(LINES) + "\n"))
    assert table.words == ["the", "cat", "dog", "stone", "film"]
    np.testing.assert_allclose(table.directions[1], [0.6, 0.8, 0])
    np.testing.assert_allclose(np.linalg.norm(table.directions, axis=1), 1)


@pytest.mark.parametrize(
    "text",
    [
        "5 3\n" + "\n".join(LINES),  # word2vec's header
        "\r\n".join(LINES) + "\r\n",
        "\t".join(LINES[0].split()) + "\n" + "\n".join(LINES[1:]),
        "\n".join(f" {line.replace(' ', '  ')}  " for line in LINES),
        "\n\n".join(LINES) + "\n\n",
    ],
    ids=["header", "crlf", "tabs", "blanks", "empty lines"],
)
def test_other_ways_to_write_the_same_table(write, text):
    expected = read_word_vectors(write("\n".join(LINES)))
    found = read_word_vectors(write(text))
    assert found.words == expected.words
    np.testing.assert_array_equal(found.directions, expected.directions)


def test_a_word_may_contain_blanks(write):
    table = read_word_vectors(write("the 1 0\n. . . 0 1\nat name@domain.com 1 1\n"))
    assert table.words == ["the", ". . .", "at name@domain.com"]


def test_only_the_first_lines_count(write):
    path = write("\n".join([*LINES, "broken"]))
    assert read_word_vectors(path, 5).words == read_word_vectors(write("\n".join(LINES))).words


def test_the_unknown_word_and_a_zero_vector_have_no_direction_and_are_nobodys_neighbour(write):
    table = read_word_vectors(write("\n".join(["<unk> 1 1 1", *LINES, "nothing 0 0 0"])))
    assert np.isnan(table.directions[[0, 6]]).all()
    assert table.neighbours(["cat", "<unk>", "nothing"], 9) == {
        "cat": ["dog", "the", "stone", "film"],
        "<unk>": [],
        "nothing": [],
    }


def test_of_a_word_that_stands_there_twice_the_later_line_counts(write):
    table = read_word_vectors(write("\n".join([*LINES, "cat 0 0 -1"])))
    assert table.neighbours(["cat"], 1) == {"cat": ["stone"]}
    assert "cat" not in table.neighbours(["dog"], 3)["dog"][:1]


def test_neighbours_are_those_of_largest_cosine_without_the_word_itself(write):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((300, 12)) * rng.uniform(0.1, 5, (300, 1))
    table = read_word_vectors(write("\n".join(f"w{i} {' '.join(map(str, v))}" for i, v in enumerate(vectors))))
    asked = [f"w{i}" for i in range(0, 300, 2)]
    found = table.neighbours([*asked, "unknown", "w0"], 7)
    assert list(found) == asked
    for word in asked:
        own = vectors[int(word[1:])]
        cosine = vectors @ own / np.linalg.norm(vectors, axis=1)
        cosine[int(word[1:])] = -np.inf
        assert found[word] == [f"w{i}" for i in np.argsort(-cosine)[:7]]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "holds no word vectors"),
        ("the\n", r"line 1: 1 fields where a word and its numbers should stand"),
        ("the 1 2\ncat 1\n", r"line 2: 2 fields where a word and 2 numbers should stand"),
        ("the 1 2\ncat 1 x\n", r"line 2: 'x' is no number; expected a word and 2 numbers"),
        ("the 1 2\ncat 1 nan\n", r"line 2: a vector with infinite or undefined numbers"),
        (b"the 1 2\nc\xff 1 2\n", r"line 2: byte 0xff is not UTF-8"),
        ('{"a": 1}\n', r"line 1: '1}' is no number"),
    ],
)
def test_a_broken_file_is_refused_with_its_line(write, text, complaint):
    with pytest.raises(ValueError, match=rf"vectors\.txt.*{complaint}"):
        read_word_vectors(write(text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.txt is no file; embeddings names a text file"):
        read_word_vectors(tmp_path / "none.txt")
