"""Search spaces as data: the values of each dimension. A point is a CompactBertConfig inside a given supernet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from random import Random

from compresskit.models.config import CompactBertConfig


@dataclass(frozen=True)
class SuperBertMlmSpace:
    """AutoTinyBERT's self-supervised flavour: the number of heads is searched, their size stays the supernet's.

    Draw order as in the original: layers, heads, hidden, feed-forward.
    """

    num_hidden_layers: Sequence[int] = range(1, 9)
    num_attention_heads: Sequence[int] = range(1, 13)
    hidden_size: Sequence[int] = range(128, 769, 4)
    intermediate_size: Sequence[int] = range(128, 3073, 4)

    def sample(self, supernet: CompactBertConfig, rng: Random) -> CompactBertConfig:
        """A uniformly drawn subnet of `supernet`."""
        shape = {name: rng.choice(values) for name, values in asdict(self).items()}
        head_size = _even(supernet, "qkv_size") // _even(supernet, "num_attention_heads")
        return supernet.changed(qkv_size=shape["num_attention_heads"] * head_size, **shape)

    @classmethod
    def within(cls, supernet: CompactBertConfig) -> SuperBertMlmSpace:
        """The space of a supernet of any size: all depths and heads, widths from a sixth to all of it in 32nds."""
        return cls(num_attention_heads=range(1, _even(supernet, "num_attention_heads") + 1), **_sizes(supernet))


@dataclass(frozen=True)
class SuperBertKdSpace:
    """AutoTinyBERT's distillation flavour: the heads stay the teacher's, q/k/v take the leading rows of each.

    Draw order as in the original: layers, hidden, feed-forward, q/k/v.
    """

    num_hidden_layers: Sequence[int] = range(1, 9)
    hidden_size: Sequence[int] = range(128, 769, 4)
    intermediate_size: Sequence[int] = range(128, 3073, 4)
    qkv_size: Sequence[int] = range(180, 769, 12)

    def sample(self, supernet: CompactBertConfig, rng: Random) -> CompactBertConfig:
        """A uniformly drawn subnet of `supernet`."""
        shape = {name: rng.choice(values) for name, values in asdict(self).items()}
        return supernet.changed(num_attention_heads=_even(supernet, "num_attention_heads"), **shape)

    @classmethod
    def within(cls, supernet: CompactBertConfig) -> SuperBertKdSpace:
        """The space of a supernet of any size: all depths, widths from a sixth to all of it in 32nds."""
        heads, width = (_even(supernet, name) for name in ("num_attention_heads", "qkv_size"))
        return cls(qkv_size=_widths(width, heads), **_sizes(supernet))


Space = SuperBertMlmSpace | SuperBertKdSpace
SPACES: dict[str, type[SuperBertMlmSpace] | type[SuperBertKdSpace]] = {"mlm": SuperBertMlmSpace, "kd": SuperBertKdSpace}


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
