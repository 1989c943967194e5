"""The formulas' part of a page tells from the runs' tables what was tried, and draws what was found."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from compresskit import tracking
from compresskit.stages import formula_searches
from compresskit.stages.formula_searches import SETTINGS

FORMULAS = ["tanh(linear4_2(gelu(linear4_2(x,wb1)),wb2))", "linear1_2(relu(mul(linear1_2(x,wb1),x)),wb2)"]
TRIALS = pd.DataFrame(
    [(True, 1, 0.9, 70, "", 3, 5), (False, 0, 0.8, 72, "", 1, 0), (False, 0, 0.6, 71, "", 0, 0),
     (False, 1, 0.7, 70, "", 2, 1), (False, 0, 0.0, 70, "the loss is nan", 0, 0)],
    columns=["chosen", "round", "score", "parameters", "reason", "duplicates", "rejected"],
)  # fmt: skip


@pytest.fixture
def found(store) -> dict:
    """A stage of a search as a pipeline's variables name it, collected from its run."""
    run = tracking.start("formula_search", "formula_search", "search", dict.fromkeys(SETTINGS, 7))
    run.table("candidates", TRIALS)
    run.table("classifiers", pd.DataFrame({"node": ["root"], "held-out accuracy": [0.75]}))
    run.finish({"formulas": FORMULAS, "trials_per_minute": 1.5})
    return formula_searches.collect({"first": f"runs:/{run.run_id}", "second": "", "task": "sst2"})


def test_the_section_tells_what_was_tried_and_found_and_shows_pictures(found, tmp_path):
    found = json.loads(json.dumps(found))
    formula_searches.draw(found, tmp_path / "page.md")
    text = formula_searches.section(found, "page")
    lines = text.splitlines()
    assert "| first | 5 | 1 | 6 | 6 | 1.50 | 0.6000 | 0.8000 | 0.9000 | 0.75 | 0 |" in lines
    assert f"| 2 | `{FORMULAS[1]}` |" in lines
    pictures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert pictures == ["page-first.png", "page-trees.png"]
    assert all(f"]({name})" in text for name in pictures)


def test_without_searches_there_is_no_section_and_a_folder_is_no_search(store):
    assert formula_searches.section(formula_searches.collect({"task": "sst2"}), "page") == ""
    with pytest.raises(ValueError, match="first is 'folder'; expected runs:/<id> of the stage formula_search"):
        formula_searches.collect({"first": "folder"})
