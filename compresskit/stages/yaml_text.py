"""Text into plain values: YAML files and the values of `--set`, with the line that is wrong when one is."""

import difflib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml


class ParamsError(ValueError):
    """Parameters that cannot be used; the command line ends with code 2."""

    exit_code = 2


def read_yaml(path: str | Path) -> tuple[dict[str, Any], dict[str, int]]:
    """A YAML mapping and the line of each of its names.  Raises ParamsError with file and line."""
    path = Path(path)
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise ParamsError(f"no file {path}{did_you_mean(path.name, near)}")
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path} is no UTF-8 text: {error}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" line {mark.line + 1} column {mark.column + 1}" if mark else ""
        raise ParamsError(f"{path}{place}: no valid YAML, {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ParamsError(f"{path}: no valid YAML, {' '.join(str(error).split())}") from error
    if node is None:
        return {}, {}
    if not isinstance(node, yaml.MappingNode) or not all(isinstance(name, str) for name in values):
        raise ParamsError(f"{path} line {node.start_mark.line + 1}: expected `name: value` lines")
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if key.value in lines:
            raise ParamsError(
                f"{path} line {key.start_mark.line + 1}: {key.value!r} stands in line {lines[key.value]} too"
            )
        lines[key.value] = key.start_mark.line + 1
    return values, lines


def parse_value(text: str, is_text: bool = False) -> Any:
    """A value from the command line, read as YAML; for a field that takes only text, the text as typed."""
    if is_text and not text:
        return ""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ParamsError(f"{text!r} is no valid YAML value; put it in quotes") from error
    return text if is_text and not isinstance(value, str | None) else value


def did_you_mean(name: str, known: Collection[str]) -> str:
    """The end of a sentence that refuses a name: the nearest known one, else all of them."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known)) or 'none'}"
