"""Rows of the nine tasks from TSV files and from data set repositories, and every way these can be wrong."""

import json
import logging

import datasets
import pytest

from compresskit.data import glue

# one official row per task, with every column, and what it has to become
ROWS = {
    "cola": ("gj04\t0\t*\tThe plot dull .", ["The plot dull ."], 0),
    "sst2": ("a grand plot \t1", ["a grand plot "], 1),
    "mrpc": ("1\t11\t12\tHe said \" no\tHe said ' no", ['He said " no', "He said ' no"], 1),
    "stsb": ("3\tg\tf\t2012\t0\tn\tn\tA cat .\tA dog .\t2.600", ["A cat .", "A dog ."], 2.6),
    "qqp": ("9\t1\t2\tWhy ?\tWhy not ?\t0", ["Why ?", "Why not ?"], 0),
    "mnli": ("0\tp\tq\tg\ta\tb\tc\td\tIt is .\tIt is not .\tneutral\tcontradiction", ["It is .", "It is not ."], 0),
    "mnli_mm": ("0\tp\tq\tg\ta\tb\tc\td\tIt is .\tIt was .\tx\ty\tneutral\tneutral", ["It is .", "It was ."], 2),
    "qnli": ("0\tWho ?\tHe did .\tnot_entailment", ["Who ?", "He did ."], 1),
    "rte": ("0\tIt is .\tIt is .\tentailment", ["It is .", "It is ."], 0),
    "wnli": ("0\tIt is .\tHe is .\t1", ["It is .", "He is ."], 1),
}


def header(task: glue.GlueTask, width: int) -> str:
    names = [f"other{column}" for column in range(width)]
    for column, name in zip((*task.text_columns, task.label_column), task.header, strict=True):
        names[column] = name
    return "\t".join(names) + "\n"


def write(folder, task_name: str, lines: list[str], name: str = "train.tsv") -> str:
    task = glue.TASKS[task_name]
    path = folder / task.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    head = header(task, lines[0].count("\t") + 1) if task.has_header else ""
    path.write_text(head + "\n".join(lines) + "\n", encoding="utf-8", newline="")
    return str(path)


@pytest.mark.parametrize("task", ROWS)
def test_the_official_columns_are_read(task, tmp_path):
    line, texts, label = ROWS[task]
    write(tmp_path, task, [line, line], glue.TASKS[task].dev_file)
    rows = glue.read(task, tmp_path, "dev")
    assert [rows[1][name] for name in ("sentence1", "sentence2")[: len(texts)]] == texts
    assert rows[1]["label"] == pytest.approx(label)
    assert rows[1]["idx"] == 1
    assert rows.column_names == [*("sentence1", "sentence2")[: len(texts)], "label", "idx"]


def test_the_tasks_folder_itself_serves_as_well_as_the_folder_above(tmp_path):
    write(tmp_path, "sst2", [ROWS["sst2"][0]])
    assert glue.read("sst2", tmp_path / "SST-2", "train")[:] == glue.read("sst2", str(tmp_path), "train")[:]


def test_byte_order_mark_crlf_and_quotes_change_nothing(tmp_path):
    plain = write(tmp_path, "mrpc", [ROWS["mrpc"][0], '0\t1\t2\t"a\tb"'])
    expected = glue.read("mrpc", tmp_path, "train")[:]
    assert expected["sentence1"][1] == '"a'
    with open(plain, "rb") as file:
        content = file.read()
    with open(plain, "wb") as file:
        file.write(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))
    assert glue.read("mrpc", tmp_path, "train")[:] == expected


def test_line_separators_inside_a_text_do_not_end_the_row(tmp_path):
    write(tmp_path, "sst2", ["a\u2028b\x0bc\x85d\t1"])
    assert glue.read("sst2", tmp_path, "train")["sentence1"][0] == "a\u2028b\x0bc\x85d"


def test_test_files_have_other_columns_and_no_labels(tmp_path):
    (tmp_path / "CoLA").mkdir()
    (tmp_path / "CoLA" / "test.tsv").write_text("index\tsentence\n0\tBill slept .\n", encoding="utf-8")
    rows = glue.read("cola", tmp_path, "test")
    assert rows[0] == {"sentence1": "Bill slept .", "label": -1, "idx": 0}


def test_short_rows_of_qqp_are_skipped_and_counted(tmp_path, caplog):
    write(tmp_path, "qqp", [ROWS["qqp"][0], "10\t1\t2\tbroken", ROWS["qqp"][0]])
    with caplog.at_level(logging.WARNING):
        assert len(glue.read("qqp", tmp_path, "train")) == 2
    assert "skipped 1 short rows (lines 3)" in caplog.text


