"""The eleven files for the GLUE server: what is written, and what the check refuses."""

import zipfile

import numpy as np
import pytest

from compresskit.data import glue_submission
from compresskit.data.glue_submission import FILES

ROWS = {name: 3 + position for position, name in enumerate(FILES)}


def answers(name: str) -> list[str]:
    task = FILES[name]
    rng = np.random.default_rng(0)
    return glue_submission.predictions(name, rng.normal(size=(ROWS[name], task.num_labels)) + 2)


@pytest.fixture
def folder(tmp_path):
    for name in FILES:
        glue_submission.write(tmp_path, name, answers(name))
    return tmp_path


def test_the_files_are_the_eleven_of_the_server():
    assert set(FILES) == {
        "CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI-m", "MNLI-mm", "QNLI", "RTE", "WNLI", "AX"
    }  # fmt: skip
    assert glue_submission.files_of("mnli") == ["MNLI-m", "MNLI-mm", "AX"]
    assert glue_submission.files_of("sst2") == ["SST-2"]
    assert glue_submission.files_of("mnli_mm") == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        *((name, ["0", "1"]) for name in ("CoLA", "SST-2", "MRPC", "QQP", "WNLI")),
        *((name, ["contradiction", "entailment", "neutral"]) for name in ("MNLI-m", "MNLI-mm", "AX")),
        *((name, ["entailment", "not_entailment"]) for name in ("QNLI", "RTE")),
    ],
)
def test_a_prediction_is_the_word_of_the_highest_logit(name, words):
    assert glue_submission.predictions(name, np.eye(len(words))) == words


def test_grades_have_three_decimals_and_are_at_most_5():
    grades = np.array([[0.0], [2.71828], [5.3], [-0.0126], [4.9996]])
    assert glue_submission.predictions("STS-B", grades) == ["0.000", "2.718", "5.000", "-0.013", "5.000"]


@pytest.mark.parametrize(
    ("logits", "message"),
    [(np.zeros((2, 2)), r"shape \(2, 2\); expected \(2, 3\)"), (np.full((2, 3), np.nan), "NaN or infinity")],
)
def test_logits_that_cannot_be_answers_are_refused(logits, message):
    with pytest.raises(ValueError, match=message):
        glue_submission.predictions("AX", logits)


def test_a_file_is_a_header_and_numbered_lines(tmp_path):
    path = glue_submission.write(tmp_path, "RTE", ["entailment", "not_entailment"])
    assert path.read_bytes() == b"index\tprediction\n0\tentailment\n1\tnot_entailment\n"
    assert [file.name for file in tmp_path.iterdir()] == ["RTE.tsv"]


def test_what_was_written_passes_as_folder_and_as_zip(folder):
    glue_submission.check(folder, ROWS)
    path = glue_submission.write_zip(folder)
    first = path.read_bytes()
    glue_submission.check(path, ROWS)
    assert glue_submission.write_zip(folder).read_bytes() == first
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == [f"{name}.tsv" for name in FILES]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("RTE", lambda text: text.replace("index\tprediction", "id\tlabel"), "RTE.tsv line 1: header 'id"),
        ("RTE", lambda text: text.split("\n", 1)[1], "RTE.tsv line 1: header '0"),
        ("QNLI", lambda text: text.replace("\n2\t", "\n3\t", 1), "QNLI.tsv line 4: index '3', expected 2"),
        ("QNLI", lambda text: text.replace("\n0\t", "\n1\t", 1), "QNLI.tsv line 2: index '1', expected 0"),
        ("QNLI", lambda text: text.replace("\n2\t", "\n2 ", 1), "QNLI.tsv line 4: 1 columns, expected 2"),
        ("CoLA", lambda text: text.rsplit("\n", 2)[0] + "\n", "CoLA.tsv has 2 rows, the test file 3"),
        ("CoLA", lambda text: text + "3\t1\n", "CoLA.tsv has 4 rows, the test file 3"),
        ("CoLA", lambda text: text + "\n", "CoLA.tsv has 4 rows, the test file 3"),
        ("CoLA", lambda text: text.replace("\t0", "\tunacceptable").replace("\t1", "\tacceptable"), "of 0, 1"),
        ("SST-2", lambda text: text.replace("\t1", "\t1.0").replace("\t0", "\t0.0"), "is none of 0, 1"),
        ("AX", lambda text: text.replace("neutral", "Neutral").replace("entail", "Entail"), "is none of contradiction"),
        ("RTE", lambda text: text.replace("not_entailment", "neutral").replace("\tentailment", "\tneutral"), "none of"),
        ("STS-B", lambda text: text[: text.rindex("\t")] + "\t2.5\n", "'2.5' is no number with three decimals"),
        ("STS-B", lambda text: text[: text.rindex("\t")] + "\tnan\n", "'nan' is no number with three decimals"),
        ("STS-B", lambda text: text[: text.rindex("\t")] + "\t1e1\n", "'1e1' is no number with three decimals"),
        ("STS-B", lambda text: text[: text.rindex("\t")] + "\t5.001\n", "5.001 is no grade from 0 to 5"),
        ("STS-B", lambda text: text[: text.rindex("\t")] + "\t-9.000\n", "-9.000 is no grade from 0 to 5"),
    ],
)  # fmt: skip
def test_a_faulty_file_is_named_with_its_line(folder, name, change, message):
    path = folder / f"{name}.tsv"
    text = path.read_text()
    assert change(text) != text
    path.write_text(change(text))
    with pytest.raises(ValueError) as error:  # noqa: PT011
        glue_submission.check(folder, ROWS)
    assert message in str(error.value)
    assert str(error.value).count(".tsv") == 1  # the others are fine


