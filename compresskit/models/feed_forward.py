"""The formula language of EfficientBERT: what a layer computes between two linear maps, as an expression tree.

    linear2_1(gelu(linear2_1(x,wb1)),wb2)        the feed-forward of BERT, two of them in a row

Leaves are the input x and the two weight-bias pairs wb1 (hidden to inner width) and wb2 (inner width to hidden). Every
linear of a formula has the same name, linear{stack}_{ratio}: the layer holds `stack` feed-forwards with weights of
their own, each of inner width intermediate_size // ratio. A search with frozen sizes writes `linear` without them.

A formula is text of a user or a file: it is parsed, checked and turned into closures, and never executed as code.
Source: the code of EfficientBERT (Findings of EMNLP 2021), operator_utils.py and action_space.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Width = Literal["min", "max", "max-faithful"]
Linear = Callable[[Tensor], Tensor]
Run = Callable[[Tensor, Linear, Linear], Tensor]

STACKS = RATIOS = range(1, 5)
SIZES = tuple(f"{stack}_{ratio}" for stack in STACKS for ratio in RATIOS)  # the order of stage 3's numbers
LINEARS = tuple(f"linear{size}" for size in SIZES)
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": lambda t: F.gelu(t, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "leaky_relu": F.leaky_relu,  # slope 0.01
    "elu": F.elu,
    "swish": F.silu,
}
OVERWRITING: dict[str, Callable[[Tensor], Tensor]] = {  # the same, in the place of their argument
    "gelu": lambda t: torch.ops.aten.gelu_.default(t, approximate="tanh"),
    "sigmoid": torch.sigmoid_,
    "tanh": torch.tanh_,
    "relu": torch.relu_,
    "leaky_relu": F.leaky_relu_,
    "elu": F.elu_,
    "swish": lambda t: F.silu(t, inplace=True),
}
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"add": torch.add, "mul": torch.mul, "max": torch.maximum}
LEAVES = ("x", "wb1", "wb2")
ARITY = (
    dict.fromkeys((*LINEARS, "linear", *BINARY), 2) | dict.fromkeys(ACTIVATIONS, 1) | dict.fromkeys(LEAVES, 0)
)  # fmt: skip
# The numbers of the nodes in the vectors of stages 1 and 2.
IDS = {
    1: {name: i for i, name in enumerate((*LINEARS, *BINARY, *ACTIVATIONS, *LEAVES))},
    2: {name: i for i, name in enumerate(("linear", *BINARY, *ACTIVATIONS, *LEAVES))},
}
ENCODED_NODES = 20
HEIGHTS = (3, 7)  # of the trees that a search may choose
MAX_DEPTH = 100  # of the parentheses in a text
TOKEN = re.compile(r"\s*(?:(?P<name>[A-Za-z_]\w*)|(?P<mark>[(),]))")


@dataclass(frozen=True)
class Formula:
    """An expression tree as its nodes in prefix order; a node's subtree is a slice of them.

    Any tree of known names can be held, also one that cannot run: see `refusal` and `check_runs`. Raises ValueError
    for an unknown name and for nodes that are not one whole tree.
    """

    nodes: tuple[str, ...]

    def __post_init__(self) -> None:
        open_places = 1
        for node in self.nodes:
            if node not in ARITY:
                raise ValueError(f"a formula knows no {node!r}; it has {', '.join(ARITY)}")
            if not open_places:
                raise ValueError(f"the nodes {' '.join(self.nodes)} are more than one tree")
            open_places += ARITY[node] - 1
        if open_places:
            raise ValueError(f"the nodes {' '.join(self.nodes)} are no whole tree: {open_places} arguments are missing")

    def __str__(self) -> str:
        return self.text(0)

    def subtree(self, start: int) -> slice:
        """The nodes below and with the node at `start`."""
        end, open_places = start, 1
        while open_places:
            open_places += ARITY[self.nodes[end]] - 1
            end += 1
        return slice(start, end)

    def arguments(self, start: int) -> list[int]:
        """Where the arguments of the node at `start` begin."""
        found: list[int] = []
        place = start + 1
        for _ in range(ARITY[self.nodes[start]]):
            found.append(place)
            place = self.subtree(place).stop
        return found

    def text(self, start: int) -> str:
        """The subtree at `start` as it is written."""
        written, open_places = [], []  # per open parenthesis, how many arguments are still to come
        for node in self.nodes[self.subtree(start)]:
            written.append(node)
            if ARITY[node]:
                written.append("(")
                open_places.append(ARITY[node])
                continue
            while open_places:
                open_places[-1] -= 1
                if open_places[-1]:
                    written.append(",")
                    break
                open_places.pop()
                written.append(")")
        return "".join(written)

    def replaced(self, part: slice, nodes: Sequence[str]) -> Formula:
        """Another formula with other nodes in the place of `part`."""
        return Formula((*self.nodes[: part.start], *nodes, *self.nodes[part.stop :]))

    @property
    def height(self) -> int:
        """Edges on the longest way from the root to a leaf."""
        highest, above = 0, [0]  # depths of the places that are still open
        for node in self.nodes:
            depth = above.pop()
            highest = max(highest, depth)
            above += [depth + 1] * ARITY[node]
        return highest

    @property
    def size_index(self) -> str | None:
        """Stack and ratio of the first linear in it, as "4_2"; None where no linear carries its size."""
        return next((node.removeprefix("linear") for node in self.nodes if node in LINEARS), None)

    def resized(self, size_index: str | None) -> Formula:
        """The same formula with all linears of this size; None: `linear`, without a size."""
        name = "linear" if size_index is None else f"linear{size_index}"
        return Formula(tuple(name if is_linear(node) else node for node in self.nodes))


def is_linear(node: str) -> bool:
    """Whether a node is one of the linear maps."""
    return node.startswith("linear")


def plain(stack: int = 1, ratio: int = 1) -> Formula:
    """BERT's own feed-forward, the formula of a supernet (stack 4) and the seed of a search."""
    name = f"linear{stack}_{ratio}"
    return Formula((name, "gelu", name, "x", "wb1", "wb2"))


