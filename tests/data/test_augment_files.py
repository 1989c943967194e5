"""train_aug.tsv of every task, what a stage may train on from it, and candidates that survive a kill."""

from __future__ import annotations

import json
from itertools import chain

import datasets
import pytest

from compresskit.data import glue
from compresskit.data.augment_files import CandidateFile, train_table, training_rows, write
from compresskit.data.glue_tasks import PAIR, TASKS

NUM_ROWS = 8


def field(task, n: int, column: int, label_column: int) -> str:
    if column == label_column:
        return f"{n % 5}.5" if task.is_regression else task.labels[n % len(task.labels)]
    return f'say "{n}" in column {column}' if column in task.text_columns else f"other {column} {n}"


def write_train(folder, task, newline: str = "\n", bom: bytes = b"") -> list[list[str]]:
    """An official train.tsv with quotes in its texts; returns its rows."""
    width = max(*task.text_columns, task.label_column) + 1 + (task.label_column < 0)
    label_column = task.label_column % width
    rows = [[field(task, n, column, label_column) for column in range(width)] for n in range(NUM_ROWS)]
    header = [f"other{column}" for column in range(width)]
    for column, name in zip((*task.text_columns, label_column), task.header, strict=True):
        header[column] = name
    lines = ["\t".join(row) for row in ([header] if task.has_header else []) + rows]
    (folder / task.folder).mkdir(exist_ok=True, parents=True)
    (folder / task.folder / "train.tsv").write_bytes(bom + newline.join([*lines, ""]).encode())
    return rows


def copies(table, number: int = 2):
    """Each row and copies of its texts with a letter behind them, for `write`."""
    for position, _, fields in table.rows:
        changed = []
        for column in table.text_columns:
            for letter in "abcdefgh"[: (position + number) % 4]:
                changed.append([*fields[:column], f"{fields[column]} {letter}", *fields[column + 1 :]])
        yield position, [fields, *changed]


@pytest.fixture
def augmented(tmp_path):
    """For a task: the train rows, and a folder that holds their copies."""

    def make(name: str, **how):
        task = TASKS[name]
        write_train(tmp_path / "data", task)
        table = train_table(task, tmp_path / "data")
        write(tmp_path / "made" / task.folder, table.header, copies(table), {"seed": 1}, **how)
        return glue.read(name, tmp_path / "data", "train"), tmp_path / "made"

    return make


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("faithful", [False, True])
def test_copies_of_every_task_are_read_as_its_training_rows(augmented, name, faithful):
    train, made = augmented(name, faithful=faithful)
    rows = glue.read(name, made, "train_aug")
    assert rows.features == train.features
    card = json.loads((made / TASKS[name].folder / "train_aug.json").read_text())
    assert card["rows"] == len(rows) == sum(card["rows_from"])
    expected = []
    for row in train:
        texts = [column for column in PAIR if column in row]
        variants = [{}] + [
            {column: f"{row[column]} {letter}"} for column in texts for letter in "abcdefgh"[: (row["idx"] + 2) % 4]
        ]
        expected += [[changed.get(column, row[column]) for column in texts] + [row["label"]] for changed in variants]
    quotes = '"' if faithful else ""  # the original's quoting comes back as text
    found = [[row[column] for column in row if column != "idx"] for row in rows]
    assert [[value.replace('""', '"') if faithful and isinstance(value, str) else value for value in row]
            for row in found] == [
        [f"{quotes}{value}{quotes}" if isinstance(value, str) else value for value in row] for row in expected
    ]  # fmt: skip


def test_columns_that_are_no_text_stay_as_they_are(augmented, tmp_path):
    augmented("mnli")
    lines = [line.split("\t") for line in (tmp_path / "made/MNLI/train_aug.tsv").read_text().splitlines()]
    source = [line.split("\t") for line in (tmp_path / "data/MNLI/train.tsv").read_text().splitlines()]
    assert lines[0] == source[0]
    others = {tuple(row[:8]) for row in lines[1:]}
    assert others == {tuple(row[:8]) for row in source[1:]}


def test_a_byte_order_mark_stays_only_where_the_original_leaves_it(tmp_path):
    write_train(tmp_path, TASKS["mrpc"], bom=b"\xef\xbb\xbf")
    assert train_table(TASKS["mrpc"], tmp_path).header[0] == "Quality"
    assert train_table(TASKS["mrpc"], tmp_path, faithful=True).header[0] == "\ufeffQuality"


@pytest.mark.parametrize("name", ["cola", "stsb", "mnli", "qqp"])
def test_rows_of_a_repository_are_put_into_the_official_layout(tmp_path, name):
    task = TASKS[name]
    write_train(tmp_path / "data", task)
    train = glue.read(name, tmp_path / "data", "train")
    names = dict(zip(PAIR, task.hub_columns, strict=False))
    table = train.rename_columns({ours: theirs for ours, theirs in names.items() if ours in train.column_names})
    texts = {theirs: datasets.Value("string") for theirs in task.hub_columns}
    label = datasets.Value("float32") if task.is_regression else datasets.ClassLabel(names=list(task.labels))
    table = table.cast(datasets.Features({**texts, "label": label, "idx": datasets.Value("int64")}))
    repository = tmp_path / "repository"
    repository.mkdir()
    table.map(lambda row: {task.hub_columns[0]: row[task.hub_columns[0]].replace(" in ", "\tin\n")}).to_parquet(
        repository / "train-00000-of-00001.parquet"
    )
    found = train_table(task, repository)
    write(tmp_path / "made", found.header, copies(found), {})
    chosen = training_rows(name, tmp_path / "made", glue.read(name, repository, "train"))
    assert chosen["label"][:] == glue.read(name, tmp_path / "made", "train_aug")["label"][:]
    assert set(train["sentence1"]) <= set(chosen["sentence1"])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["sst2", "mrpc"])
