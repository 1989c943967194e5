"""Search spaces as data: the values of each dimension. A point is a CompactBertConfig inside a given supernet.

Many points at once are columns: one array per number of the architecture, all of one length, an entry per point. So a
whole grid is filtered without an object for each of its 1,525,200 points.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compresskit.models.config import PER_LAYER, CompactBertConfig

Columns = dict[str, NDArray[Any]]
DIMENSIONS = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "qkv_size")


@dataclass(frozen=True)
class SuperBertMlmSpace:
    """AutoTinyBERT's self-supervised flavour: the number of heads is searched, their size stays the supernet's.

    Draw order, and the order of the loops over a grid, as in the original: layers, heads, hidden, feed-forward.
    """

    num_hidden_layers: Sequence[int] = range(1, 9)
    num_attention_heads: Sequence[int] = range(1, 13)
    hidden_size: Sequence[int] = range(128, 769, 4)
    intermediate_size: Sequence[int] = range(128, 3073, 4)

    def sample(self, supernet: CompactBertConfig, rng: Random) -> CompactBertConfig:
        """A uniformly drawn subnet of `supernet`."""
        return supernet.changed(**self.complete(_drawn(self, rng), supernet))

    def complete(self, shape: Mapping[str, Any], supernet: CompactBertConfig) -> dict[str, Any]:
        """All five numbers of an architecture, or columns of them, from those that this space searches."""
        head_size = _even(supernet, "qkv_size") // _even(supernet, "num_attention_heads")
        return {**shape, "qkv_size": shape["num_attention_heads"] * head_size}

    @classmethod
    def within(cls, supernet: CompactBertConfig) -> SuperBertMlmSpace:
        """The space of a supernet of any size: all depths and heads, widths from a sixth to all of it in 32nds."""
        return cls(num_attention_heads=range(1, _even(supernet, "num_attention_heads") + 1), **_sizes(supernet))


@dataclass(frozen=True)
class SuperBertKdSpace:
    """AutoTinyBERT's distillation flavour: the heads stay the teacher's, q/k/v take the leading rows of each.

    Draw order, and the order of the loops over a grid, as in the original: layers, hidden, feed-forward, q/k/v.
    """

    num_hidden_layers: Sequence[int] = range(1, 9)
    hidden_size: Sequence[int] = range(128, 769, 4)
    intermediate_size: Sequence[int] = range(128, 3073, 4)
    qkv_size: Sequence[int] = range(180, 769, 12)

    def sample(self, supernet: CompactBertConfig, rng: Random) -> CompactBertConfig:
        """A uniformly drawn subnet of `supernet`."""
        return supernet.changed(**self.complete(_drawn(self, rng), supernet))

    def complete(self, shape: Mapping[str, Any], supernet: CompactBertConfig) -> dict[str, Any]:
        """All five numbers of an architecture, or columns of them, from those that this space searches."""
        heads = shape["num_hidden_layers"] * 0 + _even(supernet, "num_attention_heads")  # a column beside columns
        return {**shape, "num_attention_heads": heads}

    @classmethod
    def within(cls, supernet: CompactBertConfig) -> SuperBertKdSpace:
        """The space of a supernet of any size: all depths, widths from a sixth to all of it in 32nds."""
        heads, width = (_even(supernet, name) for name in ("num_attention_heads", "qkv_size"))
        return cls(qkv_size=_widths(width, heads), **_sizes(supernet))


Space = SuperBertMlmSpace | SuperBertKdSpace
SPACES: dict[str, type[SuperBertMlmSpace] | type[SuperBertKdSpace]] = {"mlm": SuperBertMlmSpace, "kd": SuperBertKdSpace}

# The grid that the released searcher filters; the classes' own values, hidden and feed-forward by 4, are the paper's.
COARSE = {"hidden_size": range(128, 769, 16), "intermediate_size": range(128, 3073, 32)}
RELEASED_GRIDS: dict[str, Space] = {flavour: space(**COARSE) for flavour, space in SPACES.items()}


def grid_size(space: Space) -> int:
    """How many points the space has."""
    return int(np.prod([len(values) for values in vars(space).values()]))


def grid(space: Space, supernet: CompactBertConfig) -> Iterator[Columns]:
    """Every point of the space in the order of the original's loops, as the columns of one depth after the other."""
    depths, *others = (np.asarray(values) for values in vars(space).values())
    names = list(vars(space))[1:]
    flat = [axis.ravel() for axis in np.meshgrid(*others, indexing="ij")]
    for depth in depths:
        shape = {"num_hidden_layers": np.full(len(flat[0]), depth), **dict(zip(names, flat, strict=True))}
        yield in_order(space.complete(shape, supernet))


def in_order(columns: Mapping[str, Any]) -> Columns:
    """The same columns, in the order of DIMENSIONS."""
    return {name: columns[name] for name in DIMENSIONS}


def columns_of(configs: Sequence[CompactBertConfig]) -> Columns:
    """The columns of given architectures; where layers differ, the mean over the layers.

    Raises ValueError for a network with formulas or a trigram embedding, which five numbers do not describe.
    """
    for config in configs:
        if config.feed_forward is not None or config.embedding != "bert":
            raise ValueError("columns are numbers of BERT's own feed-forward and embedding; this network has others")

    def number(config: CompactBertConfig, name: str) -> float:
        return float(np.mean(config.per_layer(name))) if name in PER_LAYER else getattr(config, name)

    return {name: np.array([number(config, name) for config in configs]) for name in DIMENSIONS}


def config_at(columns: Columns, index: int, supernet: CompactBertConfig) -> CompactBertConfig:
    """One point as a subnet of `supernet`."""
    return supernet.changed(**{name: int(columns[name][index]) for name in DIMENSIONS})


def rows(columns: Columns, chosen: Any) -> Columns:
    """The points that a mask or indices choose."""
    return {name: column[chosen] for name, column in columns.items()}


def joined(parts: Sequence[Columns]) -> Columns:
    """The points of all parts, one after the other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in DIMENSIONS}


def _drawn(space: Space, rng: Random) -> dict[str, int]:
    return {name: rng.choice(values) for name, values in vars(space).items()}


def _sizes(supernet: CompactBertConfig) -> dict[str, range]:
    return {
        "num_hidden_layers": range(1, supernet.num_hidden_layers + 1),
        "hidden_size": _widths(supernet.hidden_size, max(1, supernet.hidden_size // 32)),
        "intermediate_size": _widths(
            _even(supernet, "intermediate_size"), max(1, _even(supernet, "intermediate_size") // 32)
        ),
    }


def _widths(width: int, grid: int) -> range:
    """The whole width and grid steps down from it, to about a sixth."""
    steps = (width - max(width // 6, 1)) // grid
    return range(width - steps * grid, width + 1, grid)


def _even(supernet: CompactBertConfig, name: str) -> int:
    values = set(supernet.per_layer(name))
    if len(values) > 1:
        raise ValueError(f"{name} of the supernet is {supernet.per_layer(name)}; expected one number for all layers")
    return values.pop()


def space_of(flavour: str, supernet: CompactBertConfig) -> Space:
    """The published values where the supernet is as wide as AutoTinyBERT's and no shallower, else those `within` it."""
    published = SPACES[flavour]()
    widths = [supernet.brief(n) for n in ("hidden_size", "intermediate_size", "num_attention_heads", "qkv_size")]
    as_published = widths == [768, 3072, 12, 768] and supernet.num_hidden_layers >= max(published.num_hidden_layers)
    return published if as_published else SPACES[flavour].within(supernet)