def test_missing_and_surplus_files_are_all_named(folder):
    (folder / "AX.tsv").rename(folder / "AXX.tsv")
    (folder / "RTE.tsv").unlink()
    with pytest.raises(ValueError, match=r"AXX\.tsv is none of the eleven files; RTE\.tsv is missing; AX\.tsv is miss"):
        glue_submission.check(folder, ROWS)


def test_a_zip_with_its_files_in_a_folder_is_refused(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "deep.zip", "w") as archive:
        for name in FILES:
            archive.write(folder / f"{name}.tsv", f"submission/{name}.tsv")
    with pytest.raises(ValueError, match=r"submission/AX\.tsv is none of the eleven files"):
        glue_submission.check(tmp_path / "deep.zip", ROWS)


def test_windows_line_ends_are_tolerated_and_other_encodings_are_not(folder):
    path = folder / "MRPC.tsv"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    glue_submission.check(folder, ROWS)
    path.write_bytes(b"\xff\xfe" + path.read_bytes())
    with pytest.raises(ValueError, match=r"MRPC\.tsv is not UTF-8"):
        glue_submission.check(folder, ROWS)


def test_what_is_neither_folder_nor_zip_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder or zip"):
        glue_submission.check(tmp_path / "nothing", ROWS)
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(ValueError, match="is no readable zip"):
        glue_submission.check(tmp_path / "text.zip", ROWS)


def test_a_zip_that_is_cut_leaves_the_older_one(folder, monkeypatch):
    older = glue_submission.write_zip(folder).read_bytes()
    (folder / "WNLI.tsv").unlink()
    with pytest.raises(FileNotFoundError):
        glue_submission.write_zip(folder)
    assert (folder / glue_submission.ZIP).read_bytes() == older
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("place", ["AX", "diagnostic", "MNLI"])
def test_the_diagnostic_rows_are_found_where_downloads_put_them(tmp_path, place):
    (tmp_path / place).mkdir()
    (tmp_path / place / "diagnostic.tsv").write_text("index\tsentence1\tsentence2\n0\ta b\tc\n1\td\te f\n")
    rows = glue_submission.read_test("AX", tmp_path)
    assert rows["sentence1"][:] == ["a b", "d"]
    assert rows["sentence2"][:] == ["c", "e f"]


def test_a_broken_test_row_is_refused_because_all_later_numbers_would_be_wrong(tmp_path):
    (tmp_path / "QQP").mkdir()
    (tmp_path / "QQP/test.tsv").write_text("id\tquestion1\tquestion2\n0\ta\tb\n1\tc\n2\td\te\n")
    with pytest.raises(ValueError, match="row 1 of the test file of QQP is broken"):
        glue_submission.read_test("QQP", tmp_path)
    with pytest.raises(FileNotFoundError, match="CoLA"):
        glue_submission.read_test("CoLA", tmp_path)