def test_copies_of_rows_that_choose_a_checkpoint_are_left_out_whichever_they_are(augmented, name, seed):
    train, made = augmented(name)
    learned, selection = glue.selection_split(train, seed)
    chosen = training_rows(name, made, learned)
    assert chosen.features == train.features
    assert set(chosen["idx"]) == set(learned["idx"])
    texts = set(chain.from_iterable(chosen[column] for column in PAIR if column in chosen.column_names))
    assert not [text for text in texts for row in selection if text.startswith(row["sentence1"])]
    rows = glue.read(name, made, "train_aug")
    assert len(chosen) + len(training_rows(name, made, selection)) == len(rows)


def test_a_faithful_file_serves_too(augmented):
    train, made = augmented("mrpc", faithful=True)
    assert len(training_rows("mrpc", made, train.select([3]))) == 1 + 2 * ((3 + 2) % 4)


def test_copies_of_other_data_are_refused(augmented):
    train, made = augmented("sst2")
    other = train.map(lambda row: {"sentence1": row["sentence1"].replace("5", "five")})
    assert len(training_rows("sst2", made, other.select(range(5)))) > 5
    with pytest.raises(ValueError, match=r"sentence1 of train row 5 is .*\"5\".* there and .*five.* in the data"):
        training_rows("sst2", made, other)
    flipped = train.map(lambda row: {"label": 1 - row["label"]})
    with pytest.raises(ValueError, match="label of train row 0 is '0' there and '1' in the data"):
        training_rows("sst2", made, flipped)


def test_rows_that_were_not_augmented_are_missed(augmented, tmp_path):
    train, _ = augmented("sst2")
    table = train_table(TASKS["sst2"], tmp_path / "data")
    some = [pair for pair in copies(table) if pair[0] in (0, 1, 4)]
    write(tmp_path / "few", table.header, some, {})
    assert len(training_rows("sst2", tmp_path / "few", train.select([4]))) == 1 + (4 + 2) % 4
    for missed in ([1, 2], [7]):
        with pytest.raises(ValueError, match=r"1 of \d training rows are not in it; run augment with the same"):
            training_rows("sst2", tmp_path / "few", train.select(missed))


def test_a_file_of_unknown_origin_is_refused(augmented, tmp_path):
    train, made = augmented("sst2")
    (made / "SST-2/train_aug.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"train_aug.tsv without train_aug.json"):
        training_rows("sst2", made, train)
    with pytest.raises(FileNotFoundError, match=r"no SST-2/train_aug.tsv there; make it with the stage augment"):
        training_rows("sst2", tmp_path / "data", train)


def test_file_and_card_of_different_runs_are_refused(augmented, tmp_path):
    train, made = augmented("sst2")
    with (made / "SST-2/train_aug.tsv").open("a") as file:
        file.write("one more\t1\n")
    with pytest.raises(ValueError, match=r"tells of \d+ rows, train_aug.tsv has \d+"):
        training_rows("sst2", made, train)


def test_a_write_that_fails_leaves_what_was_there(augmented, tmp_path):
    _, made = augmented("sst2")
    before = {path.name: path.read_bytes() for path in (made / "SST-2").iterdir()}

    def broken():
        yield 0, [["a", "1"]]
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk is full"):
        write(made / "SST-2", ["sentence", "label"], broken(), {})
    assert {path.name: path.read_bytes() for path in (made / "SST-2").iterdir()} == before


def test_the_split_is_only_read_where_the_stage_wrote_it(tmp_path):
    write_train(tmp_path, TASKS["sst2"])
    with pytest.raises(FileNotFoundError, match=r"SST-2/train_aug\.tsv: no such file"):
        glue.read("sst2", tmp_path, "train_aug")
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository/README.md").write_text("a data set")
    with pytest.raises(FileNotFoundError, match="name a folder that the stage augment made"):
        glue.read("sst2", tmp_path / "repository", "train_aug")


FOUND = [{0: ["a", "é"], 11: ["b"]}, {}, {2: ["[SEP]", 'quote "']}]


def test_candidates_come_back_as_they_were(tmp_path):
    kept = CandidateFile(tmp_path / "work/found.jsonl", {"model": "m"})
    kept.append(FOUND[:2])
    kept.append(FOUND[2:])
    assert [kept[n] for n in range(len(kept))] == FOUND
    kept.close()
    again = CandidateFile(tmp_path / "work/found.jsonl", {"model": "m"})
    assert len(again) == 3
    assert [again[n] for n in (2, 0, 1)] == [FOUND[2], FOUND[0], FOUND[1]]
    again.append(FOUND[:1])
    assert again[3] == FOUND[0]


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_line_cut_off_by_a_kill_is_dropped_and_written_again(tmp_path, cut):
    path = tmp_path / "found.jsonl"
    CandidateFile(path, {}).append(FOUND)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    kept = CandidateFile(path, {})
    assert len(kept) < 3
    kept.append(FOUND[len(kept) :])
    assert [kept[n] for n in range(3)] == FOUND
    assert path.read_bytes() == whole


def test_candidates_of_other_inputs_are_thrown_away(tmp_path, caplog):
    path = tmp_path / "found.jsonl"
    CandidateFile(path, {"model": "old"}).append(FOUND)
    kept = CandidateFile(path, {"model": "new"})
    assert len(kept) == 0
    assert "made from other inputs" in caplog.text
    kept.append(FOUND)
    assert len(CandidateFile(path, {"model": "new"})) == 3


def test_the_card_tells_what_the_run_was(augmented):
    _, made = augmented("cola")
    assert json.loads((made / "CoLA/train_aug.json").read_text())["seed"] == 1