@lru_cache(maxsize=8192)
def parse(text: str) -> Formula:
    """The formula that `text` writes; blanks do not count. Raises ValueError with the column of what is wrong."""
    nodes: list[str] = []
    calls: list[tuple[str, int]] = []  # open parentheses: the function, and how many arguments it has got
    place, due = 0, "a name"  # due: what may come next

    def wrong(what: str) -> ValueError:
        return ValueError(f"formula {_shown(text)}, column {place + 1}: {what}")

    text = text.rstrip()
    while place < len(text):
        token = TOKEN.match(text, place)
        if token is None:
            raise wrong(f"{text[place : place + 10]!r} is no part of a formula")
        place, name, mark = token.start(token.lastgroup or 0), token["name"], token["mark"]
        if due == "nothing" or (name is None) != (due != "a name") or (due == "(") != (mark == "("):
            raise wrong(f"{name or mark!r} where {due if due != 'end' else ', or )'} is expected")
        if name is not None:
            if name not in ARITY:
                raise wrong(f"unknown {name!r}; a formula has {', '.join(ARITY)}")
            nodes.append(name)
            if ARITY[name]:
                calls.append((name, 0))
                due = "("
                if len(calls) > MAX_DEPTH:
                    raise wrong(f"more than {MAX_DEPTH} parentheses inside one another")
        elif mark == "(":
            due = "a name"
        if (name is not None and not ARITY[name]) or mark == ")":  # an argument is whole
            if mark == ")":
                function, got = calls.pop()
                if got != ARITY[function]:
                    raise wrong(f"{function} has {got} arguments; it takes {ARITY[function]}")
            due = "end" if calls else "nothing"
            if calls:
                calls[-1] = (calls[-1][0], calls[-1][1] + 1)
        elif mark == ",":
            function, got = calls[-1]
            if got == ARITY[function]:
                raise wrong(f"{function} takes {got} arguments, not more")
            due = "a name"
        place = token.end()
    if due != "nothing":
        raise wrong(f"the formula ends where {due if due != 'end' else ', or )'} is expected")
    return Formula(tuple(nodes))


def parse_all(text: str) -> list[Formula]:
    """The formulas of an architecture, one per layer, as a file has them: with a comma and a blank between two.

    Raises ValueError as `parse` does.
    """
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    return [parse(part) for part in (*parts, text[start:])]


def print_all(formulas: Sequence[Formula]) -> str:
    """The text that `parse_all` reads."""
    return ", ".join(map(str, formulas))


