"""Which length config of its front a model runs, said behind its name: runs:/<id>/model?lengths=2x

2x         the best score that is measured here to be at least twice as fast as the full length
12ms       the best score that takes at most 12 ms here, for one input
50%        the best score with at most half of the multiply-adds
within1%   the fewest multiply-adds that lose at most 1 % of the score at full length
(96, 64)   these lengths, of a model with or without a front
"""

from __future__ import annotations

import ast
import re
from typing import Any, TypeVar

from transformers import PreTrainedModel

from compresskit.models.length_front import at, front_of, with_lengths

Model = TypeVar("Model", bound=PreTrainedModel)

MARK = "?lengths="
FORMS = re.compile(r"(?P<within>within)?(?P<number>\d+(?:\.\d+)?)(?P<unit>x|ms|%)")


def split(source: str) -> tuple[str, str]:
    """The model's place and the choice behind it, which may be empty."""
    place, _, choice = source.partition(MARK)
    return place, choice


def moved(source: str, place: object) -> str:
    """The same choice behind another place of the model."""
    choice = split(source)[1]
    return f"{place}{MARK}{choice}" if choice else f"{place}"


def chosen(model: Model, source: str) -> Model:
    """The model at the lengths that `source` asks for; as it is where nothing is asked.

    Raises ValueError for what is no choice, and where nothing on the model's front keeps it.
    """
    choice = split(source)[1].strip()
    if not choice:
        return model
    if choice.startswith(("(", "[")):
        return with_lengths(model, _literal(choice))
    form = FORMS.fullmatch(choice)
    if not form or (form["within"] and form["unit"] != "%"):
        raise ValueError(
            f"lengths={choice} is none of 2x (speed-up), 12ms, 50% (of the multiply-adds), within1% (of the score) or "
            "(96, 64) (lengths)"
        )
    number = float(form["number"])
    if form["unit"] == "x":
        return at(model, speedup=number)
    if form["unit"] == "ms":
        return at(model, max_latency_ms=number)
    if form["within"]:
        return with_lengths(model, cheapest_within(front_of(model), number / 100))
    return with_lengths(model, _best_below(front_of(model), number / 100))


def cheapest_within(front: dict[str, Any], loss: float) -> list[int] | None:
    """The config with the fewest multiply-adds whose score is at least 1 − loss of that at full length; None: full."""
    points = [{**front["full"], "length_config": None}, *front["points"]]
    enough = [point for point in points if point["score"] >= (1 - loss) * front["full"]["score"]]
    return min(enough, key=lambda point: point["macs"])["length_config"]


def _best_below(front: dict[str, Any], share: float) -> list[int] | None:
    points = [{**front["full"], "length_config": None}, *front["points"]]
    cheap = [point for point in points if point["macs"] <= share * front["full"]["macs"]]
    if not cheap:
        least = min(point["macs"] for point in points) / front["full"]["macs"]
        raise ValueError(
            f"no length config on this model's front has at most {share:.0%} of the multiply-adds, the cheapest has "
            f"{least:.0%}; ask for more, or search with a larger max_drop"
        )
    return max(cheap, key=lambda point: point["score"])["length_config"]


def _literal(text: str) -> list[Any]:
    try:
        return list(ast.literal_eval(text))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        raise ValueError(f"lengths={text} are no lengths; write one number for each layer, such as (96, 64)") from None
