"""AutoTinyBERT's latency predictor, searcher and results files, as recorded from the original code."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from compresskit.models import CompactBertConfig
from compresskit.search import arch_text, files
from compresskit.search.predictor import Mlp
from compresskit.search.select import candidates, obeys_fast_rule, speedup_band
from compresskit.search.spaces import RELEASED_GRIDS, SPACES, columns_of, config_at, grid_size
from tests.oracle_cases import Case, oracle

SUPERNET = CompactBertConfig(num_hidden_layers=8)
STEPS = {  # of the released searcher's grid, by the names of its options
    "layer_num_space": ("num_hidden_layers", 1),
    "hidden_size_space": ("hidden_size", 16),
    "intermediate_size_space": ("intermediate_size", 32),
    "head_num_space": ("num_attention_heads", 1),
    "qkv_size_space": ("qkv_size", 12),
}


def spaces(options: dict[str, list[int]]) -> dict:
    """The grids of both flavours with the ranges of the original's options."""
    changes = {STEPS[name][0]: range(low, high + 1, STEPS[name][1]) for name, (low, high) in options.items()}
    return {
        flavour: SPACES[flavour](**{n: changes.get(n, values) for n, values in vars(space).items()})
        for flavour, space in RELEASED_GRIDS.items()
    }


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("autotinybert", "latency_predictor"), ids=str)
def test_the_published_predictor_gives_the_originals_features_and_latencies(case, tmp_path):
    torch.save(case.arrays("sd."), tmp_path / "time.pt")
    predictor = Mlp.load(tmp_path / "time.pt")
    archs = [arch_text.parse(str(row["arch"]), SUPERNET) for row in case.value("rows")]
    columns = columns_of(archs)
    features, predicted = Mlp.features(columns), predictor.predict(columns)
    fast = obeys_fast_rule(columns)
    for n in range(len(archs)):
        recorded = case.value("rows", n)
        case.check_value(
            "rows", n, "features", got=[type(a)(b) for a, b in zip(recorded["features"], features[n], strict=True)]
        )
        case.check_value("rows", n, "normalised", got=(features[n] / np.array(Mlp.NORM)).tolist())
        case.check_value("rows", n, "predicted_ms", got=float(predicted[n]))
        case.check_value("rows", n, "fast_rule", got=bool(fast[n]))
    case.check_value("rows_n", got=len(archs))
    case.check_value("feature_norm", got=list(Mlp.NORM))
    case.check_value("lat_norm", got=int(Mlp.UNIT_MS))
    files.write_latencies(tmp_path / "lat.tmp", [(archs[0], float(predicted[0]))])
    line = (tmp_path / "lat.tmp").read_text().rstrip("\n")
    case.check_text("dataset_line_example", got=line.replace("\t", "\\t"))  # recorded as a text in a text


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("autotinybert", "searcher"), ids=str)
def test_grids_and_candidate_files_are_those_of_the_original(case, tmp_path):
    for name, recorded in case.value("spaces").items():
        kd, mlm = (spaces(recorded["args"])[flavour] for flavour in ("kd", "mlm"))
        axes = {
            "layers": kd.num_hidden_layers,
            "hidden": kd.hidden_size,
            "ffn": kd.intermediate_size,
            "qkv": kd.qkv_size,
            "heads": mlm.num_attention_heads,
            # its table of q/k/v by heads lacks the last number of heads, so that such parents fail; ours has all
            "qkv_mlm_table": [64 * heads for heads in mlm.num_attention_heads][:-1],
        }
        case.check_value("spaces", name, "counts", got={axis: len(values) for axis, values in axes.items()})
        case.check_value("spaces", name, "first_last", got={axis: [v[0], v[-1]] for axis, v in axes.items()})
        case.check_value("spaces", name, "total_kd", got=grid_size(kd))
        case.check_value("spaces", name, "total_mlm", got=grid_size(mlm))

    network = re.search(r"network of case (\w+)", case.value("ran"))
    predictor = Mlp(Case(case.path.with_name(f"{network[1]}.json")).arrays("sd."))
    for n, run in enumerate(case.value("candidate_runs")):
        flavour = run["model"].lower()
        band = speedup_band(predictor.predict, run["base_latency"], run["latency_constraint"])
        found = candidates(spaces(run["space"])[flavour], SUPERNET, [band])
        configs = [config_at(found, i, SUPERNET) for i in range(len(found["hidden_size"]))]
        files.write_candidates(tmp_path / "candidates", configs, flavour)
        lines = (tmp_path / "candidates").read_text().splitlines()
        case.check_value("candidate_runs", n, "accepted_range_ms", got=[band.low, band.high])
        case.check_value("candidate_runs", n, "lines", got=lines)
        case.check_value("candidate_runs", n, "n", got=len(lines))
        case.check_value("candidate_runs", n, "n_fast", got=int(obeys_fast_rule(found).sum()))
        assert [c.key() for c in files.read_candidates(tmp_path / "candidates", SUPERNET)] == [c.key() for c in configs]


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("autotinybert", "arch_perfs"), ids=str)
def test_fitness_is_read_from_a_results_file_as_the_original_does(case, tmp_path):
    (tmp_path / "subbert.results").write_text(case.value("file"))
    results = files.read_results(tmp_path / "subbert.results")
    case.check_value("parsed", got=files.fitness(results, faithful=True))
    files.write_results(tmp_path / "again", results)
    assert (tmp_path / "again").read_text().split() == case.value("file").split()
