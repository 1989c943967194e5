"""The stage length_search: what it finds, keeps and writes; stopped or shared out, it ends the same."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from compresskit import tracking
from compresskit.data.vocabulary import train_wordpiece
from compresskit.evaluation import flops, latency
from compresskit.evaluation import glue as label_scores
from compresskit.models import CompactBertConfig, CompactBertForSequenceClassification, checkpoints, length_front
from compresskit.search import length_files as files
from compresskit.stages import evaluate, export, length_choice, length_search, predict
from compresskit.stages.length_search import LengthSearchParams
from compresskit.stages.session import model_folder
from compresskit.stages.tasks import task_named

WORDS = "film plot actor scene story joke song tale part shot cast role line mood tone view".split()  # noqa: SIM905
ROWS = [
    f"a {a} and a {b} {c} {i % 2}"
    for i, (a, b, c) in enumerate((a, b, c) for a in WORDS for b in WORDS for c in WORDS[:2])
]
LABELS = {name: [Random(f"{name} {i}").randrange(2) for i in range(440)] for name in ("train.tsv", "dev.tsv")}
LENGTH = 16
SMALL = {"iterations": 2, "population_size": 3, "mutations": 4, "crossovers": 2, "max_drop": 0.4, "trials": 8,
         "latency_rounds": 10, "score_rows": 60, "max_seq_len": LENGTH, "threads": 1}  # fmt: skip


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """SST-2 of 440 rows, 200 of them held back from train, and a model of 3 layers that answers by them."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "SST-2").mkdir()
    for name, rows in (("train.tsv", ROWS[:440]), ("dev.tsv", ROWS[440:])):
        lines = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in zip(rows, LABELS[name], strict=False))]
        (folder / "SST-2" / name).write_text("\n".join(lines) + "\n")
    tokenizer = train_wordpiece(ROWS * 3, 120)
    config = CompactBertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=LENGTH, initializer_range=0.5, num_labels=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = CompactBertForSequenceClassification(config)
    encoded = tokenizer(ROWS[:440], padding=True, return_tensors="pt")
    with torch.no_grad():  # so that it gives each answer to half of the rows, and every token counts
        logits = model.eval()(encoded["input_ids"], encoded["attention_mask"]).logits
        model.classifier.bias[1] -= (logits[:, 1] - logits[:, 0]).median()
    checkpoints.save(model, folder / "model", tokenizer)
    points = [
        {"length_config": lengths, "score": 0.9, "macs": flops.macs(config, LENGTH, "sequence_classification", lengths),
         "latency_ms": 1.0}
        for lengths in ([8, 5, 3], [15, 14, 13])
    ]  # fmt: skip
    full = {"score": 0.905, "macs": flops.macs(config, LENGTH, "sequence_classification"), "latency_ms": 2.0}
    model.config.length_front = {"seq_len": LENGTH, "full": full, "points": points}
    checkpoints.save(model, folder / "searched", tokenizer)
    return folder


def cost_ms(config) -> float:
    lengths = config.length_config or [LENGTH] * config.num_hidden_layers
    return 1.0 + sum(lengths) / 10


@pytest.fixture
def machine(monkeypatch):
    """A machine whose times depend on nothing but the lengths; says how often it was asked."""
    asked = []

    def measure(contestants, batch, **settings):
        asked.append(len(contestants))
        return [SimpleNamespace(name=name, latency_p50_ms=cost_ms(m.config)) for name, m in contestants.items()]

    monkeypatch.setattr(latency, "measure", measure)
    monkeypatch.setattr(
        length_front,
        "latencies",
        lambda model, configs, *_: [cost_ms(model.config.changed(length_config=c)) for c in configs],
    )
    return asked


def run(given, **changes):
    stage = length_search.open(
        LengthSearchParams(**{"model": str(given / "model"), "data_dir": str(given), **SMALL, **changes})
    )
    table = stage.run()
    return stage, table, stage.finish().iloc[0]


def test_the_front_travels_with_the_model_and_is_served_from_it(given, store, machine):
    stage, table, result = run(given)
    folder = Path(model_folder(result["model"]))
    model = CompactBertForSequenceClassification.from_pretrained(folder)
    front = model.config.length_front
    points = front["points"]
    assert front["seq_len"] == LENGTH
    assert len(points) >= 1
    for better, worse in zip(points[1:], points, strict=False):
        assert better["macs"] > worse["macs"]
        assert better["score"] > worse["score"]
    for point in points:
        config = model.config.changed(length_front=None)
        lengths = point["length_config"]
        assert point["macs"] == flops.macs(config, LENGTH, "sequence_classification", lengths)
        assert point["latency_ms"] == cost_ms(config.changed(length_config=lengths))
    served = model.at(speedup=1.3)
    assert cost_ms(served.config) * 1.3 <= cost_ms(model.config)
    assert served.config.length_config in [point["length_config"] for point in points]
    assert json.loads((folder / "length_front.json").read_text()) == front
    assert len(table) == len(stage.tried) == result["tried"]
    assert result["length_config"] == (length_choice.cheapest_within(front, 0.01) or [LENGTH] * 3)


