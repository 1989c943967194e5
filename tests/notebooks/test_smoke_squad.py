"""The notebooks on questions, at a few steps, in one pipeline."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from compresskit import tracking

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_the_smoke_pipeline_on_questions_ends_with_two_rows_on_a_leaderboard_of_its_own(store):
    for folder in ("notebooks", "params"):
        shutil.copytree(ROOT / folder, store / folder, dirs_exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COMPRESSKIT_HEADLESS": "1"}
    command = [sys.executable, "-m", "compresskit.cli", "pipeline", "params/pipelines/smoke-squad.yaml"]
    done = subprocess.run(command, cwd=store, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = tracking.leaderboard_table("squad1-bundled").set_index("name")
    assert set(rows.index) == {"baseline-teacher-42", "tinybert-student-42"}
    assert rows["rows"].tolist() == [200, 200]
    assert (rows["score_pct"] == rows["f1_pct"]).all()
    assert rows["exact_match_pct"].le(rows["f1_pct"]).all()


@pytest.mark.long
def test_the_smoke_pipeline_of_dynamic_tinybert_puts_chosen_lengths_on_the_leaderboard(store):
    for folder in ("notebooks", "params"):
        shutil.copytree(ROOT / folder, store / folder, dirs_exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COMPRESSKIT_HEADLESS": "1"}
    command = [sys.executable, "-m", "compresskit.cli", "pipeline", "params/pipelines/smoke-dynamic-tinybert.yaml"]
    done = subprocess.run(command, cwd=store, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = tracking.leaderboard_table("squad1-bundled").set_index("variant")
    assert set(rows.index) == {"teacher", "adaptive", "within1"}
    assert rows.loc["within1", "gflops"] <= rows.loc["adaptive", "gflops"]
