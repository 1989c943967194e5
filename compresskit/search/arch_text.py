"""Architectures as AutoTinyBERT writes them: a Python dictionary of five entries, one line of text.

    {'sample_layer_num': 2, 'sample_num_attention_heads': [4, 4], 'sample_qkv_sizes': [256, 256], …}

Its programs disagree on the order of the entries, and compare architectures as text; here `CompactBertConfig.key()`
decides what is equal, and the order matters only to what is written for them.
"""

from __future__ import annotations

import ast
from typing import Any, Literal, get_args

from compresskit.models.config import CompactBertConfig

Order = Literal["mlm", "kd", "mutant"]  # candidate files of either flavour; evolved candidates and latency data

# Entry, and the config's field. The lists hold one number per layer.
FIELDS = {
    "sample_layer_num": "num_hidden_layers",
    "sample_hidden_size": "hidden_size",
    "sample_intermediate_sizes": "intermediate_size",
    "sample_num_attention_heads": "num_attention_heads",
    "sample_qkv_sizes": "qkv_size",
}
LISTS = ("sample_intermediate_sizes", "sample_num_attention_heads", "sample_qkv_sizes")
ORDERS: dict[str, tuple[str, ...]] = {
    "mlm": (
        "sample_layer_num",
        "sample_num_attention_heads",
        "sample_qkv_sizes",
        "sample_hidden_size",
        "sample_intermediate_sizes",
    ),
    "kd": (
        "sample_layer_num",
        "sample_num_attention_heads",
        "sample_hidden_size",
        "sample_intermediate_sizes",
        "sample_qkv_sizes",
    ),
    "mutant": tuple(FIELDS),
}


def parse(text: str, template: CompactBertConfig) -> CompactBertConfig:
    """The architecture that `text` describes, in everything else (vocabulary, activation, …) as `template`.

    Entries may stand in any order, in Python's or JSON's spelling; nothing is executed. Whether it fits into a supernet
    is another question (models.elastic.check_fits). Raises ValueError that names the entry and what was expected.
    """
    found = _dictionary(text)
    if missing := [name for name in FIELDS if name not in found]:
        raise ValueError(f"{_shown(text)}: {missing[0]!r} is missing; an architecture has {', '.join(FIELDS)}")
    if unknown := [name for name in found if name not in FIELDS]:
        raise ValueError(f"{_shown(text)}: unknown entry {unknown[0]!r}; an architecture has {', '.join(FIELDS)}")
    layers = found["sample_layer_num"]
    for name, value in found.items():
        numbers = value if name in LISTS else [value]
        expected = "a list with one whole number of at least 1 per layer" if name in LISTS else "a whole number above 0"
        if not isinstance(numbers, list) or any(type(number) is not int or number < 1 for number in numbers):
            raise ValueError(f"{_shown(text)}: {name!r} is {_shown(value)}; expected {expected}")
    for name in LISTS:
        if len(found[name]) != layers:
            raise ValueError(f"{_shown(text)}: {name!r} has {len(found[name])} values for {layers} layers")
    for layer, (qkv, heads) in enumerate(
        zip(found["sample_qkv_sizes"], found["sample_num_attention_heads"], strict=True)
    ):
        if qkv % heads:
            raise ValueError(f"{_shown(text)}: layer {layer}: {qkv} for q, k and v is no multiple of {heads} heads")
    return template.changed(**{field: _brief(found[name]) for name, field in FIELDS.items()})


def text(config: CompactBertConfig, order: Order) -> str:
    """One line, byte for byte as the original writes it.  Raises ValueError for an unknown order."""
    if order not in ORDERS:
        raise ValueError(f"order {order!r} is none of {', '.join(get_args(Order))}")
    return str(dictionary(config, order))


def dictionary(config: CompactBertConfig, order: Order) -> dict[str, int | list[int]]:
    """The same as a dictionary with its entries in that order."""
    return {
        name: config.per_layer(FIELDS[name]) if name in LISTS else getattr(config, FIELDS[name])
        for name in ORDERS[order]
    }


def _dictionary(text: str) -> dict[Any, Any]:
    try:
        found = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(
            f"{_shown(text)} is no architecture; expected a dictionary such as {{'sample_layer_num': 2, …}} with "
            + ", ".join(FIELDS)
        )
    return found


def _brief(value: int | list[int]) -> int | list[int]:
    return value[0] if isinstance(value, list) and len(set(value)) == 1 else value


def _shown(value: Any) -> str:
    line = " ".join(str(value).split())
    return line if len(line) <= 120 else f"{line[:119]}…"