def test_scores_are_those_of_the_model_on_rows_held_back_from_train(given, store, machine):
    stage, table, _ = run(given)
    task = task_named("sst2")
    held_back = task.divide(task.read(given, "train", 0), 42)[1]
    rows = held_back.select([index * len(held_back) // 60 for index in range(60)])
    model, tokenizer = task.open_model(str(given / "model"), trained=True)
    encoded = task.encode(rows, tokenizer, stage.params)
    model.eval()
    for lengths in list(stage.tried)[:4]:
        logits = []
        for ids in encoded["input_ids"]:  # one by one, padded to the full length
            padded = torch.zeros(1, LENGTH, dtype=torch.long)
            padded[0, : len(ids)] = torch.tensor(ids)
            with torch.no_grad():
                out = model(padded, (torch.arange(LENGTH) < len(ids)).long()[None], length_config=list(lengths))
            logits.append(out.logits[0].tolist())
        expected = label_scores.score("sst2", logits, rows["label"][:]).value
        row = table[table["length_config"] == str(lengths)].iloc[0]
        assert row["score"] == pytest.approx(expected)
    assert table["score"].nunique() > 1


def test_the_files_are_the_originals(given, store, machine):
    stage, _, result = run(given)
    folder = Path(tracking.resolve(result["files"]))
    rounds = [name for number in range(3) for name in files.generation_files(number).values()]
    front = ["length_front.json", "length_front.parquet", files.FRONT_CSV, files.FRONT_LOG]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*rounds, *front, files.STORE, files.METRICS_LOG])
    last = files.read_store(folder / "store-iter2.tsv")
    assert last == stage.tried == files.read_store(folder / files.STORE)
    assert all(entry.cost == stage.macs(lengths) for lengths, entry in last.items())
    table = pd.read_parquet(folder / "length_front.parquet")
    points = files.read_front_csv(folder / files.FRONT_CSV)
    assert [list(point.rounded()) for point in points] == [list(config) for config in table["length_config"]]
    assert [point.f1 for point in points] == pytest.approx((100 * table["score"]).tolist())
    assert [point.eval_time for point in points] == pytest.approx((table["latency_ms"] / 1000).tolist())
    evaluations = files.read_metrics_log(folder / files.METRICS_LOG)
    assert sorted(record["macs"] for record in evaluations) == sorted(map(stage.macs, stage.tried))


@pytest.mark.parametrize("search", ["evolution", "tpe", "nsga2"])
def test_a_stopped_search_goes_on_to_the_same_result(given, store, machine, monkeypatch, search):
    _, straight, expected = run(given, search=search, cost="latency")

    class Stopped(Exception):
        pass

    real = length_search.Scorer.__call__
    for stop_after in (1, 3):
        left = iter(range(stop_after))

        def scorer(self, lengths, left=left):
            if next(left, None) is None:
                raise Stopped
            return real(self, lengths)

        monkeypatch.setattr(length_search.Scorer, "__call__", scorer)
        with pytest.raises(Stopped):
            run(given, search=search, cost="latency")
    monkeypatch.setattr(length_search.Scorer, "__call__", real)
    _, table, result = run(given, search=search, cost="latency")
    pd.testing.assert_frame_equal(table, straight)
    for name in ("length_config", "selection_score", "speedup"):
        assert result[name] == expected[name]


@pytest.mark.long  # two processes import torch
def test_processes_share_the_work_and_change_nothing(given, store, machine):
    _, alone, _ = run(given, iterations=1)
    _, shared, _ = run(given, iterations=1, workers=2)
    pd.testing.assert_frame_equal(shared, alone)


def test_a_store_in_the_models_folder_is_not_scored_again(given, store, machine, monkeypatch):
    _, _, result = run(given)
    known = files.read_store(Path(model_folder(result["model"])) / files.STORE)
    scored, real = [], length_search.Scorer.__call__
    monkeypatch.setattr(
        length_search.Scorer, "__call__", lambda self, lengths: scored.append(lengths) or real(self, lengths)
    )
    run(given, model=result["model"], iterations=3)
    assert scored
    assert not set(scored) & set(known)
    with pytest.raises(ValueError, match=r"store.tsv, line 1: .* is of another model or max_seq_len"):
        run(given, model=result["model"], max_seq_len=12)


