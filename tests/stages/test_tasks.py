"""Every task through the same stages: the nine of GLUE, SQuAD 1.1 and 2.0, on made files."""

from __future__ import annotations

import json
from random import Random

import pytest
from transformers import BertConfig, BertModel

from compresskit import tracking
from compresskit.data import glue
from compresskit.data.vocabulary import train_wordpiece
from compresskit.evaluation import squad as scoring
from compresskit.models import CompactBertForSequenceClassification, checkpoints
from compresskit.stages import distill, evaluate, finetune, prune, report
from compresskit.stages.tasks import task_named

NAMES = ("anna", "bert", "carl", "dora", "emil")
WORDS = ("a the on in at red blue old new box car door hat key lamp map pen ring sun toy wall").split()  # noqa: SIM905
SIZES = {"max_seq_len": 28, "doc_stride": 8, "max_query_length": 4}


def articles(split: str, number: int, unanswerable: float) -> list[dict]:
    """The only name in a paragraph answers its question; without a name there is no answer."""
    rng = Random(split)
    found = []
    for a in range(number):
        paragraphs = []
        for p in range(10):
            words = rng.choices(WORDS, k=rng.randint(8, 30))
            words[0] += f" {split}{a} {p}"  # no paragraph twice
            entry = {"id": f"{split}-{a}-{p}", "question": "who ?", "answers": [], "is_impossible": True}
            if rng.random() >= unanswerable:
                words[rng.randrange(1, len(words))] = name = rng.choice(NAMES)
                start = " ".join(words).index(f" {name}") + 1
                entry |= {"answers": [{"text": name, "answer_start": start}], "is_impossible": False}
            paragraphs.append({"context": " ".join(words), "qas": [entry]})
        found.append({"title": f"{split} {a}", "paragraphs": paragraphs})
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with both versions of SQuAD; 2.0 has questions with and without answer."""
    folder = tmp_path_factory.mktemp("data") / "squad"
    folder.mkdir()
    for version, unanswerable in (("1.1", 0.0), ("2.0", 0.4)):
        for split, number in (("train", 80), ("dev", 12)):
            content = {"version": version, "data": articles(split, number, unanswerable)}
            (folder / f"{split}-v{version}.json").write_text(json.dumps(content))
    return folder.parent


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A small BERT folder with its vocabulary."""
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = train_wordpiece([" ".join((*NAMES, *WORDS, "who ? 0 1 2 3 4 5 6 7 8 9 train dev"))] * 5, 300)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=64, max_position_embeddings=64, hidden_dropout_prob=0,
                        attention_probs_dropout_prob=0, initializer_range=0.1)  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def taught(encoder, data, task: str, **changes) -> finetune.Finetune:
    settings = {"num_train_epochs": 2, "learning_rate": 5e-3, "evals_per_epoch": 1, **SIZES, **changes}
    return finetune.open(finetune.FinetuneParams(task=task, model=str(encoder), data_dir=str(data), **settings))


def test_questions_go_through_finetune_distill_prune_and_evaluate(store, encoder, data):
    stage = taught(encoder, data, "squad1")
    described = stage.data.describe()
    assert (described["rows"] > described["questions"]).all()  # long paragraphs are several windows
    stage.train()
    teacher = stage.finish()
    assert teacher["selection_score"].item() > 0.8
    assert teacher["selection_rows"].item() == 200  # questions, not windows
    source = teacher["model"].item()

    shared = {"task": "squad1", "data_dir": str(data), "evals_per_epoch": 1, **SIZES}
    student = distill.open(distill.DistillParams(
        teacher=source, student_layers=[2], intermediate_epochs=1, prediction_epochs=2,
        intermediate_learning_rate=3e-3, prediction_learning_rate=3e-3, **shared,
    ))  # fmt: skip
    student.train()
    distilled = student.finish()
    assert distilled["selection_score"].item() > 0.6

    pruned = prune.open(prune.PruneParams(model=source, sparsity=0.5, learning_rate=2e-3, num_train_epochs=1, **shared))
    pruned.train()
    sparse = pruned.finish()
    assert sparse["selection_score"].item() > 0.6

    models = {
        "baseline-teacher": source,
        "tinybert-student": distilled["model"].item(),
        "sparsebert-half": sparse["model"].item(),
    }
    params = {"latency_seq_len": 28, "latency_rounds": 10, "task": "squad1", "data_dir": str(data), **SIZES}
    last = evaluate.open(evaluate.EvaluateParams(models=models, **params))
    scores = last.score()
    last.time()
    last.finish()
    assert scores.loc["baseline-teacher", "rows"] == 120
    rows = tracking.leaderboard_table("squad1").set_index("name")
    assert set(rows.index) == {f"{name}-42" for name in models}
    best = rows.loc["baseline-teacher-42"]
    assert best["score_pct"] == best["f1_pct"] > 80
    assert best["score_low_pct"] <= best["score_pct"] <= best["score_high_pct"]
    assert 0 < best["exact_match_pct"] <= best["f1_pct"]
    record = tracking.read_json(best["evaluated_by"], "predictions/baseline-teacher.json")
    official = {
        name: tracking.read_json(best["evaluated_by"], f"predictions/baseline-teacher/{name}.json")
        for name in ("predictions", "nbest_predictions", "scores")
    }
    assert official["predictions"] == record["predictions"]
    assert official["nbest_predictions"].keys() == record["answers"].keys()
    assert official["scores"]["f1"] == pytest.approx(best["f1_pct"], abs=1e-3)
    assert scoring.score(record["predictions"], record["answers"]).value * 100 == pytest.approx(best["f1_pct"])
    assert "best_threshold_f1_pct" not in rows
    page = report.collect("squad1", "as in the test")
    assert report.recomputed_scores(page) == pytest.approx({row["model"]: row["score_pct"] for row in page["rows"]})


