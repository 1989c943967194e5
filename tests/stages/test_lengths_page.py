"""The page on Dynamic-TinyBERT's pipeline: its verdict and its tables follow from the answers and the timings."""

from __future__ import annotations

import numpy as np
import pytest

from compresskit.evaluation import squad
from compresskit.stages import lengths_page

QUESTIONS = 400


def made(f1_of: dict[str, float], ms_of: dict[str, float]) -> dict:
    """The data of a page on models with that mean F1 and that latency; the answers of all rank the questions alike."""
    order = np.random.default_rng(0).permutation(QUESTIONS)
    scores = {}
    for name, share in f1_of.items():
        right = (order < share * QUESTIONS).astype(float)
        scores[name] = {"f1": right.tolist(), "exact_match": (right * (order % 2)).tolist()}
    front = {
        "columns": ["length_config", "score", "macs", "latency_ms", "speedup"],
        "data": [[[9, 5], 0.7, 2e9, 5.0, 1.5]],
    }
    search = {"run": "r1", "settings": {"search": "evolution"}, "result": {"tried": 9, "front": 1}, "front": front}
    machine = {"cpu": "a CPU", "torch": "2", "float32_matmul_precision": "high", "threads": 1, "batch_size": 1}
    return {
        "kind": "lengths", "run": "dynamic-tinybert-quick", "command": "go", "note": "A note.", "commits": ["abc"],
        "settings": {"max_drop": 0.2}, "data_digest": "d",
        "conditions": {**machine, "seq_len": 192, "max_seq_len": 192},
        "models": {name: {"gflops": 1.0, "layers": 4} for name in f1_of}, "scores": scores,
        "samples_ms": {name: [ms, ms * 2, ms / 2] for name, ms in ms_of.items()},
        "searches": {"dynamic_tinybert-a": search}, "seconds": {"r1": 600},
    }  # fmt: skip


F1 = {"baseline-teacher": 0.8, "dynamic_tinybert-a": 0.795, "dynamic_tinybert-b": 0.79, "dynamic_tinybert-c": 0.85}
MS = {"baseline-teacher": 30, "dynamic_tinybert-a": 12, "dynamic_tinybert-b": 6, "dynamic_tinybert-c": 20}


def test_the_fastest_model_within_one_per_cent_of_the_teacher_is_named():
    data = made(F1, MS)
    best = lengths_page.best(data)
    assert best["name"] == "dynamic_tinybert-a"  # b loses 1.25 %, c is slower
    assert best["speedup"] == 2.5
    assert best["lost_pct"] == pytest.approx(0.625)
    low, high = lengths_page.lost_interval(data, best["name"])
    assert 0 <= low < 0.625 < high
    text = lengths_page.page(data, "page")
    assert "**2.50x**, by `dynamic_tinybert-a`" in text
    assert "| Dynamic-TinyBERT | 88.71 | 3.3x |" in text
    assert "| ours: dynamic_tinybert-a | 79.50 | 2.50x |" in text
    assert "[9, 5]" in text
    assert "took 10 minutes" in text


def test_where_none_is_within_one_per_cent_the_nearest_is_told():
    data = made({**F1, "dynamic_tinybert-a": 0.7, "dynamic_tinybert-c": 0.75}, MS)
    assert lengths_page.best(data)["name"] == "baseline-teacher"
    assert "nearest, `dynamic_tinybert-b`, loses 1.2 %" in lengths_page.verdict(data)


def test_each_question_is_scored_as_by_the_official_measure():
    predictions = {"a": "The red house", "b": "", "c": "blue"}
    answers = {"a": ["red house", "house"], "b": [], "c": ["green sea", "blue sky"]}
    found = lengths_page.each_question(predictions, answers)
    assert found == {"f1": [1.0, 1.0, 0.6667], "exact_match": [1.0, 1.0, 0.0]}
    whole = squad.score(predictions, answers)
    assert np.mean(found["f1"]) == pytest.approx(whole.value, abs=1e-4)


@pytest.mark.parametrize(
    ("pipeline", "own"), [("dynamic-tinybert-quick", True), ("dynamic-tinybert", True), ("tinybert-ablation", False)]
)
def test_which_pipelines_have_such_a_page(pipeline, own):
    assert lengths_page.is_for(pipeline) is own
