"""A pipeline file, read and checked whole before anything runs.

    name: sst2                      # and optionally task (may be ${name}), system, description
    vars: {data_dir: , seed: 42}    # --set NAME=VALUE; without a value: required (data_dir: or $COMPRESSKIT_DATA)
    defaults: {seed: "${seed}"}     # for every step whose stage knows the name
    steps:
      - {id: teacher, stage: finetune, params: finetune-sst2.yaml, set: {num_train_epochs: 2}}
      - {id: student, stage: distill, params: {teacher: "${teacher.model}"}}

A step's values, later ones winning: the stage's defaults, `defaults`, `params` (a file in params/, or the values
themselves), `set`.  `${name}` is a variable, `${step.key}` an earlier step's result.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import Field

from compresskit import tracking
from compresskit.stages.params import Params, ParamsError, did_you_mean, params_class, parse_value

REFERENCE = re.compile(r"\$\{([^{}]*)\}")


class Step(Params):
    """One entry of `steps`."""

    id: str
    stage: str
    params: str | dict[str, Any] = Field({})
    set: dict[str, Any] = Field({})


class Pipeline(Params):
    """A pipeline file."""

    name: str
    task: str | None = None
    system: str | None = None
    description: str = ""
    vars: dict[str, Any] = Field({})
    defaults: dict[str, Any] = Field({})
    steps: list[dict[str, Any]]


@dataclass(frozen=True)
class PlannedStep:
    """A step whose values are complete but for earlier steps' results."""

    id: str
    stage: str
    params_class: type[Params]
    values: dict[str, Any]
    where: Callable[[str], str]

    def plan_key(self) -> str:
        """Equal for steps of equal stage and values, whatever the earlier steps return."""
        return _digest([self.stage, self.values])

    def params(self, results: Mapping[str, Mapping[str, Any]]) -> Params:
        """The checked parameters, with the results of earlier steps put in."""

        def value(name: str) -> Any:
            step, _, key = name.partition(".")
            if key not in results[step]:
                raise ParamsError(
                    f"step {self.id!r}: step {step!r} returned no {key!r}{did_you_mean(key, results[step])}"
                )
            return results[step][key]

        return self.params_class.checked(_filled(self.values, value), self.where)


@dataclass(frozen=True)
class Plan:
    """A checked pipeline."""

    path: Path
    name: str
    experiment: str
    task: str
    vars: dict[str, Any]
    steps: list[PlannedStep]

    def key(self) -> str:
        """Names the pipeline with these variables: what is continued when it is called again."""
        return _digest([self.name, self.experiment, self.vars, version("compresskit")])


def read_plan(path: str | Path, changes: Iterable[str] = ()) -> Plan:
    """Read a pipeline file with `--set` changes of its variables and check every step.  Raises ParamsError."""
    raw, where = Pipeline.read(path)
    pipeline = Pipeline.checked(raw, where)
    variables = _variables(pipeline, where("vars"), changes)
    steps: list[PlannedStep] = []
    for number, entry in enumerate(pipeline.steps, start=1):
        place = f"{path}: step {entry.get('id', number)!r}: "
        step = Step.checked(entry, _at(place))
        if step.id in [s.id for s in steps]:
            raise ParamsError(f"{place}an earlier step has this id")
        steps.append(_plan_step(step, pipeline, variables, steps, place))
    if not steps:
        raise ParamsError(f"{path}: no steps")
    taken = {name for step in steps for name in step.params_class.model_fields}
    for name in set(pipeline.defaults) - taken:
        raise ParamsError(f"{where('defaults')}no step has a parameter {name!r}{did_you_mean(name, taken)}")
    task = str(_filled(pipeline.task or pipeline.name, lambda name: _variable(name, variables, where("task"))))
    experiment = f"{pipeline.system or pipeline.name}/{task}"
    return Plan(Path(path), pipeline.name, experiment, task, variables, steps)


def _variable(name: str, variables: Mapping[str, Any], place: str) -> Any:
    if name not in variables:
        raise ParamsError(f"{place}${{{name}}} is no variable{did_you_mean(name, variables)}")
    return variables[name]


def _variables(pipeline: Pipeline, place: str, changes: Iterable[str]) -> dict[str, Any]:
    values = dict(pipeline.vars)
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals:
            raise ParamsError(f"--set {change}: expected NAME=VALUE")
        if name not in values:
            raise ParamsError(
                f"--set {change}: pipeline {pipeline.name!r} has no variable {name!r}{did_you_mean(name, values)}"
            )
        values[name] = parse_value(text, isinstance(values[name], str | None))
    if "data_dir" in values and values["data_dir"] is None:
        values["data_dir"] = os.environ.get("COMPRESSKIT_DATA")
    for name, value in values.items():
        if value is None:
            also = ", or set COMPRESSKIT_DATA" if name == "data_dir" else ""
            raise ParamsError(f"{place}variable {name!r} has no value; give --set {name}=…{also}")
    return values


def _plan_step(
    step: Step, pipeline: Pipeline, variables: Mapping[str, Any], before: list[PlannedStep], place: str
) -> PlannedStep:
    try:
        cls = params_class(step.stage)
    except ParamsError as error:
        raise ParamsError(place + str(error)) from error
    values = {name: value for name, value in pipeline.defaults.items() if name in cls.model_fields}
    if isinstance(step.params, str):
        own, where = cls.read(os.path.relpath(tracking.project_root() / "params" / step.params))
    else:
        own, where = step.params, _at(place)
    values |= own
    for name, value in step.set.items():
        values = cls.changed(values, name, value, f"{place}set")
    known = {earlier.id: earlier for earlier in before}

    def variable(name: str) -> Any:
        id, dot, key = name.partition(".")
        if not dot:
            return _variable(name, variables, place)
        if id not in known:
            ids = [entry.get("id") for entry in pipeline.steps]
            why = "comes later or is the step itself" if id in ids else "is no step"
            raise ParamsError(f"{place}${{{name}}}: {id!r} {why}{did_you_mean(id, known)}")
        results = known[id].params_class.results
        if key not in results:
            raise ParamsError(
                f"{place}${{{name}}}: stage {known[id].stage} returns no {key!r}{did_you_mean(key, results)}"
            )
        return f"${{{name}}}"  # not known before that step has run

    values = _filled(values, variable)
    later = {name for name, value in values.items() if REFERENCE.search(json.dumps(value, default=str))}

    def place_of(name: str) -> str:
        return where(name) if name in own and name not in step.set else place

    wrong = {name: text for name, text in cls.problems(values).items() if name not in later}
    if wrong:
        raise ParamsError("; ".join(place_of(name) + text for name, text in wrong.items()))
    return PlannedStep(step.id, step.stage, cls, values, place_of)


def _filled(value: Any, look_up: Callable[[str], Any]) -> Any:
    """`value` with every ${name} replaced; one that is the whole text keeps its type."""
    if isinstance(value, Mapping):
        return {_filled(key, look_up): _filled(element, look_up) for key, element in value.items()}
    if isinstance(value, list):
        return [_filled(element, look_up) for element in value]
    if not isinstance(value, str):
        return value
    if whole := REFERENCE.fullmatch(value):
        return look_up(whole[1].strip())
    return REFERENCE.sub(lambda match: str(look_up(match[1].strip())), value)


def _at(place: str) -> Callable[[str], str]:
    return lambda name: place


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
