"""`compresskit predict`: test rows in, files to hand in out, from made files and untrained heads."""

from __future__ import annotations

import json
import zipfile

import pytest
import torch
from transformers import BertConfig, BertModel
from typer.testing import CliRunner

from compresskit.cli import app
from compresskit.data import glue, glue_submission
from compresskit.data.vocabulary import train_wordpiece
from compresskit.models import CompactBertForQuestionAnswering, CompactBertForSequenceClassification, checkpoints
from compresskit.stages import predict
from compresskit.stages.tasks import task_named

WORDS = "the red old new box door key lamp map ring sun wall".split()  # noqa: SIM905
TASKS = list(predict.SUBMITTED)


def sentence(row: int) -> str:
    return " ".join(WORDS[(row * k) % len(WORDS)] for k in range(1, 3 + row % 7))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The eleven test files in the official layout, and a dev file of SQuAD 1.1."""
    folder = tmp_path_factory.mktemp("data")
    for number, (name, task) in enumerate(glue_submission.FILES.items()):
        texts = task.header[:-1]
        lines = ["\t".join(("index", *texts))]
        lines += ["\t".join((str(i), *(sentence(i + j) for j in range(len(texts))))) for i in range(70 + number)]
        place = folder / ("diagnostic" if name == "AX" else task.folder)
        place.mkdir(exist_ok=True)
        (place / task.test_file).write_text("\n".join(lines) + "\n")
    entries = [
        {"id": f"q{i}", "question": "the key ?", "answers": [{"text": "box", "answer_start": 0}]} for i in (1, 2)
    ]
    content = {"version": "1.1", "data": [{"paragraphs": [{"context": "box door key lamp map", "qas": entries}]}]}
    (folder / "dev-v1.1.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model with a head for each task: rough, but not constant."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = train_wordpiece([" ".join(WORDS)] * 5, 100)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=16, max_position_embeddings=64, initializer_range=1.0)  # fmt: skip
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder / "bare")
    tokenizer.save_pretrained(folder / "bare")
    for name in TASKS:
        torch.manual_seed(len(name))
        model = checkpoints.load(
            CompactBertForSequenceClassification, folder / "bare", num_labels=glue.task_named(name).num_labels
        )
        if name == "stsb":
            model.classifier.weight.data /= 10  # grades near those of the task
        checkpoints.save(model, folder / name, tokenizer)
    checkpoints.save(checkpoints.load(CompactBertForQuestionAnswering, folder / "bare"), folder / "squad1", tokenizer)
    return {name: str(folder / name) for name in (*TASKS, "squad1", "bare")}


def all_tasks(models) -> dict[str, str]:
    return {name: models[name] for name in TASKS}


def test_models_for_all_nine_tasks_give_the_eleven_files_and_their_zip(store, data, models, tmp_path, capsys):
    out = tmp_path / "out"
    predict.predict(all_tasks(models), str(data), out, max_seq_len=32)
    said = capsys.readouterr().out
    assert "submission.zip: checked and ready to hand in" in said
    with zipfile.ZipFile(out / "submission.zip") as archive:
        assert sorted(archive.namelist()) == sorted(f"{name}.tsv" for name in glue_submission.FILES)
        for number, name in enumerate(glue_submission.FILES):
            text = archive.read(f"{name}.tsv").decode()
            assert text == (out / f"{name}.tsv").read_text()
            assert text.count("\n") == 71 + number
    predict.check(out, str(data))
    predict.check(out / "submission.zip", str(data))


def test_each_line_is_the_models_answer_to_the_row_of_that_number(store, data, models, tmp_path):
    predict.predict({"mnli": models["mnli"]}, str(data), tmp_path, max_seq_len=32)
    model, tokenizer = task_named("mnli").open_model(models["mnli"])
    for file in ("MNLI-m", "MNLI-mm", "AX"):
        rows = glue_submission.read_test(file, data)
        encoded = glue.encode(rows, tokenizer, 32)
        lines = (tmp_path / f"{file}.tsv").read_text().splitlines()[1:]
        assert len({line.split("\t")[1] for line in lines}) > 1
        for row, line in enumerate(lines):  # one at a time: no padding, no order
            given = {name: torch.tensor([encoded[row][name]]) for name in ("input_ids", "token_type_ids")}
            best = model(**given).logits.argmax(-1).item()
            assert line == f"{row}\t{glue.task_named('mnli').labels[best]}"


def test_some_tasks_are_written_but_not_zipped_and_the_missing_files_are_named(store, data, models, tmp_path, capsys):
    (tmp_path / "submission.zip").write_text("of older files")
    predict.predict({"sst2": models["sst2"], "stsb": models["stsb"]}, str(data), tmp_path, max_seq_len=32)
    assert sorted(path.name for path in tmp_path.glob("*.*")) == ["SST-2.tsv", "STS-B.tsv", "predictions.json"]
    said = capsys.readouterr().out
    assert "no submission.zip: CoLA, MRPC, QQP, MNLI-m, MNLI-mm, AX, QNLI, RTE, WNLI are missing; give --model" in said
    with pytest.raises(ValueError, match=r"CoLA\.tsv is missing; MRPC\.tsv is missing"):
        predict.check(tmp_path, str(data))


def test_a_second_call_keeps_what_was_made_of_the_same_model_and_rows(
    store, data, models, tmp_path, capsys, monkeypatch
):
    chosen = {"sst2": models["sst2"], "rte": models["rte"]}
    predict.predict(chosen, str(data), tmp_path, max_seq_len=32)
    (tmp_path / "RTE.tsv").write_text("index\tprediction\n0\tsomething else\n")
    capsys.readouterr()
    predict.predict(chosen, str(data), tmp_path, max_seq_len=32)
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert first.endswith("SST-2.tsv: 71 rows of " + models["sst2"] + ", as it was")
    assert second.endswith("RTE.tsv: 78 rows of " + models["rte"])
    assert "something else" not in (tmp_path / "RTE.tsv").read_text()
    predict.predict({"sst2": models["cola"]}, str(data), tmp_path, max_seq_len=32)  # another model
    assert "as it was" not in capsys.readouterr().out


def test_squad_answers_are_the_official_files(store, data, models, tmp_path):
    predict.predict({"squad1": models["squad1"]}, str(data), tmp_path, max_seq_len=32, doc_stride=8, max_query_length=8)
    names = ["nbest_predictions.json", "predictions.json", "scores.json"]
    assert sorted(path.name for path in (tmp_path / "squad1").iterdir()) == names
    n_best, answers, scores = (json.loads((tmp_path / "squad1" / name).read_text()) for name in names)
    assert list(answers) == ["q1", "q2"]
    assert all(text and text in "box door key lamp map" for text in answers.values())
    assert answers == {name: candidates[0]["text"] for name, candidates in n_best.items()}
    assert sum(candidate["probability"] for candidate in n_best["q1"]) == pytest.approx(1)
    assert scores["total"] == scores["HasAns_total"] == 2


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({}, "no model named; give --model TASK=MODEL, with tasks cola, sst2"),
        ({"mnli_mm": "mnli"}, "MNLI-mm and AX are answered by MNLI's model; give --model mnli=MODEL"),
        ({"sst": "sst2"}, "unknown task 'sst'; did you mean 'sst2'"),
        ({"sst2": "no/such/folder"}, "no/such/folder"),
        ({"sst2": "bare"}, "has no head with 2 outputs; fine-tune it on sst2 first"),
        ({"mnli": "sst2"}, "has no head with 3 outputs; fine-tune it on mnli first"),
        ({"squad2": "squad1"}, r"dev-v2\.0\.json: no such file"),
    ],
)
def test_what_cannot_be_predicted_is_refused_and_leaves_no_file(store, data, models, tmp_path, chosen, message):
    chosen = {task: models.get(source, source) for task, source in chosen.items()}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        predict.predict(chosen, str(data), tmp_path / "out", max_seq_len=32)
    assert not list((tmp_path / "out").glob("*"))


def test_a_missing_test_file_is_named_before_anything_is_predicted(store, models, tmp_path):
    (tmp_path / "SST-2").mkdir()
    (tmp_path / "SST-2/test.tsv").write_text("index\tsentence\n0\tthe key\n")
    with pytest.raises(FileNotFoundError, match="CoLA"):
        predict.predict({"sst2": models["sst2"], "cola": models["cola"]}, str(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_takes_models_by_task_and_checks(store, data, models, tmp_path):
    def call(*arguments: str):
        return CliRunner().invoke(app, ["predict", *arguments, "--data-dir", str(data)])

    given = [text for name in TASKS for text in ("--model", f"{name}={models[name]}")]
    done = call(str(tmp_path / "out"), *given, "--max-seq-len", "32")
    assert done.exit_code == 0, done.stderr
    checked = call("--check", str(tmp_path / "out/submission.zip"))
    assert "11 files, 825 rows, all as the server wants them" in checked.stdout
    (tmp_path / "out/AX.tsv").unlink()
    refused = call("--check", str(tmp_path / "out"))
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "AX.tsv is missing" in refused.stderr
    assert "name a folder to write to, or one to --check" in call().stderr
    assert "expected TASK=MODEL" in call("x", "--model", "sst2").stderr
    assert "a task is named twice" in call("x", "--model", "sst2=a", "--model", "sst2=b").stderr
