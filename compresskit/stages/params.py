"""A stage's parameters: one frozen class per stage, and the ways into it — a YAML file, `--set`, a notebook's cell.

YAML 1.1 and papermill hand over `5e-5` and `false` as text, and papermill takes a misspelt name for a new variable.
Everything passes through its class here before it is used.
"""

import ast
import hashlib
import importlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from compresskit import stages
from compresskit.stages.yaml_text import ParamsError, did_you_mean, parse_value, read_yaml


class Params(BaseModel):
    """Base of every stage's parameters: unknown names and ill-typed values are refused, and nothing changes later."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, protected_namespaces=()
    )
    results: ClassVar[tuple[str, ...]] = ("run_id", "model")  # what a later step may refer to as ${step.name}

    @classmethod
    def stage_name(cls) -> str:
        """SparsityReportParams -> sparsity_report."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__.removesuffix("Params")).lower()

    @field_validator("*", mode="before")
    @classmethod
    def _repair(cls, value: Any, info: ValidationInfo) -> Any:
        return _repaired(value, _kinds(cls.model_fields[info.field_name or ""].annotation))

    @classmethod
    def take(cls, namespace: Mapping[str, Any]) -> Self:
        """The parameters among a notebook's variables: `DistillParams.take(globals())`, after the parameters cell."""
        values = {name: namespace[name] for name in cls.model_fields if name in namespace}
        plain = bool | int | float | str | list | tuple | dict | None
        names = {n for n, value in namespace.items() if isinstance(value, plain) and not n.startswith("_")}
        unknown = names & _assigned_before(namespace, f"{cls.__name__}.take(") - {"In", "Out", *cls.model_fields}
        return cls.checked(values | {name: namespace[name] for name in sorted(unknown)}, lambda _: "notebook: ")

    @classmethod
    def load(cls, path: str | Path | None, changes: Iterable[str] = ()) -> Self:
        """A YAML file (none: the defaults) with `NAME=VALUE` changes on top; NAME may be `field.key`."""
        values, where = cls.read(path) if path is not None else ({}, lambda name: "")
        places = {}
        for change in changes:
            name, equals, text = change.partition("=")
            if not equals:
                raise ParamsError(f"--set {change}: expected NAME=VALUE")
            field = name.partition(".")[0]
            values = cls.changed(values, name, parse_value(text, cls._is_text(name)), f"--set {change}")
            places[field] = f"--set {change}: "
        return cls.checked(values, lambda name: places.get(name) or where(name))

    @classmethod
    def read(cls, path: str | Path) -> tuple[dict[str, Any], Callable[[str], str]]:
        """The values in a file, unchecked, and a function from a name to where it stands ("file line 3: ")."""
        owner = _owner(Path(path))
        if owner and owner != cls.stage_name() and cls.stage_name() in stage_names():
            raise ParamsError(
                f"{path} holds parameters of stage {owner!r}, not of {cls.stage_name()!r}; "
                f"did you mean `compresskit run {owner} -p {path}`?"
            )
        values, lines = read_yaml(path)
        where = {name: f"{path} line {line}: " for name, line in lines.items()}
        return values, lambda name: where.get(name, f"{path}: ")

    @classmethod
    def changed(cls, values: Mapping[str, Any], name: str, value: Any, what: str) -> dict[str, Any]:
        """`values` with one more; `field.key` replaces one entry of a field that is a mapping."""
        field, dot, key = name.partition(".")
        if not dot:
            return {**values, field: value}
        known = cls.model_fields.get(field)
        default = {} if known is None or known.is_required() else known.get_default(call_default_factory=True)
        before = values.get(field, default)
        if not isinstance(before, Mapping):
            raise ParamsError(f"{what}: {field!r} is no mapping, so it has no {key!r}")
        return {**values, field: {**before, key: value}}

    @classmethod
    def checked(cls, values: Mapping[str, Any], where: Callable[[str], str] = lambda name: "") -> Self:
        """Parameters from plain values.  Raises ParamsError, one sentence per wrong value, each led by where(name)."""
        wrong = cls.problems(values)
        if wrong:
            raise ParamsError("; ".join(where(name) + text for name, text in wrong.items()) + cls._fits(values))
        return cls.model_validate(dict(values))

    @classmethod
    def problems(cls, values: Mapping[str, Any]) -> dict[str, str]:
        """What is wrong with which value; empty when all are good."""
        try:
            cls.model_validate(dict(values))
        except ValidationError as error:
            wrong: dict[str, str] = {}
            for problem in error.errors():
                name = str(problem["loc"][0]) if problem["loc"] else ""
                text = cls._sentence(name, problem)
                wrong[name] = f"{wrong[name]}, or {text.removeprefix(repr(name) + ' ')}" if name in wrong else text
            return wrong
        return {}

    def canonical(self) -> str:
        """The values as JSON text with sorted names: equal for equal parameters."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    def task_key(self, stage: str | None = None) -> str:
        """16 hex digits that name this task: stage, parameters and the package's version."""
        text = "\n".join((stage or self.stage_name(), version("compresskit"), self.canonical()))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @classmethod
    def _sentence(cls, name: str, problem: Any) -> str:
        if problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1:
            return f"{name!r} is no parameter of {cls.stage_name()}{did_you_mean(name, cls.model_fields)}"
        if problem["type"] == "missing":
            return f"{name!r} is missing: {cls.stage_name()} has no default for it"
        text = re.sub(r"^(Value error, |Input )", "", problem["msg"])
        if name:
            texts = problem["type"] == "string_type" or "'" in problem.get("ctx", {}).get("expected", "")
            quotes = texts and problem["input"] is not None and not isinstance(problem["input"], str)
            remedy = "; put it in quotes" if quotes else ""
            return f"{name!r} {text} (it is {json.dumps(problem['input'], default=str)}){remedy}"
        return text

    @classmethod
    def _fits(cls, values: Mapping[str, Any]) -> str:
        """The stage whose parameters all these names are, when some are not ours."""
        if set(values) <= set(cls.model_fields) or cls.stage_name() not in stage_names():
            return ""
        other = next((name for name in stage_names() if set(values) <= _declared(name)), None)
        return f"; all of these are parameters of {other}: did you mean `compresskit run {other}`?" if other else ""

    @classmethod
    def _is_text(cls, name: str) -> bool:
        """Whether a field, or the entry `field.key`, takes nothing but text: `--set name=007` stays what was typed."""
        name, _, key = name.partition(".")
        field = cls.model_fields.get(name)
        if field is None or (not key and get_origin(field.annotation) in (dict, list)):
            return False
        return _kinds(field.annotation) <= {str, Path, type(None)}


