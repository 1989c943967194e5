"""What says what to install agrees: pyproject.toml (ranges), constraints.txt (pins), environment.yml (for conda)."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
PINS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line.strip() and not line.startswith("#")
]
EXTRAS = PROJECT["optional-dependencies"]
DEPENDENCIES = [Requirement(text) for group in (PROJECT["dependencies"], *EXTRAS.values()) for text in group]


def pinned(name: str) -> str | None:
    """The version constraints.txt fixes for a distribution."""
    found = [str(pin.specifier) for pin in PINS if canonicalize_name(pin.name) == canonicalize_name(name)]
    return found[0].removeprefix("==") if found else None


@pytest.mark.parametrize("dependency", DEPENDENCIES, ids=str)
def test_a_dependency_has_a_lower_bound_and_a_pin_that_satisfies_its_range(dependency):
    assert any(bound.operator in (">=", "~=", "==") for bound in dependency.specifier), "no lower bound"
    version = pinned(dependency.name)
    assert version is not None, f"{dependency.name} is not in constraints.txt"
    assert dependency.specifier.contains(version), f"constraints.txt pins {version}"


def test_every_pin_is_one_exact_version_and_stands_once():
    assert [str(pin) for pin in PINS if [bound.operator for bound in pin.specifier] != ["=="]] == []
    names = [canonicalize_name(pin.name) for pin in PINS]
    assert len(names) == len(set(names))


def test_torch_is_pinned_to_the_version_everything_was_measured_with():
    assert pinned("torch") == "2.13.0"


def test_the_conda_environment_has_the_projects_name_and_python_range():
    assert ENVIRONMENT["name"] == PROJECT["name"]
    assert ENVIRONMENT["channels"] == ["conda-forge"]
    python = [Requirement(text) for text in ENVIRONMENT["dependencies"] if str(text).startswith("python")]
    assert [requirement.specifier for requirement in python] == [SpecifierSet(PROJECT["requires-python"])]


def test_the_conda_environment_leaves_every_package_to_the_project_and_its_pins():
    by_pip = [entry["pip"] for entry in ENVIRONMENT["dependencies"] if isinstance(entry, dict)]
    assert by_pip == [["-c constraints.txt", "-e .[dev]"]]
    by_conda = [text for text in ENVIRONMENT["dependencies"] if isinstance(text, str)]
    assert sorted(Requirement(text).name for text in by_conda) == ["pip", "python"]
    assert "dev" in EXTRAS


def test_no_module_uses_a_number_type_that_numpy_has_withdrawn():
    """AutoTinyBERT's code stops on np.int and np.bool."""
    withdrawn = re.compile(r"\b(np|numpy)\.(int|float|bool|object|complex|str|long|unicode)\b")
    files = [*(ROOT / "compresskit").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    assert len(files) > 100
    assert [str(path) for path in files if withdrawn.search(path.read_text(encoding="utf-8"))] == []
