"""A page of results says what its data say: the table is rebuilt, the scores are computed again."""

import json
from pathlib import Path

import numpy as np
import pytest

from compresskit.evaluation.pareto import front
from compresskit.stages import lengths_page, report, study
from compresskit.stages.tasks import task_named

# sparse_speed.md has its data in benchmarks/results: tests/test_sparse_speed.py
ALL = sorted(p for p in (Path(__file__).parents[2] / "docs/results").glob("*.md") if p.stem != "sparse_speed")


def data_of(page: Path) -> dict:
    return json.loads(page.with_suffix(".json").read_text())


STUDIES = [page for page in ALL if "pipeline" in data_of(page)]
LENGTHS = [page for page in ALL if data_of(page).get("kind") == lengths_page.KIND]
by_study = pytest.mark.parametrize("page", STUDIES, ids=lambda page: page.stem)
by_page = pytest.mark.parametrize(
    "page", [page for page in ALL if page not in STUDIES + LENGTHS], ids=lambda page: page.stem
)


def test_there_are_pages_of_both_kinds():
    assert 0 < len(STUDIES) < len(ALL)


@by_study
def test_a_study_is_what_its_data_make_and_is_drawn(page):
    data = data_of(page)
    assert page.read_text() == study.page(data, page.stem)
    assert page.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    for found in data["tasks"].values():
        assert {name: len(logits) for name, of_name in found["logits"].items() for logits in of_name.values()} == {
            name: len(found["labels"]) for name in found["models"]
        }


@pytest.mark.parametrize("page", LENGTHS, ids=lambda page: page.stem)
def test_a_page_on_lengths_is_what_its_data_make_and_is_drawn(page):
    data = data_of(page)
    assert page.read_text() == lengths_page.page(data, page.stem)
    assert page.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    rows = {len(values) for scores in data["scores"].values() for values in scores.values()}
    assert len(rows) == 1


@by_page
def test_the_page_is_what_its_data_make(page):
    assert page.read_text() == report.page(data_of(page), page.stem)


@by_page
def test_the_scores_follow_from_the_predictions(page):
    data = data_of(page)
    scores = report.recomputed_scores(data)
    assert len(scores) == len(data["rows"]) >= 4
    for row in data["rows"]:
        assert row["score_pct"] == pytest.approx(scores[row["model"]], abs=1e-3)
        assert row["score_low_pct"] <= row["score_pct"] <= row["score_high_pct"]
        assert row["rows"] == len(data[task_named(data["task"]).recorded[0]])


@by_page
def test_the_latencies_follow_from_the_raw_timings(page):
    data = data_of(page)
    for row in data["rows"]:
        samples = data["samples_ms"][row["model"]]
        assert row["latency_p50_ms"] == pytest.approx(np.median(samples), abs=1e-3)
        assert row["latency_p95_ms"] == pytest.approx(np.quantile(samples, 0.95), abs=1e-3)


@by_page
def test_the_front_is_the_front(page):
    rows = data_of(page)["rows"]
    points = [[row["latency_p50_ms"], row["score_pct"]] for row in rows]
    assert [row["front"] for row in rows] == front(points).tolist()


@by_page
def test_both_plots_are_there(page):
    for plot in ("pareto", "latency"):
        assert page.with_name(f"{page.stem}-{plot}.png").read_bytes().startswith(b"\x89PNG")
