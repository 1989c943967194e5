"""Every notebook at a few steps, in one pipeline, without a network; then what it left behind."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from compresskit import tracking

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.xdist_group("smoke")


def compresskit(project: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "compresskit.cli", *arguments], cwd=project, capture_output=True, text=True, timeout=900
    )


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A project folder in which the smoke pipeline has run."""
    project = tmp_path_factory.mktemp("project")
    for folder in ("notebooks", "params"):
        shutil.copytree(ROOT / folder, project / folder)
    changes = {
        "COMPRESSKIT_HOME": str(project),
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests/offline"), str(ROOT)]),
        "OFFLINE_LOG": str(project / "network.log"),
        "OMP_NUM_THREADS": "1",
    }
    before = {name: os.environ.get(name) for name in (*changes, "MLFLOW_TRACKING_URI")}
    os.environ.update(changes)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    done = compresskit(project, "pipeline", "params/pipelines/smoke.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    yield project
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def runs(experiment: str) -> list:
    from compresskit.tracking.store import client, experiment_id

    return list(client().search_runs([experiment_id(experiment)]))


def test_no_stage_asks_for_the_network(smoke):
    assert not (smoke / "network.log").exists(), (smoke / "network.log").read_text()


def test_the_network_guard_refuses_and_notes(smoke, tmp_path):
    code = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"
    environment = {**os.environ, "OFFLINE_LOG": str(tmp_path / "log")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no network in tests" in done.stderr
    assert (tmp_path / "log").read_text().split() == ["192.0.2.1"]


def test_every_stage_finished_below_the_pipelines_run_and_kept_its_notebook(smoke):
    from compresskit.tracking.store import client

    found = {run.data.tags["stage"]: run for run in runs("smoke/sst2-bundled")}
    parent = found.pop("pipeline")
    assert set(found) == {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    for stage, run in found.items():
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        kept = {artifact.path for artifact in client().list_artifacts(run.info.run_id, "notebook")}
        assert kept == {f"notebook/{stage}.ipynb", f"notebook/{stage}.html"}


def test_executed_notebooks_show_tables_and_figures_and_no_error(smoke):
    wanted = {"evaluate": 1, "search": 1, "formula_search": 4, "latency": 2, "sparsity_report": 1, "distill": 2,
              "explore": 2, "general_distill": 1, "multitask": 1, "length_search": 4}  # fmt: skip
    for run in runs("smoke/sst2-bundled"):
        stage = run.data.tags["stage"]
        if stage == "pipeline":
            continue
        path = tracking.resolve(f"runs:/{run.info.run_id}/notebook") / f"{stage}.ipynb"
        outputs = [output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", [])]
        assert not [output for output in outputs if output.output_type == "error"]
        pictures = [output for output in outputs if "image/png" in output.get("data", {})]
        assert len(pictures) >= wanted.get(stage, 0), stage


def test_leaderboard_rows_name_their_run_and_say_what_the_evaluation_measured(smoke):
    rows = tracking.leaderboard_table("sst2-bundled").set_index("name")
    assert set(rows.index) == {"baseline-teacher-42", "tinybert-student-42", "sparsebert-pruned-42",
                               "dynamic_tinybert-within1-42"}  # fmt: skip
    evaluation = next(run for run in runs("smoke/sst2-bundled") if run.data.tags["stage"] == "evaluate")
    measured = pd.read_json(
        tracking.resolve(f"runs:/{evaluation.info.run_id}/tables") / "models.json", orient="split"
    ).set_index("name")
    for name, row in rows.iterrows():
        expected = measured.loc[str(name).removesuffix("-42")]
        assert row["score_pct"] == pytest.approx(expected["score"] * 100, abs=1e-4)
        assert row["latency_p50_ms"] == pytest.approx(expected["latency_p50_ms"], abs=1e-4)
        assert row["params_m"] == pytest.approx(expected["parameters"] / 1e6, abs=1e-4)
        assert tracking.model_digest(row["model_uri"]) == row["model_digest"]
    assert rows.loc["sparsebert-pruned-42", "sparsity_pct"] == pytest.approx(80, abs=0.2)
    assert float(rows.loc["tinybert-student-42", "layers"]) == 1


def test_compare_prints_all_rows_and_fails_on_a_bound_that_does_not_hold(smoke, tmp_path):
    good = compresskit(smoke, "compare", "sst2-bundled", "--at-least", "models=4", "--out", str(tmp_path / "p.png"))
    assert good.returncode == 0, good.stderr
    assert good.stdout.count("-42") >= 4
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    bad = compresskit(smoke, "compare", "sst2-bundled", "--at-least", "models=5", "--at-least", "traceable=1")
    assert bad.returncode == 1
    assert "models is 4, wanted at least 5" in bad.stderr


def test_a_registered_model_exports_to_plain_bert_that_needs_no_compresskit(smoke, tmp_path):
    done = compresskit(smoke, "export", "models:/demo-teacher@latest", str(tmp_path / "bert"))
    assert done.returncode == 0, done.stderr
    code = (
        "import sys; sys.modules['compresskit'] = None\n"
        "from transformers import pipeline\n"
        f"print(pipeline('text-classification', {str(tmp_path / 'bert')!r})('the vinger is not good'))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "score" in answer.stdout


def test_papermill_alone_runs_a_notebook_with_a_params_file(smoke, tmp_path):
    command = ["papermill", "notebooks/sparsity_report.ipynb", str(tmp_path / "out.ipynb"), "-f"]
    done = subprocess.run(
        [sys.executable, "-m", *command, "params/smoke-sparsity_report.yaml"], cwd=smoke, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "encoder_sparsity" in (tmp_path / "out.ipynb").read_text()


def test_a_misspelt_name_handed_to_papermill_stops_the_notebook_with_a_suggestion(smoke, tmp_path):
    (tmp_path / "typo.yaml").write_text("modle: somewhere\n")
    command = [
        "papermill",
        "notebooks/sparsity_report.ipynb",
        str(tmp_path / "out.ipynb"),
        "-f",
        str(tmp_path / "typo.yaml"),
    ]
    done = subprocess.run([sys.executable, "-m", *command], cwd=smoke, capture_output=True, text=True)
    assert done.returncode == 1
    assert "did you mean 'model'" in done.stderr
