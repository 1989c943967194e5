"""Latency predictors: exact where the truth is of their form, honest on what they have not seen, whole on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from random import Random

import numpy as np
import pytest
import torch

from compresskit.models import presets
from compresskit.search.costs import Flops
from compresskit.search.predictor import (
    PREDICTOR_FILE,
    WAYS,
    Conditions,
    FlopsLine,
    LatencyPredictor,
    Mlp,
    Physical,
    fit_best,
    held_out,
    physical_features,
)
from compresskit.search.spaces import SPACES, columns_of, rows

SUPERNET = presets.config("superbert")
TRUTH = {"constant": 0.4, "layers": 0.3, "projections": 4e-6, "feed_forward": 2e-6, "maps": 0.04, "hidden": 4e-4}
CONDITIONS = Conditions("mlm", 1, 1, 128, "wall", "a processor", "medium")
UNKNOWN_FEATURE = {"kind": "physical", "fitted": {"coefficients": {"moon": 1.0}}}
TINY = partial(Mlp.fit, width=8, steps=20)


def architectures(count: int, flavour: str = "mlm", seed: int = 0):
    rng, space = Random(seed), SPACES[flavour]()
    return columns_of([space.sample(SUPERNET, rng) for _ in range(count)])


def milliseconds(columns, noise: float = 0.0):
    features = physical_features(columns)
    exact = np.sum([c * features[name] for name, c in TRUTH.items()], axis=0)
    return exact * (1 + noise * np.random.default_rng(0).standard_normal(len(exact)))


@pytest.mark.parametrize("flavour", SPACES)
def test_sixty_noisy_measurements_give_a_predictor_within_the_noise_on_architectures_it_has_not_seen(flavour):
    columns, unseen = architectures(60, flavour), architectures(200, flavour, seed=1)
    physical = Physical.fit(columns, milliseconds(columns, noise=0.03), 128)
    result = held_out("physical", milliseconds(unseen), physical.predict(unseen))
    assert result.mape_pct < 3
    assert result.spearman > 0.998
    assert min(physical.coefficients.values()) >= 0


def test_without_noise_the_physical_predictor_is_exact_and_the_line_is_where_time_is_a_line():
    columns, unseen = architectures(60), architectures(60, seed=1)
    physical = Physical.fit(columns, milliseconds(columns), 128)
    np.testing.assert_allclose(physical.predict(unseen), milliseconds(unseen), rtol=1e-6)
    line = FlopsLine.fit(columns, 2 + Flops(128).predict(columns) / 1e8, 128)
    np.testing.assert_allclose(line.predict(unseen), 2 + Flops(128).predict(unseen) / 1e8, rtol=1e-6)


def test_more_of_anything_is_never_predicted_to_be_faster():
    columns = architectures(30)
    physical = Physical.fit(columns, np.random.default_rng(0).uniform(1, 100, 30), 128)  # even from nonsense
    for name, column in columns.items():
        bigger = {**columns, name: column * 2}
        assert (physical.predict(bigger) >= physical.predict(columns) - 1e-9).all()


def test_a_network_of_uneven_layers_costs_what_its_layers_cost_together():
    even = [SUPERNET.changed(num_hidden_layers=1, intermediate_size=f, qkv_size=q) for f, q in ((100, 48), (700, 96))]
    both = SUPERNET.changed(num_hidden_layers=2, intermediate_size=[100, 700], qkv_size=[48, 96])
    physical = Physical({"projections": 4e-6, "feed_forward": 2e-6, "attention": 1e-3, "activation": 1e-3})
    assert physical.predict(columns_of([both]))[0] == pytest.approx(physical.predict(columns_of(even)).sum())


# The published network


def test_the_mlp_learns_repeats_by_seed_and_leaves_the_global_generator_alone():
    columns, unseen = architectures(80), architectures(80, seed=1)
    measured = milliseconds(columns)
    state = torch.random.get_rng_state()
    fitted = [Mlp.fit(columns, measured, 128, seed, width=64, steps=400) for seed in (1, 1, 2)]
    assert torch.equal(torch.random.get_rng_state(), state)
    first, again, other = (mlp.predict(unseen) for mlp in fitted)
    assert (first == again).all()
    assert (first != other).any()
    untrained = Mlp.fit(columns, measured, 128, 1, width=64, steps=1)

    def mean_square(mlp: Mlp) -> float:
        return float(np.mean((mlp.predict(unseen) - milliseconds(unseen)) ** 2))

    assert mean_square(fitted[0]) < 0.9 * mean_square(untrained)  # the published rate of 1e-5 is slow


def test_the_mlp_is_trained_by_adam_on_the_mean_squared_error_of_latencies_in_units_of_200_ms():
    columns = architectures(6)
    before, after = (Mlp.fit(columns, milliseconds(columns), 128, 0, width=5, steps=steps).weights for steps in (0, 1))
    layers = [torch.nn.Linear(*w.shape[::-1]) for name, w in before.items() if name.endswith("weight")]
    network = torch.nn.Sequential(*(m for layer in layers[:-1] for m in (layer, torch.nn.ReLU())), layers[-1])
    network.load_state_dict(dict(zip(network.state_dict(), before.values(), strict=True)))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-5)
    x = np.stack([columns["hidden_size"] / 768, columns["num_hidden_layers"] / 12, columns["intermediate_size"] / 3072,
                  columns["qkv_size"] / 768], axis=1)  # fmt: skip
    target = torch.tensor(milliseconds(columns) / 200).float()
    (network(torch.tensor(x).float())[:, 0] - target).square().mean().backward()
    optimizer.step()
    for ours, reference in zip(after.values(), network.parameters(), strict=True):
        torch.testing.assert_close(ours, reference.detach(), rtol=0, atol=2e-7)


@pytest.mark.parametrize("name", ["time.pt", "predictor.safetensors"])
def test_the_mlp_reads_back_from_both_formats(tmp_path, name):
    columns = architectures(20)
    fitted = TINY(columns, milliseconds(columns), 128, 0)
    fitted.save(tmp_path / name)
    assert (Mlp.load(tmp_path / name).predict(columns) == fitted.predict(columns)).all()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_weights_that_are_no_predictor_are_refused_by_file(tmp_path):
    weights = TINY(architectures(10), np.ones(10), 128, 0).weights
    for name, content, message in (
        ("short.pt", {k: v for k, v in weights.items() if "predict" not in k}, "expected|has the weights"),
        ("wide.pt", {**weights, "first_layer.weight": torch.ones(8, 10)}, r"is \(8, 10\); expected 4 columns"),
        ("list.pt", [1, 2], "no latency predictor"),
        ("code.pt", {"a": Random}, "no latency predictor"),
    ):
        torch.save(content, tmp_path / name)
        with pytest.raises(ValueError, match=rf"{name}: .*({message})"):
            Mlp.load(tmp_path / name)
    (tmp_path / "text.pt").write_text("no weights")
    for missing in ("text.pt", "none.pt", "none.safetensors"):
        with pytest.raises(ValueError, match=f"{missing}: is no latency predictor's weights"):
            Mlp.load(tmp_path / missing)


# The best of them


def test_the_way_with_the_least_error_on_held_out_rows_is_kept_and_fitted_to_all():
    columns = architectures(60)
    ways = {**WAYS, "mlp": TINY}
    best, results = fit_best(columns, milliseconds(columns, noise=0.01), 128, ways=ways)
    assert isinstance(best, Physical)
    assert results[0].kind == "physical"
    assert [r.mape_pct for r in results] == sorted(r.mape_pct for r in results)
    assert best == Physical.fit(columns, milliseconds(columns, noise=0.01), 128)
    in_a_line = 2 + Flops(128).predict(columns) / 1e8 * (1 + 0.05 * np.random.default_rng(1).standard_normal(60))
    best, _ = fit_best(columns, in_a_line, 128, ways=ways)
    assert isinstance(best, FlopsLine)


def test_a_row_has_no_part_in_its_own_prediction_and_errors_are_those_of_the_predictions():
    columns = architectures(40)
    measured = milliseconds(columns)
    changed = measured.copy()
    changed[7] *= 50
    (first, *_), (second, *_) = (
        fit_best(columns, y, 128, ways={"physical": Physical.fit})[1] for y in (measured, changed)
    )
    assert first.predicted_ms[7] == second.predicted_ms[7]
    assert first.predicted_ms != second.predicted_ms
    error = np.abs(np.array(second.predicted_ms) / changed - 1) * 100
    assert second.mape_pct == pytest.approx(error.mean())
    assert second.p95_error_pct == pytest.approx(np.quantile(error, 0.95))
    assert second.measured_ms == changed.tolist()


def test_one_prediction_for_all_orders_nothing():
    assert held_out("constant", [1.0, 2.0, 4.0], [2.0, 2.0, 2.0]).spearman == 0
    assert held_out("right", [1.0, 2.0, 4.0], [1.1, 2.0, 3.0]).spearman == 1


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        (np.ones(9), "9 measured architectures for 5 folds; measure at least 10"),
        (np.zeros(12), "positive numbers; one is"),
        (np.full(12, np.nan), "positive numbers; one is nan"),
        (np.full(12, np.inf), "positive numbers; one is inf"),
    ],
)
def test_too_few_and_impossible_times_are_refused(measured, message):
    with pytest.raises(ValueError, match=message):
        fit_best(architectures(len(measured)), measured, 128)


# As a folder


@pytest.mark.parametrize("kind", WAYS)
def test_a_saved_predictor_is_the_same_predictor(tmp_path, kind):
    columns = architectures(20)
    ways = {kind: TINY if kind == "mlp" else WAYS[kind]}
    fitted, results = fit_best(columns, milliseconds(columns), 128, ways=ways, folds=2)
    saved = LatencyPredictor(fitted, CONDITIONS, results, 1.5, {"bert-base": 243.0})
    saved.save(tmp_path / "p")
    loaded = LatencyPredictor.load(tmp_path / "p")
    assert (loaded.predict(columns) == fitted.predict(columns)).all()
    assert loaded.predict(rows(columns, [3]))[0] == pytest.approx(fitted.predict(columns)[3], rel=1e-5)
    for name in ("conditions", "held_out", "repeat_noise_pct", "reference_ms"):
        assert getattr(loaded, name) == getattr(saved, name)


def test_another_machine_thread_count_batch_or_length_is_refused_with_every_difference():
    CONDITIONS.check(replace(CONDITIONS))
    with pytest.raises(ValueError, match="measured with threads 1, not 2, seq_len 128, not 64; measure again"):
        CONDITIONS.check(replace(CONDITIONS, threads=2, seq_len=64))
    for change in ({"cpu": "another"}, {"batch_size": 8}, {"float32_matmul_precision": "highest"}, {"flavour": "kd"}):
        with pytest.raises(ValueError, match=f"measured with {next(iter(change))} "):
            CONDITIONS.check(replace(CONDITIONS, **change))


def test_a_folder_that_holds_no_predictor_is_refused_by_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"predictor\.json: .* make one with the stage latency_predictor"):
        LatencyPredictor.load(tmp_path)
    records = ({}, [], {"kind": "forest", "fitted": {}}, {"kind": "mlp"}, UNKNOWN_FEATURE)
    for text in ("{", *map(json.dumps, records)):
        (tmp_path / PREDICTOR_FILE).write_text(text)
        with pytest.raises(ValueError, match=r"predictor\.json: is no latency predictor"):
            LatencyPredictor.load(tmp_path)