def test_tpe_keeps_its_budget_and_latency_is_timed_once_for_each_config(given, store, machine):
    stage, table, _ = run(given, search="tpe", cost="latency", max_cost=0.7, trials=12)
    assert table["latency_ms"].notna().all()
    assert len(machine) == len(stage.tried) + 1  # and the front
    assert table["latency_ms"].min() <= 0.7 * cost_ms(stage.model.config)


# Chosen lengths elsewhere


@pytest.fixture
def searched(given, store, machine) -> str:
    """A model with a front."""
    return str(given / "searched")


def test_a_choice_is_a_row_of_the_leaderboard_of_its_own(given, searched):
    choices = {"fast": "1.3x", "near": "within1%", "less": "90%", "least": "(4, 3, 2)"}
    models = {f"dynamic_tinybert-{name}": f"{searched}?lengths={choice}" for name, choice in choices.items()}
    stage = evaluate.open(
        evaluate.EvaluateParams(
            models={"baseline-full": searched, **models}, data_dir=str(given), max_seq_len=LENGTH,
            latency_seq_len=LENGTH, latency_rounds=10,
        )
    )  # fmt: skip
    stage.score()
    stage.latencies = {
        name: SimpleNamespace(latency_p50_ms=cost_ms(m.config), latency_p95_ms=1.0) for name, m in stage.models.items()
    }
    stage.finish()
    rows = tracking.leaderboard_table("sst2").set_index("variant")
    full = rows.loc["full"]
    assert rows.loc["fast", "speedup_x"] >= 1.3
    assert rows.loc["less", "gflops"] < full["gflops"]
    assert rows.loc["least", "lengths"] == "[4, 3, 2]"
    assert rows.loc["near", "lengths"] == "[8, 5, 3]"
    assert rows.loc["least", "gflops"] == rows["gflops"].min()
    assert set(rows["model_uri"]) == {searched}
    assert not full["lengths"] or pd.isna(full["lengths"])


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("9x", "none of .* is 9 times as fast"),
        ("0.1ms", "takes at most 0.1 ms"),
        ("1%", "at most 1% of the multiply-adds"),
        ("within2x", "is none of 2x"),
        ("fast", "is none of 2x"),
        ("(4, 3)", "2 lengths for 3 layers"),
        ("(4, __import__)", "are no lengths"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(searched, choice, message):
    with pytest.raises(ValueError, match=message):
        task_named("sst2").open_model(f"{searched}?lengths={choice}", trained=True)


def test_a_model_that_is_trained_further_has_no_front(searched):
    model, tokenizer = task_named("sst2").open_model(searched)
    assert model.config.length_front
    from compresskit.stages.finetune import finish_task_model

    kept = {}
    session = SimpleNamespace(
        keep=lambda model, *_: kept.update(front=model.config.length_front), finish=lambda result: result
    )
    data = SimpleNamespace(
        score=lambda *_: SimpleNamespace(value=1, low=0, high=1, rows=9),
        task=SimpleNamespace(name="sst2"),
        tokenizer=tokenizer,
    )
    finish_task_model(session, model, data, "selection", "")
    assert kept == {"front": None}


@pytest.mark.long
def test_an_export_takes_the_chosen_lengths_or_says_that_it_cannot(searched, tmp_path):
    with pytest.raises(ValueError, match="plain BERT has no length_config"):
        export.export_model(f"{searched}?lengths=1.3x", tmp_path / "bert", "bert")
    export.export_model(f"{searched}?lengths=1.3x", tmp_path / "onnx", "openvino")
    assert (tmp_path / "onnx" / "model.xml").is_file()
    saved = checkpoints.load(CompactBertForSequenceClassification, tmp_path / "onnx")
    assert cost_ms(saved.config) * 1.3 <= cost_ms(saved.config.changed(length_config=None))


def test_predict_names_the_lengths_in_its_ledger(given, searched, tmp_path):
    (given / "SST-2" / "test.tsv").write_text(
        "index\tsentence\n" + "".join(f"{i}\t{t}\n" for i, t in enumerate(ROWS[:40]))
    )
    answers = {}
    for choice in ("(16, 16, 16)", "(2, 2, 2)"):
        source = f"{searched}?lengths={choice}"
        predict.predict({"sst2": source}, str(given), tmp_path / choice, max_seq_len=LENGTH)
        answers[choice] = (tmp_path / choice / "SST-2.tsv").read_text()
        assert json.loads((tmp_path / choice / predict.LEDGER).read_text())["SST-2.tsv"]["model"] == source
    assert answers["(2, 2, 2)"] != answers["(16, 16, 16)"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"shortest": 17}, "shortest 17 is more than max_seq_len 16"), ({"max_seq_len": 17}, "exceeds the model's 16")],
)
def test_what_cannot_be_searched_is_refused_before_it_begins(given, store, wrong, message):
    with pytest.raises(ValueError, match=message):
        run(given, **wrong)
