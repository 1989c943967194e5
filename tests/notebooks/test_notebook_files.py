import ast
import json
from pathlib import Path

import jupytext
import pytest

from compresskit.stages.params import params_class, stage_names

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
by_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def test_every_stage_has_a_notebook_a_smoke_file_and_a_place_in_the_smoke_pipeline():
    stages = {
        "corpus",
        "pretrain",
        "general_distill",
        "multitask",
        "augment",
        "finetune",
        "evaluate",
        "search",
        "formula_search",
        "distill",
        "prune",
        "lengthdrop",
        "sparsity_report",
        "latency",
        "latency_predictor",
        "length_search",
        "explore",
    }
    assert {path.stem for path in NOTEBOOKS} == set(stage_names()) == stages
    smoke = (ROOT / "params/pipelines/smoke.yaml").read_text()
    for stage in stages:
        assert (ROOT / f"params/smoke-{stage}.yaml").is_file()
        assert f"smoke-{stage}.yaml" in smoke


@by_notebook
def test_the_first_code_cell_alone_is_tagged_and_holds_the_stages_parameters(path):
    first, *others = code_cells(path)
    assert first["metadata"].get("tags") == ["parameters"]
    assert not any("parameters" in cell["metadata"].get("tags", []) for cell in others)
    namespace: dict = {}
    exec(source(first), namespace)
    defaults = {name: value for name, value in namespace.items() if not name.startswith("__")}
    expected = params_class(path.stem)()
    assert list(defaults) == list(type(expected).model_fields)
    assert defaults == expected.model_dump()
    assert [type(value) for value in defaults.values()] == [type(value) for value in expected.model_dump().values()]
    for line in source(first).splitlines():
        assert "  # " in line, f"{line!r} has no comment"


@by_notebook
def test_a_notebook_has_no_outputs_no_definitions_and_no_loops(path):
    for cell in code_cells(path):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        for node in ast.walk(ast.parse(source(cell))):
            assert not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda | ast.For | ast.While)


@by_notebook
def test_a_notebook_explains_itself_and_names_a_kernel(path):
    notebook = json.loads(path.read_text())
    first = notebook["cells"][0]
    assert first["cell_type"] == "markdown"
    for word in ("# ", "**In:**", "**Out:**"):
        assert word in source(first)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"


@by_notebook
def test_notebook_and_paired_script_say_the_same(path):
    notebook, script = jupytext.read(path), jupytext.read(path.with_suffix(".py"))
    assert [(c.cell_type, c.source, c.metadata.get("tags")) for c in notebook.cells] == [
        (c.cell_type, c.source, c.metadata.get("tags")) for c in script.cells
    ]
