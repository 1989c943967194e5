"""What a stage of the progressive search has found, as a file that the next one reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compresskit.models.feed_forward import parse

FILE = "found.json"


@dataclass(frozen=True)
class Scored:
    """A candidate, one formula per layer, with its score and its parameters."""

    formulas: tuple[str, ...]
    score: float
    parameters: int


def write(path: Path, search_stage: int, scored: Sequence[Scored], about: Mapping[str, Any]) -> None:
    """Candidates, best first, and what else a reader may want to know of the search."""
    best = scored[0]
    content = {
        "search_stage": search_stage,
        "formulas": best.formulas,
        "score": best.score,
        "parameters": best.parameters,
        **about,
        "candidates": [vars(candidate) for candidate in scored],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_winner(path: Path, num_layers: int) -> tuple[str, ...]:
    """The formulas of the best candidate.  Raises ValueError that names the file where it has none for the supernet."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; previous names what an earlier stage of the search has found")
    try:
        formulas = tuple(str(parse(text)) for text in json.loads(path.read_text(encoding="utf-8"))["formulas"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is no file of found formulas: {type(error).__name__}: {error}") from None
    if len(formulas) != num_layers:
        raise ValueError(f"{path} has {len(formulas)} formulas, the supernet {num_layers} layers; search with its own")
    return formulas
