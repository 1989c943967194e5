"""A journal keeps every value that was written, whatever happened to the next."""

import pytest

from compresskit.stages.journal import Journal


def test_values_survive_and_are_found_once(tmp_path):
    first = Journal(tmp_path / "new" / "journal.jsonl")
    first["a"] = {"score": 0.1 + 0.2, "names": ["ü", "line\nbreak"]}
    assert first.once("a", lambda: pytest.fail("asked again"))["names"] == ["ü", "line\nbreak"]
    assert first.once("b", lambda: 3) == 3
    again = Journal(tmp_path / "new" / "journal.jsonl")
    assert again.values == {"a": {"score": 0.1 + 0.2, "names": ["ü", "line\nbreak"]}, "b": 3}
    assert "c" not in again


def test_a_line_cut_short_at_any_byte_costs_only_itself(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal["a"], before = 1, len('["a", 1]\n')
    journal["ü"] = "value"
    whole = path.read_bytes()
    for length in range(before, len(whole)):
        path.write_bytes(whole[:length])
        again = Journal(path)
        assert again.values == {"a": 1}
        again["ü"] = "value"
        assert path.read_bytes() == whole


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text('["a", 1]\nnonsense\n')
    with pytest.raises(ValueError, match=r"journal.jsonl line 2 is no entry of a journal .* delete the file"):
        Journal(path)