@pytest.mark.parametrize(
    ("task", "content", "message"),
    [
        ("sst2", b"", "train.tsv is empty"),
        ("sst2", b"sentence\tlabel\n", "has a header but no rows"),
        ("sst2", b"a\t1\nb\t0\n", "the header is missing; line 1 should name the columns 'sentence', 'label'"),
        ("sst2", b"sentence\tstars\na\t1\n", "missing column 'label'; the header has 'sentence', 'stars'"),
        ("rte", b"index\tsentence1\tlabel\n0\ta\tentailment\n", "missing column 'sentence2'"),
        ("sst2", b"sentence\tlabel\na\t1\nb\tx\n", "train.tsv line 3: label 'x' is none of 0, 1"),
        ("sst2", b"sentence\tlabel\na\t1\n\nb\t1\n", "line 3: 1 columns, expected 2 separated by tabs"),
        ("sst2", b"sentence\tlabel\na\tb\t1\n", "line 2: 3 columns, expected 2"),
        ("sst2", b"sentence\tlabel\na\t1\nb \xff\t1\n", "line 3: byte 0xff is not UTF-8"),
        ("stsb", b"sentence1\tsentence2\tscore\na\tb\thigh\n", "line 2: graded label 'high' is not a number"),
        ("stsb", b"sentence1\tsentence2\tscore\na\tb\tnan\n", "line 2: graded label 'nan' is not a number"),
        ("cola", b"gj04\t1\n", "line 1: 2 columns where 4 are needed"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(task, content, message, tmp_path):
    path = tmp_path / glue.TASKS[task].folder / "train.tsv"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        glue.read(task, tmp_path, "train")
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_task_proposes_the_nearest():
    with pytest.raises(ValueError, match="unknown GLUE task 'sst-2'; did you mean 'sst2'"):
        glue.read("sst-2", "anywhere", "train")


def test_a_directory_without_the_task_says_what_was_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither SST-2/train.tsv nor train.tsv is there"):
        glue.read("sst2", tmp_path, "train")
    with pytest.raises(FileNotFoundError, match="no such directory; give one that holds SST-2"):
        glue.read("sst2", tmp_path / "missing", "train")
    write(tmp_path, "sst2", [ROWS["sst2"][0]])
    with pytest.raises(FileNotFoundError, match=r"dev.tsv: no such file"):
        glue.read("sst2", tmp_path, "dev")


# --- data set repositories, here local ones: the same code reads the hub's


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Writes a repository with one configuration; `classes` None leaves labels as they are."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def make(config: str, split: str, rows: list[dict], classes: list[str] | None = None) -> str:
        folder = tmp_path / "repository"
        (folder / "data").mkdir(parents=True)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "data" / f"{split}.jsonl").write_text(lines, encoding="utf-8")
        card = (
            f"---\nconfigs:\n- config_name: {config}\n  data_files:\n  - split: {split}\n    path: data/{split}.jsonl\n"
        )
        if classes:
            card += f"dataset_info:\n- config_name: {config}\n  features:\n"
            for name in rows[0]:
                if name != "label":
                    card += f"  - name: {name}\n    dtype: string\n"
            card += "  - name: label\n    dtype:\n      class_label:\n        names:\n"
            card += "".join(f"          '{position}': {name}\n" for position, name in enumerate(classes))
        (folder / "README.md").write_text(card + "---\n", encoding="utf-8")
        return str(folder)

    return make


def test_classes_of_a_repository_are_mapped_by_name(repository):
    rows = [{"premise": "p", "hypothesis": "h", "label": label} for label in (0, 1, 2)]
    source = repository("mnli", "validation_matched", rows, ["entailment", "neutral", "contradiction"])
    read = glue.read("mnli", source, "dev")
    assert [glue.TASKS["mnli"].labels[label] for label in read["label"]] == ["entailment", "neutral", "contradiction"]
    assert read[0] == {"sentence1": "p", "sentence2": "h", "label": 1, "idx": 0}


def test_other_names_for_0_and_1_are_known(repository):
    source = repository("default", "train", [{"sentence": "a", "label": 1}], ["negative", "positive"])
    assert glue.read("sst2", source, "train")["label"][0] == 1


def test_numbers_without_names_are_taken_only_where_ours_are_numbers(repository):
    source = repository("sst2", "train", [{"sentence": "a", "label": 0}, {"sentence": "b", "label": 1}])
    assert glue.read("sst2", source, "train")["label"][:] == [0, 1]


def test_bare_numbers_for_named_classes_are_refused(repository):
    source = repository("mnli", "train", [{"premise": "p", "hypothesis": "h", "label": 0}])
    with pytest.raises(ValueError, match="row 0: label '0' is none of contradiction, entailment, neutral"):
        glue.read("mnli", source, "train")


def test_graded_labels_of_a_repository(repository):
    source = repository("stsb", "train", [{"sentence1": "a", "sentence2": "b", "label": 3.5}])
    assert glue.read("stsb", source, "train")["label"][0] == pytest.approx(3.5)


def test_foreign_classes_or_columns_are_refused(repository):
    source = repository("sst2", "train", [{"sentence": "a", "label": 0}], ["good", "bad"])
    with pytest.raises(ValueError, match="classes 'good', 'bad' are not those of sst2"):
        glue.read("sst2", source, "train")
    with pytest.raises(ValueError, match="missing column; expected 'sentence1', 'sentence2', 'label'"):
        glue.read("rte", source, "train")


def test_a_missing_split_is_one_sentence(repository):
    source = repository("sst2", "train", [{"sentence": "a", "label": 0}])
    with pytest.raises(FileNotFoundError, match="split 'validation'") as error:
        glue.read("sst2", source, "dev")
    assert "\n" not in str(error.value)


def test_a_folder_with_other_tasks_is_never_read_as_a_data_set_repository(tmp_path):
    """`datasets` would take the file of another task for the one that is missing."""
    (tmp_path / "README.md").touch()
    (tmp_path / "SST-2").mkdir()
    (tmp_path / "SST-2/test.tsv").write_text("index\tsentence\n0\ta film\n")
    with pytest.raises(FileNotFoundError, match=r"neither CoLA/train\.tsv nor train\.tsv is there"):
        glue.read("cola", tmp_path, "test")