def encode(formulas: Sequence[Formula], stage: Literal[1, 2, 3], faithful: bool = False) -> list[int]:
    """An architecture as the numbers that a search's classifier sees.

    Stages 1 and 2: per layer the nodes in prefix order by their place in the table, filled up with -1 to 20. Stage 3:
    per layer the place of its size among 1_1, 1_2, …, 4_4. Raises ValueError for a formula of more than 20 nodes
    (faithful: it takes more room, and what comes behind moves on), and for a linear with or without a size where the
    stage wants the other.
    """
    numbers: list[int] = []
    for layer, formula in enumerate(formulas):
        if stage == 3:
            if formula.size_index is None:
                raise ValueError(f"layer {layer}: {formula} has no size; stage 3 wants linear1_1 to linear4_4")
            numbers.append(SIZES.index(formula.size_index))
            continue
        if other := [node for node in formula.nodes if node not in IDS[stage]]:
            raise ValueError(f"layer {layer}: {other[0]} has no number in stage {stage}")
        if len(formula.nodes) > ENCODED_NODES and not faithful:
            raise ValueError(f"layer {layer}: {len(formula.nodes)} nodes; at most {ENCODED_NODES} are encoded")
        ids = [IDS[stage][node] for node in formula.nodes]
        numbers += ids + [-1] * (ENCODED_NODES - len(ids))
    return numbers


def refusal(formula: Formula, heights: tuple[int, int] = HEIGHTS, faithful: bool = False) -> str | None:
    """Why a search must not choose this formula; None where it may.

    heights: the least and the greatest. faithful: as the original, which asks for the letter x (that of "max" will do),
    finds equal arguments only where the first has no comma, and takes formulas that are longer than their encoding.
    """
    nodes, text = formula.nodes, str(formula)
    if why := _unrunnable(formula):
        return why
    if not heights[0] <= formula.height <= heights[1]:
        return f"its height is {formula.height}; expected {heights[0]} to {heights[1]}"
    if not ("x" in text if faithful else "x" in nodes):
        return "it does not use x"
    for start, node in enumerate(nodes):
        arguments = formula.arguments(start)
        if node in ACTIVATIONS and nodes[start + 1] in ACTIVATIONS:
            return f"{node} is applied to {nodes[start + 1]}, an activation to an activation"
        if is_linear(node) and is_linear(nodes[start + 1]):
            return "a linear is applied to a linear"
        if node in BINARY:
            first, second = (formula.text(place) for place in arguments)
            if first == second and not (faithful and "," in first):
                return f"both arguments of {node} are {first}"
    if len(nodes) > ENCODED_NODES and not faithful:
        return f"it has {len(nodes)} nodes; at most {ENCODED_NODES} can be encoded"
    return None


def _unrunnable(formula: Formula) -> str | None:
    nodes = formula.nodes
    if nodes[0] in ("wb1", "wb2"):
        return f"it is {nodes[0]} alone, weights and no tensor"
    for start, node in enumerate(nodes):
        for number, place in enumerate(formula.arguments(start), 1):
            given, wants_weights = nodes[place], is_linear(node) and number == 2
            if (given in ("wb1", "wb2")) != wants_weights:
                return (
                    f"argument {number} of {node} is {given}; expected {'wb1 or wb2' if wants_weights else 'a tensor'}"
                )
    for leaf in ("wb1", "wb2"):
        if nodes.count(leaf) != 1:
            return f"it uses {leaf} {nodes.count(leaf)} times; expected once"
    if nodes.index("wb1") > nodes.index("wb2"):
        return "wb2 stands before wb1"
    names = sorted({node for node in nodes if is_linear(node)})
    if len(names) > 1:
        return f"its linears are {' and '.join(names)}; expected one name"
    return None


def check_runs(formula: Formula, hidden_size: int, inner_size: int, width: Width) -> None:
    """Raise ValueError where a layer of these widths cannot compute the formula, with the reason."""
    why = _unrunnable(formula)
    if why is None and formula.size_index is None:
        why = "its linears have no size; write linear1_1 to linear4_4"
    if why is None:
        out = _width(formula, 0, hidden_size, inner_size, width)
        why = out if isinstance(out, str) else None
        if out != hidden_size and why is None:
            why = f"its result is {out} wide; expected hidden_size {hidden_size}"
    if why is not None:
        raise ValueError(f"formula {formula}: {why}")


