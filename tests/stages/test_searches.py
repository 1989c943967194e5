"""The searches' part of a page: what was found is told from the runs' tables, and compared task by task."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from compresskit import tracking
from compresskit.stages import searches

CANDIDATES = pd.DataFrame(
    [(True, 2, "evolved", 1.0, 0.9), (False, 1, "random", 1.0, 0.8), (False, 1, "random", 1.0, 0.6),
     (False, 1, "random", 0.5, 0.7)],
    columns=["chosen", "generation", "method", "share", "score"],
)  # fmt: skip
FINALISTS = pd.DataFrame(
    [("1", "3-64-128-4-64", 2.0, 2.1, True), ("2", "3-60-128-4-64", 1.9, 1.8, False),
     ("median", "3-32-96-4-64", 2.2, 2.0, False), ("uniform", "4-48-192-4-48", 2.1, 2.15, False)],
    columns=["name", "architecture", "predicted_ms", "measured_ms", "chosen"],
)  # fmt: skip
SETTINGS = {"speedup": "2", "speedup_over": "supernet", "generations": '["random", "evolved"]', "generation_size": "2",
            "halvings": "1", "score_on": '["sst2"]', "max_steps": "9"}  # fmt: skip


@pytest.fixture
def found(store) -> dict:
    """A search as a pipeline's variables name it, collected from its run."""
    run = tracking.start("search", "search", "search", {**SETTINGS, "other": 1})
    run.table("candidates", CANDIDATES)
    run.table("finalists", FINALISTS)
    run.finish({"limits_ms": [1.7, 2.2]})
    return searches.collect({"slow": f"runs:/{run.run_id}", "task": "sst2"})


def test_what_a_search_tried_survives_the_pages_json(found):
    found = json.loads(json.dumps(found))
    assert list(found) == ["slow"]
    assert found["slow"]["settings"] == SETTINGS
    candidates, finalists = searches.tables(found["slow"])
    pd.testing.assert_frame_equal(candidates, CANDIDATES, check_dtype=False)
    pd.testing.assert_frame_equal(finalists, FINALISTS, check_dtype=False)


def test_the_section_tells_the_networks_their_latencies_and_what_the_search_is_worth(found, tmp_path):
    searches.draw(found, tmp_path / "page.md")
    text = searches.section(found, ["mrpc"], lambda task, *models: f"{task}: {', '.join(models)}", "page")
    for line in (
        "| slow | winner | 3-64-128-4-64 | 2.00 | 2.10 | 1.70 – 2.20 | 0.9000 (0.7000) |",
        "| slow | median | 3-32-96-4-64 | 2.20 | 2.00 | 1.70 – 2.20 |  |",
        "| slow | uniform | 4-48-192-4-48 | 2.10 | 2.15 | 1.70 – 2.20 |  |",
        "| slow | uniform | mrpc: autotinybert-slow, baseline-slow-uniform |",
    ):
        assert line in text.splitlines()
    pictures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert pictures == ["page-slow-finalists.png", "page-slow-generations.png"]
    assert all(f"]({name})" in text for name in pictures)


def test_without_searches_there_is_no_section_and_a_folder_is_no_search(store):
    assert searches.section(searches.collect({"task": "sst2"}), ["sst2"], lambda *_: "", "page") == ""
    with pytest.raises(ValueError, match="fast is 'folder'; expected runs:/<id> of the stage search"):
        searches.collect({"fast": "folder"})
