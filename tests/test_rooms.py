"""The rooms of the package and the arrows allowed between them: crafts below, stages above, no circle.

An arrow is an import anywhere in a module: at its top, inside a function, or for type checking only. A new arrow or
room is a decision: change the tables in the same commit and say why.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase as fnmatch
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "compresskit"

CRAFTS = {"kernels", "data", "pruning", "tracking", "models", "training", "evaluation", "search"}
ARROWS: dict[str, set[str]] = {  # room -> the rooms it may import; the package's own __init__.py is the room ""
    "": set(),
    "kernels": set(),
    "data": set(),
    "pruning": set(),
    "tracking": set(),
    "models": {"kernels"},
    "training": {"kernels", "pruning"},
    "evaluation": {"data", "pruning"},
    "search": {"models"},
    "stages": CRAFTS,
    "running": {"stages", "tracking"},
    "cli": {"running", "stages"},
}
OWNERS = {
    "mlflow": "tracking",
    "papermill": "running",
    "numba": "kernels",
}  # heavy libraries, and the one room that may import each
NO_ROOM = re.compile(r"(^|_)(utils?|common|helpers?)(_|$)")  # a helper lives with its first user


def modules(package: Path) -> dict[str, Path]:
    """Dotted name, without the package's own, of every module: "" is the package, "models.bert" a module in a room."""
    found = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path) -> Iterator[str]:
    """Absolute dotted name of everything a module imports; `from a import b` gives a.b, be b a module or not."""
    package = f"compresskit.{name}".split(".")[: None if path.name == "__init__.py" else -1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            yield from (".".join(filter(None, [*above, node.module, alias.name])) for alias in node.names)
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__"):
            yield from (str(given.value) for given in node.args[:1] if isinstance(given, ast.Constant))


def called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def room(name: str) -> str:
    return name.split(".")[0]


def faults(package: Path) -> set[str]:
    """Every breach of the plan, one sentence each."""
    known = modules(package)
    found, graph = set(), {name: set() for name in known}
    for name, path in known.items():
        here = room(name)
        if here not in ARROWS:
            found.add(f"{name} is in no room of the plan")
        if any(NO_ROOM.search(part) for part in name.split(".")):
            found.add(f"{name} is a drawer for everything; what it holds belongs to its first user")
        for target in imports(name, path):
            top, _, inside = target.partition(".")
            if top in OWNERS and OWNERS[top] != here:
                found.add(f"{name} imports {top}, which only {OWNERS[top]} may")
            if top == "compresskit":
                while inside and inside not in known:  # from a.b import function: the module is a.b
                    inside = inside.rpartition(".")[0]
                graph[name] |= {inside} - {name}
                if room(inside) not in ARROWS.get(here, set()) | {here, ""}:
                    found.add(f"{name} imports {inside}, but {here} must not know {room(inside)}")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.add(f"imports go in a circle: {' -> '.join(sorted(set(error.args[1])))}")
    return found


def test_every_import_follows_the_arrows_of_the_plan():
    assert faults(PACKAGE) == set()


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        (
            {"models/planted.py": "from compresskit.data import glue"},
            "models.planted imports data.*, but models must not know data",
        ),
        (
            {"kernels/planted.py": "import compresskit.models.bert"},
            "kernels.planted imports models.*, but kernels must not know models",
        ),
        (
            {"training/planted.py": "def step():\n    import compresskit.stages"},
            "training.planted imports stages, but training must not know stages",
        ),
        (
            {"search/planted.py": "import typing\nif typing.TYPE_CHECKING:\n    from ..training import loop"},
            "search.planted imports training.*, but search must not know training",
        ),
        (
            {"pruning/planted/__init__.py": "from ...evaluation.glue import score"},
            "pruning.planted imports evaluation.*, but pruning must not know evaluation",
        ),
        (
            {"evaluation/planted.py": "import importlib\nimportlib.import_module('compresskit.search')"},
            "evaluation.planted imports search, but evaluation must not know search",
        ),
        (
            {"__init__.py": "from .models import CompactBertConfig"},
            " imports models, but  must not know models",
        ),
        (
            {"tracking/planted.py": "from compresskit.stages import distill"},
            "tracking.planted imports stages*, but tracking must not know stages",
        ),
        ({"training/planted.py": "import mlflow"}, "training.planted imports mlflow, which only tracking may"),
        (
            {"stages/planted.py": "def log():\n    from mlflow.tracking import MlflowClient"},
            "stages.planted imports mlflow, which only tracking may",
        ),
        ({"cli.py": "import papermill as pm"}, "cli imports papermill, which only running may"),
        ({"models/planted.py": "from numba import njit"}, "models.planted imports numba, which only kernels may"),
        ({"data/utils.py": ""}, "data.utils is a drawer for everything*"),
        ({"models/shape_helpers.py": ""}, "models.shape_helpers is a drawer for everything*"),
        ({"common/__init__.py": ""}, "common is in no room of the plan"),
        ({"extras.py": ""}, "extras is in no room of the plan"),
        (
            {"data/a.py": "from . import b", "data/b.py": "def later():\n    from .a import something"},
            "imports go in a circle: data.a -> data.b",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_planted_import_is_caught(tmp_path, files, fault):
    tree = tmp_path / "compresskit"
    shutil.copytree(PACKAGE, tree, ignore=shutil.ignore_patterns("__pycache__"))
    for name, source in files.items():
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_text(source)
    planted = faults(tree)
    assert [sentence for sentence in planted if fnmatch(sentence, fault)], planted


def test_an_allowed_import_is_no_fault(tmp_path):
    tree = tmp_path / "compresskit"
    shutil.copytree(PACKAGE, tree, ignore=shutil.ignore_patterns("__pycache__"))
    crafts = "\n".join(f"import compresskit.{craft}" for craft in sorted(CRAFTS - {"tracking"}))
    (tree / "stages" / "planted.py").write_text(f"import torch\nfrom . import __doc__ as doc\n{crafts}")
    assert faults(tree) == faults(PACKAGE)


def test_the_models_load_torch_and_transformers_but_no_heavy_optional_library():
    program = "import sys, compresskit.models; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert {"torch", "transformers"} <= loaded
    assert not loaded & {"mlflow", "papermill", "numba", "matplotlib"}