def test_questions_without_an_answer_are_scored_at_threshold_0_and_the_best_one_is_an_extra(store, encoder, data):
    stage = taught(encoder, data, "squad2")
    described = stage.data.describe()
    assert described["questions"].tolist() == [600, 200, 120]
    assert described["without answer"].between(0.25, 0.55).all()
    stage.train()
    record = stage.data.predict(stage.model, "dev")
    score = stage.data.task.score(record)
    assert score.value == scoring.score(record["predictions"], record["answers"]).metrics["eval/f1"]
    assert score.value > score.majority + 0.1
    for name, text in record["predictions"].items():
        assert (text == "") == (record["null_odds"][name] > 0)
    assert {""} < set(record["predictions"].values())
    parts = [score.metrics[f"eval/{kind}_answer_f1"] for kind in ("has", "no")]
    assert min(parts) > 0.3  # neither is learned at the cost of the other
    assert min(parts) <= score.value <= max(parts)
    files = stage.data.task.official_files(record)
    assert list(files) == ["predictions.json", "nbest_predictions.json", "null_odds.json", "scores.json"]
    assert files["scores.json"]["NoAns_f1"] == pytest.approx(100 * parts[1])
    for metric in ("f1", "exact_match"):
        best = record["best_thresholds"][metric]["value"]
        assert score.metrics[f"eval/best_threshold_{metric}"] == best >= score.metrics[f"eval/{metric}"]


def test_no_paragraph_is_in_training_and_selection(store, encoder, data):
    splits = taught(encoder, data, "squad1").data.splits
    contexts = {name: {question.context for question in split.rows} for name, split in splits.items()}
    assert contexts["train"].isdisjoint(contexts["selection"])
    assert len(contexts["train"] | contexts["selection"]) == 800


def test_evaluate_reads_no_training_rows(store, encoder, data, tmp_path):
    stage = taught(encoder, data, "squad1", max_steps=1, max_rows=60)
    stage.train()
    source = stage.finish()["model"].item()
    (tmp_path / "dev-v1.1.json").write_text((data / "squad/dev-v1.1.json").read_text())
    params = evaluate.EvaluateParams(
        task="squad1", models={"baseline-x": source}, data_dir=str(tmp_path), max_rows=20, **SIZES
    )
    assert evaluate.open(params).score()["rows"].item() == 20


def test_bad_input_about_questions_is_one_sentence(store, encoder, data, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train-v1\.1\.json: no such file; squad1 is read from a folder"):
        taught(encoder, tmp_path, "squad1")
    with pytest.raises(ValueError, match=r"doc_stride 99 must lie between 1 and that"):
        taught(encoder, data, "squad1", doc_stride=99)
    with pytest.raises(ValueError, match=r"unknown task 'squad'; did you mean 'squad[12]'"):
        taught(encoder, data, "squad")
    with pytest.raises(ValueError, match="has no head for questions; fine-tune it on squad2 first"):
        distill.open(distill.DistillParams(task="squad2", teacher=str(encoder), data_dir=str(data), **SIZES))
    (tmp_path / "train-v1.1.json").write_text('{"data": [\n}')
    with pytest.raises(ValueError, match=r"train-v1\.1\.json line 2 column 1: broken JSON"):
        taught(encoder, tmp_path, "squad1")


def glue_folder(folder, task: glue.GlueTask) -> None:
    """Train and dev in the official layout, 60 and 20 rows."""
    (folder / task.folder).mkdir()
    width = max(*task.text_columns, task.label_column) + 2
    header = [f"column {i}" for i in range(width)]
    for column, name in zip((*task.text_columns, task.label_column), task.header, strict=True):
        header[column] = name
    for file, rows in ((task.train_file, 60), (task.dev_file, 20)):
        lines = ["\t".join(header)] if task.has_header else []
        for i in range(rows):
            fields = ["-"] * width
            for column in task.text_columns:
                fields[column] = f"the {WORDS[i % 7]} {WORDS[i % 5]}"
            fields[task.label_column] = str(i % 5 / 2) if task.is_regression else task.labels[i % len(task.labels)]
            lines.append("\t".join(fields))
        (folder / task.folder / file).write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("name", [name for name in glue.TASKS if name != "mnli_mm"])
def test_every_glue_task_is_distilled_in_two_steps(name, store, encoder, tmp_path):
    task = glue.task_named(name)
    glue_folder(tmp_path, task)
    teacher = checkpoints.load(CompactBertForSequenceClassification, encoder, num_labels=task.num_labels)
    checkpoints.save(teacher, tmp_path / "teacher", task_named("sst2").open_model(str(encoder))[1])
    params = distill.DistillParams(
        task=name, teacher=str(tmp_path / "teacher"), student_layers=[2], data_dir=str(tmp_path), max_seq_len=16,
        batch_size=8, max_steps=2,
    )  # fmt: skip
    stage = distill.open(params)
    history = stage.train()
    assert {"train/intermediate_attention_loss", "train/loss", "select/score"} <= set(history["key"])
    result = stage.finish()
    assert (result["task"].item(), result["selection_rows"].item()) == (name, 30)