def _width(formula: Formula, start: int, hidden_size: int, inner_size: int, rule: Width) -> int | str:
    """Of the subtree's result, or why it has none."""
    node = formula.nodes[start]
    if node == "x":
        return hidden_size
    places = formula.arguments(start)
    if is_linear(node):
        wants, makes = (hidden_size, inner_size) if formula.nodes[places[1]] == "wb1" else (inner_size, hidden_size)
        got = _width(formula, places[0], hidden_size, inner_size, rule)
        if isinstance(got, str) or got == wants:
            return got if isinstance(got, str) else makes
        return f"{formula.nodes[places[1]]} takes a width of {wants}, and is given {got}"
    widths = [_width(formula, place, hidden_size, inner_size, rule) for place in places]
    for width in widths:
        if isinstance(width, str):
            return width
    return min(widths) if rule == "min" else max(widths)


def neutral(operator: str, dtype: torch.dtype, width: Width) -> float:
    """What a narrower argument is padded with: 0 for add, 1 for mul, for max the most negative number.

    max-faithful: -1e-10 for max, as in the original, which divides by -1e10 where it meant to multiply.
    """
    if operator == "max":
        return -1e-10 if width == "max-faithful" else torch.finfo(dtype).min
    return {"add": 0.0, "mul": 1.0}[operator]


def binary(operator: str, width: Width, dim: Literal[-1, 0] = -1) -> Callable[[Tensor, Tensor], Tensor]:
    """add, mul or max of two tensors whose sizes on the feature axis may differ: both are cut to the smaller one
    ("min"), or the narrower one is padded up ("max").  dim: the feature axis, of (..., H) or of (H, T).
    """
    compute = BINARY[operator]

    def operate(a: Tensor, b: Tensor) -> Tensor:
        m, n = a.shape[dim], b.shape[dim]
        if m == n:
            return compute(a, b)
        if width == "min":
            return compute(a.narrow(dim, 0, min(m, n)), b.narrow(dim, 0, min(m, n)))
        return compute(*(grown(t, max(m, n)) for t in (a, b)))

    def grown(t: Tensor, size: int) -> Tensor:
        missing = size - t.shape[dim]
        if not missing:
            return t
        before = [0, 0] * (t.ndim - 1 if dim == 0 else 0)
        return F.pad(t, [*before, 0, missing], value=neutral(operator, t.dtype, width))

    return operate


@dataclass(frozen=True)
class Plan:
    """A formula ready to run: run(x, first, second), where first and second apply wb1 and wb2."""

    stack: int
    ratio: int
    run: Run


def may_overwrite() -> bool:
    """Whether what a layer has just computed can be overwritten: without gradients, and outside of an export."""
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling())


@lru_cache(maxsize=8192)
def prepare(text: str, width: Width, dim: Literal[-1, 0] = -1, overwrite: bool = False) -> Plan:
    """The formula as nested closures, made once per text: a call walks no tree.

    text: a config's, which has checked it. dim: the feature axis. overwrite: activations take the place of what a
    linear or an operator has computed; up to a tenth faster, and only without gradients.
    """
    formula = parse(text)
    assert formula.size_index is not None
    stack, ratio = map(int, formula.size_index.split("_"))
    return Plan(stack, ratio, _closure(formula, 0, width, dim, overwrite))


def _closure(formula: Formula, start: int, width: Width, dim: Literal[-1, 0], overwrite: bool) -> Run:
    node = formula.nodes[start]
    if node == "x":
        return lambda x, first, second: x
    arguments = formula.arguments(start)
    inner = _closure(formula, arguments[0], width, dim, overwrite)
    if is_linear(node):
        if formula.nodes[arguments[1]] == "wb1":
            return lambda x, first, second: first(inner(x, first, second))
        return lambda x, first, second: second(inner(x, first, second))
    if node in ACTIVATIONS:
        own = overwrite and formula.nodes[arguments[0]] != "x"
        activation = (OVERWRITING if own else ACTIVATIONS)[node]
        return lambda x, first, second: activation(inner(x, first, second))
    other, operate = _closure(formula, arguments[1], width, dim, overwrite), binary(node, width, dim)
    return lambda x, first, second: operate(inner(x, first, second), other(x, first, second))


def check_width(width: str) -> None:
    """Raise ValueError for a rule that there is not."""
    if width not in get_args(Width):
        raise ValueError(f"feed_forward_width is {width!r}; expected {' or '.join(map(repr, get_args(Width)))}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