def stage_names() -> list[str]:
    """The stages with parameters: modules of compresskit.stages whose text defines `<Name>Params`; none is imported."""
    files = (file for folder in stages.__path__ for file in Path(folder).glob("*.py"))
    return sorted(f.stem for f in files if re.search(rf"^class {_class_name(f.stem)}\(", f.read_text(), re.MULTILINE))


def _declared(stage: str) -> set[str]:
    """The names a stage's class declares, read from its text: importing every stage takes 10 s."""
    file = next(file for folder in stages.__path__ if (file := Path(folder, f"{stage}.py")).exists())
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ClassDef) and node.name == _class_name(stage):
            fields = (field.target for field in node.body if isinstance(field, ast.AnnAssign))
            return {target.id for target in fields if isinstance(target, ast.Name)}
    return set()


def stage_module(stage: str) -> ModuleType:
    """compresskit.stages.<stage>."""
    if stage not in stage_names():
        raise ParamsError(f"{stage!r} is no stage{did_you_mean(stage, stage_names())}")
    return importlib.import_module(f"compresskit.stages.{stage}")


def params_class(stage: str) -> type[Params]:
    """The class of a stage's parameters: sparsity_report -> SparsityReportParams."""
    return getattr(stage_module(stage), _class_name(stage))


def _class_name(stage: str) -> str:
    return "".join(part.capitalize() for part in stage.split("_")) + "Params"


def _owner(path: Path) -> str | None:
    """The stage a params file is for, by its name: `<stage>-<what>.yaml`, `smoke-<stage>.yaml` or `<stage>.yaml`."""
    first, _, rest = path.stem.partition("-")
    name = rest.partition("-")[0] if first == "smoke" else first
    return name if name in stage_names() else None


def _kinds(annotation: Any) -> set[type]:
    """All the plain types an annotation names: dict[str, float | None] -> {str, float, NoneType}."""
    if get_origin(annotation) is Literal:
        return {type(value) for value in get_args(annotation)}
    arguments = [a for a in get_args(annotation) if isinstance(a, type) or get_args(a)]
    if not arguments:
        return {type(None) if annotation is None else annotation}
    return set().union(*(_kinds(argument) for argument in arguments))


def _repaired(value: Any, kinds: set[type]) -> Any:
    if isinstance(value, list | tuple):
        return [_repaired(element, kinds) for element in value]
    if isinstance(value, dict):
        return {key: _repaired(element, kinds) for key, element in value.items()}
    if isinstance(value, bool) and not kinds & {bool, Any, object}:
        raise ValueError("should not be true or false")  # python counts them as 1 and 0
    if isinstance(value, str) and int in kinds and not kinds & {str, float, Any, object}:
        try:
            number = float(value)
        except ValueError:
            return value
        return int(number) if number.is_integer() else number  # "1e4" is 10000, "3.7" is refused as 3.7
    return value


def _assigned_before(namespace: Mapping[str, Any], call: str) -> set[str]:
    """The names that a notebook's cells assign before the first one that holds `call`; all names when there are no
    cells.  Later cells' variables are no parameters, also when the reader goes back and runs an early cell again.
    """
    cells = [str(cell) for cell in namespace.get("In", [])]
    first = next((i for i, cell in enumerate(cells) if call in cell), None)
    if first is None:
        return set(namespace)
    names: set[str] = set()
    for cell in cells[:first]:
        try:
            statements = ast.parse(cell).body
        except SyntaxError:  # a cell with %magic
            continue
        for statement in statements:
            targets = getattr(statement, "targets", [getattr(statement, "target", None)])
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names
