"""The stage latency_predictor: what is measured, that it goes on after a stop, what it leaves and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from compresskit import tracking
from compresskit.evaluation import latency
from compresskit.models import CompactBertConfig, CompactBertModel, checkpoints, presets
from compresskit.search import files
from compresskit.search.predictor import LatencyPredictor
from compresskit.search.spaces import columns_of
from compresskit.stages import latency_predictor
from compresskit.stages.latency_predictor import LatencyPredictorParams
from compresskit.stages.yaml_text import ParamsError

SMALL = {"architectures": 10, "repeats": 2, "group": 5, "rounds": 10, "seq_len": 8, "folds": 2, "mlp_width": 4,
         "mlp_steps": 5}  # fmt: skip


@pytest.fixture
def supernet(tmp_path, monkeypatch) -> str:
    """A small supernet's folder; BERT-base is made small too, as building it takes seconds."""
    monkeypatch.setitem(presets.PRESETS, "bert-base", (2, 64, 128, 4, 64))
    config = CompactBertConfig(
        vocab_size=40, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96,
        max_position_embeddings=32,
    )  # fmt: skip
    checkpoints.save(CompactBertModel(config), tmp_path / "supernet")
    return str(tmp_path / "supernet")


def opened(supernet: str, **changes) -> latency_predictor.LatencyPredictorStage:
    return latency_predictor.open(LatencyPredictorParams(**{**SMALL, "supernet": supernet, **changes}))


@pytest.mark.parametrize("flavour", ["kd", "mlm"])
def test_the_result_is_a_folder_that_predicts_and_tells_what_it_holds_for(store, supernet, flavour):
    stage = opened(supernet, flavour=flavour)
    measured = stage.measure()
    errors = stage.fit()
    result = stage.finish().iloc[0]
    assert len(measured) == 10
    assert (measured["num_attention_heads"] == 4).all() == (flavour == "kd")
    assert set(errors["kind"]) == {"physical", "flops", "mlp"}
    assert errors["mape_pct"].is_monotonic_increasing

    folder = Path(tracking.resolve(result["predictor"]))
    loaded = LatencyPredictor.load(folder)
    assert loaded.fitted.kind == result["kind"] == errors["kind"].iloc[0]
    assert (
        loaded.predict(columns_of(stage.architectures)) == stage.fitted.predict(columns_of(stage.architectures))
    ).all()
    loaded.conditions.check(latency_predictor.conditions(flavour, 1, 1, 8, "wall"))
    with pytest.raises(ValueError, match="measured with seq_len 8, not 16"):
        loaded.conditions.check(latency_predictor.conditions(flavour, 1, 1, 16, "wall"))
    assert loaded.reference_ms["bert-base"] == result["bert_base_ms"] > 0
    original = files.read_latencies(folder / "lat.tmp", stage.supernet)
    assert [config.key() for config, _ in original] == [config.key() for config in stage.architectures]
    assert [ms for _, ms in original] == measured["latency_p50_ms"].tolist()
    rows = json.loads((folder / "latency_data.json").read_text())["rows"]
    for row, ms in zip(rows, measured["latency_p50_ms"], strict=True):
        assert len(row["samples_ms"]) == 10
        assert pd.Series(row["samples_ms"]).median() == pytest.approx(ms)


def test_a_stopped_measurement_goes_on_with_the_groups_that_are_missing(store, supernet, monkeypatch):
    timed: list[list[str]] = []
    measure = latency.measure

    def stops_at_the_third(contestants, *args, **kwargs):
        timed.append(list(contestants))
        if len(timed) == 3:
            raise KeyboardInterrupt
        return measure(contestants, *args, **kwargs)

    monkeypatch.setattr(latency, "measure", stops_at_the_third)
    first = opened(supernet)
    with pytest.raises(KeyboardInterrupt):
        first.measure()
    second = opened(supernet)
    second.measure()
    assert timed[:2] == [["bert-base"], ["supernet", "0", "1", "2", "3"]]
    assert timed[2:] == [["4", "5", "6", "7", "8"]] * 2 + [["9", "0 again", "1 again"]]
    assert {name: second.results[name] for name in first.results} == first.results
    assert len(first.results) == 6


def test_the_noise_is_the_difference_of_two_measurements(store, supernet):
    stage = opened(supernet)
    stage.measure()
    a, b = ([stage.results[f"{n}{end}"].latency_p50_ms for n in range(2)] for end in ("", " again"))
    expected = 50 * (abs(b[0] / a[0] - 1) + abs(b[1] / a[1] - 1))
    assert stage.repeat_noise_pct() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"predictors": []}, "predictors names none; take physical, flops or mlp"),
        ({"repeats": 11}, "repeats 11 exceeds architectures 10"),
        ({"folds": 6}, "architectures 10 are too few for 6 folds"),
        ({"clock": "cpu", "threads": 2}, "clock cpu adds up 2 threads"),
        ({"flavour": "both"}, "'flavour' should be 'mlm' or 'kd'"),
    ],
)
def test_what_could_only_fail_after_the_measurement_is_refused_before_it(changes, message):
    with pytest.raises(ParamsError, match=message):
        LatencyPredictorParams.checked({**SMALL, **changes}, lambda name: "")


def test_too_long_sequences_and_too_small_spaces_are_refused(store, supernet, tmp_path):
    with pytest.raises(ValueError, match="seq_len 64 exceeds the 32 positions"):
        opened(supernet, seq_len=64)
    tiny = CompactBertConfig(hidden_size=1, num_hidden_layers=2, num_attention_heads=1, intermediate_size=1)
    with pytest.raises(ValueError, match="2 different architectures in 1000 draws, 10 are wanted; ask for fewer"):
        latency_predictor.draw_architectures(tiny, "kd", 10, 0)
    assert latency_predictor.supernet_config("superbert").num_hidden_layers == 8
