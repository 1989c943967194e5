"""Parameters: what is repaired, what is refused and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field, ValidationError

from compresskit import stages
from compresskit.stages.params import Params, ParamsError, params_class, stage_names


class DistilParams(Params):
    task: Literal["sst2", "mrpc"] = "sst2"
    teacher: str
    learning_rate: float = Field(3e-5, gt=0)
    num_layers: int = 4
    heads: int | list[int] = 12
    shuffle: bool = True
    weights: dict[str, float] = Field({"hidden": 1.0})
    note: str | None = None


def distil(**values: Any) -> DistilParams:
    return DistilParams.checked({"teacher": "t", **values})


@pytest.mark.parametrize(
    ("name", "given", "taken"),
    [
        ("learning_rate", "5e-5", 5e-5),
        ("learning_rate", 1, 1.0),
        ("num_layers", "1e1", 10),
        ("num_layers", 6.0, 6),
        ("shuffle", "no", False),
        ("shuffle", "false", False),
        ("shuffle", "Yes", True),
        ("weights", {"hidden": "1e-2"}, {"hidden": 0.01}),
        ("heads", [2, 4], [2, 4]),
    ],
)
def test_text_from_yaml_and_papermill_becomes_the_value_it_means(name, given, taken):
    value = getattr(distil(**{name: given}), name)
    assert (value, type(value)) == (taken, type(taken))


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("num_layers", 3.7, "'num_layers' should be a valid integer, got a number with a fractional part (it is 3.7)"),
        (
            "num_layers",
            "3.7",
            "'num_layers' should be a valid integer, got a number with a fractional part (it is 3.7)",
        ),
        ("num_layers", True, "'num_layers' should not be true or false (it is true)"),
        ("learning_rate", "5e-5 ", None),
        ("learning_rate", True, "'learning_rate' should not be true or false (it is true)"),
        ("learning_rate", -1, "'learning_rate' should be greater than 0 (it is -1)"),
        ("learning_rate", float("inf"), "'learning_rate' should be a finite number (it is Infinity)"),
        ("heads", [1, True], "'heads' should not be true or false (it is [1, true])"),
        ("shuffle", "maybe", "'shuffle' should be a valid boolean, unable to interpret input (it is \"maybe\")"),
        ("task", "sst3", "'task' should be 'sst2' or 'mrpc' (it is \"sst3\")"),
        ("teacher", 7, "'teacher' should be a valid string (it is 7); put it in quotes"),
        ("task", 124, "'task' should be 'sst2' or 'mrpc' (it is 124); put it in quotes"),
        ("techer", "x", "'techer' is no parameter of distil; did you mean 'teacher'?"),
    ],
)
def test_a_wrong_value_is_refused_in_one_sentence(name, given, message):
    if message is None:
        assert distil(**{name: given}).learning_rate == 5e-5
        return
    with pytest.raises(ParamsError) as refused:
        distil(**{name: given})
    assert str(refused.value) == message


def test_every_wrong_value_is_named():
    with pytest.raises(ParamsError, match="'teacher' is missing: distil has no default for it; 'num_layers' should be"):
        DistilParams.checked({"num_layers": "few"})


def test_parameters_do_not_change():
    with pytest.raises(ValidationError):
        distil().num_layers = 5


def test_changes_come_after_the_file_and_reach_into_mappings(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("teacher: t\nnum_layers: 3\n")
    params = DistilParams.load(path, ["num_layers=5", "weights.attention=2", "note=007", "heads=[1, 2]"])
    assert params.num_layers == 5
    assert params.weights == {"hidden": 1.0, "attention": 2.0}
    assert params.note == "007"
    assert params.heads == [1, 2]
    assert DistilParams.load(path, ["note=null"]).note is None
    assert DistilParams.load(path, ["teacher="]).teacher == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "teacher: t\nnum_layers: [1\nseed: 2",
            "x.yaml line 3 column 5: no valid YAML, expected ',' or ']', but got ':'",
        ),
        ("teacher: t\nteacher: u", "x.yaml line 2: 'teacher' stands in line 1 too"),
        ("- teacher", "x.yaml line 1: expected `name: value` lines"),
        (
            "teacher: t\nnum_layer: 2",
            "x.yaml line 2: 'num_layer' is no parameter of distil; did you mean 'num_layers'?",
        ),
        ("num_layers: 2", "x.yaml: 'teacher' is missing: distil has no default for it"),
        ("teacher: \x00", "x.yaml: no valid YAML, unacceptable character"),
        (
            "!!python/object/apply:os.getcwd []",
            "x.yaml line 1 column 1: no valid YAML, could not determine a constructor",
        ),
    ],
)
def test_a_bad_file_is_reported_with_its_line(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(text)
    with pytest.raises(ParamsError) as refused:
        DistilParams.load("x.yaml")
    assert str(refused.value).startswith(message)


def test_a_missing_file_is_reported_with_the_nearest_name(tmp_path):
    (tmp_path / "distil-sst2.yaml").touch()
    with pytest.raises(ParamsError, match=r"no file .*distil-sst.yaml; did you mean 'distil-sst2.yaml'"):
        DistilParams.load(tmp_path / "distil-sst.yaml")


@pytest.mark.parametrize("change", ["num_layers", "num_layers.a=1", "heads=[1"])
def test_a_malformed_change_is_refused(change):
    with pytest.raises(ParamsError):
        DistilParams.load(None, ["teacher=t", change])


@pytest.fixture
def two_stages(tmp_path, monkeypatch):
    folder = tmp_path / "more_stages"
    folder.mkdir()
    monkeypatch.setattr(stages, "__path__", [str(folder)])  # only these two
    for name, fields in {"sow_seed": "depth: int = 1\n    rows: int = 2", "reap_corn": "sickle: str = 'x'"}.items():
        title = "".join(part.capitalize() for part in name.split("_"))
        source = f"from compresskit.stages.params import Params\nclass {title}Params(Params):\n    {fields}\n"
        (folder / f"{name}.py").write_text(source)
        monkeypatch.delitem(__import__("sys").modules, f"compresskit.stages.{name}", raising=False)
    return tmp_path


def test_stages_are_found_by_their_params(two_stages):
    assert stage_names() == ["reap_corn", "sow_seed"]
    assert params_class("sow_seed").stage_name() == "sow_seed"
    with pytest.raises(ParamsError, match="'sow_sed' is no stage; did you mean 'sow_seed'"):
        params_class("sow_sed")


@pytest.mark.parametrize("name", ["sow_seed-big.yaml", "smoke-sow_seed.yaml", "sow_seed.yaml"])
def test_another_stages_file_is_recognised_by_its_name(two_stages, name):
    path = two_stages / name
    path.write_text("depth: 2\n")
    with pytest.raises(
        ParamsError, match=f"{name} holds parameters of stage 'sow_seed', not of 'reap_corn'; did you mean"
    ):
        params_class("reap_corn").load(path)
    assert params_class("sow_seed").load(path).depth == 2


def test_another_stages_file_is_recognised_by_its_names(two_stages):
    path = two_stages / "mine.yaml"
    path.write_text("depth: 2\nrows: 3\n")
    with pytest.raises(
        ParamsError, match="all of these are parameters of sow_seed: did you mean `compresskit run sow_seed`"
    ):
        params_class("reap_corn").load(path)


def test_a_notebook_takes_its_parameters_and_leaves_what_is_none(monkeypatch):
    cells = [
        "",
        "import os\nteacher: str = 'a'\nnum_layers = 4",
        "# Parameters\nteacher = 'b'",
        "p = DistilParams.take(globals())",
    ]
    variables = {"In": [*cells, "rows = 3"], "Out": {}, "_": 1, "os": __import__("os"), "exit": exit, "rows": 3}
    variables |= {"teacher": "b", "num_layers": 4}
    params = DistilParams.take(variables)
    assert (params.teacher, params.num_layers) == ("b", 4)


@pytest.mark.parametrize(
    "cells", [["", "teacher = 't'", "# Parameters\nnum_layer = 5", "DistilParams.take(globals())"], None]
)
def test_a_name_that_papermill_injected_by_mistake_is_refused(cells):
    variables = {"teacher": "t", "num_layer": 5} | ({"In": cells, "Out": {}} if cells else {})
    with pytest.raises(ParamsError, match="notebook: 'num_layer' is no parameter of distil; did you mean 'num_layers'"):
        DistilParams.take(variables)


def test_equal_parameters_have_equal_keys_and_others_others():
    keys = {distil(learning_rate="5e-5").task_key(), distil(learning_rate=5e-5).task_key()}
    assert len(keys) == 1
    assert distil().task_key() not in keys
    assert distil().task_key("prune") != distil().task_key()
    assert distil(weights={"b": 1, "a": 2}).canonical() == distil(weights={"a": 2, "b": 1}).canonical()


class GatherParams(Params):
    sources: dict[str, str] = {}
    names: list[str] = []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("sources={wiki: dump.bz2, books: '007'}", {"sources": {"wiki": "dump.bz2", "books": "007"}}),
        ("sources.books=007", {"sources": {"books": "007"}}),
        ("names=[a, b]", {"names": ["a", "b"]}),
    ],
)
def test_a_mapping_or_list_of_texts_is_given_whole_as_yaml_and_an_entry_as_typed(change, expected):
    assert GatherParams.load(None, [change]).model_dump(exclude_defaults=True) == expected


def test_a_number_in_a_mapping_of_texts_is_refused_with_the_remedy():
    with pytest.raises(ParamsError, match=r"'sources' .*put it in quotes"):
        GatherParams.load(None, ["sources={books: 007}"])
