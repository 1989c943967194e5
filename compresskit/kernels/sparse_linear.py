"""Linear layers whose weights are mostly zero, on the CPU, faster than dense ones:

    y = activation(W·x + b),   dx = Wᵀ·dy,   dW = dy·xᵀ where W has values and nowhere else

A weight is stored by its values, in rows with 16-bit column numbers (CSR), one such matrix for every block of columns:
the activations of one block stay in the second-level cache. Values may come in blocks of 4, 8 or 16 output features
that share a column. Activations are fastest feature-major, (features, tokens): tokens lie side by side. Row-major ones
are turned on the way. At 95 % zeros 7 to 9 times as fast as the fastest dense product (benchmarks/sparse_linear.py).

Letters: N output features (rows of the weight), K input features (its columns), T tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from types import ModuleType
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from compresskit.kernels.dispatch import choose

BLOCKS = (1, 4, 8, 16)
COMPILED = (torch.float32, torch.bfloat16)  # dtypes of activations; others take a dense product
MAX_COLUMNS = 768  # in a block of columns: with 128 tokens 384 KiB of float32, and there is 1 MiB of second-level cache


class Pattern(NamedTuple):
    """Where values stand: parts of a SparseWeight, and `order`, the numbers of the values in the order found before."""

    order: Tensor
    indices: Tensor
    row_pointers: Tensor


@dataclass(frozen=True, eq=False)
class SparseWeight:
    """A weight (N, K) by its values, in blocks of `block` neighbouring rows and one column.

    values: (blocks, block), float32 or float64; may be a parameter.
    indices: (blocks,) int16, the column, counted from the start of its block of columns.
    row_pointers: (C·N/block + 1,) int32; number r of column block c owns the values from row_pointers[c·N/block + r] up
        to the next pointer. The C column blocks are ⌈K/C⌉ wide.
    Raises ValueError where the parts do not fit together.
    """

    values: Tensor
    indices: Tensor
    row_pointers: Tensor
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        rows, columns = self.shape
        if self.values.ndim != 2 or self.block not in BLOCKS or rows < 1 or rows % self.block or columns < 1:
            raise ValueError(f"values {tuple(self.values.shape)}: blocks are of {BLOCKS} rows, and divide {self.shape}")
        found = (self.indices.dtype, self.row_pointers.dtype)
        if found != (torch.int16, torch.int32):
            raise ValueError(f"indices and row_pointers are {found}; expected torch.int16 and torch.int32")
        parts = (self.values, self.indices, self.row_pointers)
        if not all(part.is_contiguous() for part in parts):
            raise ValueError("values, indices and row_pointers must be contiguous")
        row_blocks = rows // self.block
        column_blocks = (len(self.row_pointers) - 1) // row_blocks
        fits = column_blocks >= 1 and len(self.row_pointers) == column_blocks * row_blocks + 1
        if not fits or len(self.values) != len(self.indices):
            lengths = ", ".join(str(len(part)) for part in parts)
            raise ValueError(f"values, indices and row_pointers of lengths {lengths} do not belong together")
        if not self._leads_inside(width(columns, column_blocks)):
            raise ValueError(f"row_pointers or indices lead out of the weight {self.shape}")

    def _leads_inside(self, wide: int) -> bool:
        """Whether all pointers and indices are within bounds, which the compiled code does not check."""
        pointers, indices = self.row_pointers, self.indices
        if pointers[0] != 0 or pointers[-1] != len(indices) or (pointers.diff() < 0).any():
            return False
        if not len(indices):
            return True
        _, column = places(indices, pointers, self.shape, self.block)
        return bool(indices.min() >= 0 and indices.max() < wide and column.max() < self.shape[1])

    @property
    def block(self) -> int:
        """Neighbouring rows that share a column."""
        return self.values.shape[1]

    @classmethod
    def from_dense(cls, weight: Tensor, block: int = 1) -> SparseWeight:
        """The nonzero values of a weight (N, K), and the zeros beside them in their blocks.

        Raises ValueError for a block that is none of BLOCKS or does not divide N.
        """
        rows, columns = weight.shape
        if block not in BLOCKS or rows % block:
            raise ValueError(f"block is {block}; expected one of {BLOCKS} that divides the {rows} rows of the weight")
        blocks = weight.detach().reshape(-1, block, columns)
        row, column = (blocks != 0).any(1).nonzero(as_tuple=True)
        order, indices, row_pointers = pattern(row, column, rows // block, columns)
        values = blocks[row[order], :, column[order]]
        return cls(values if values.dtype == torch.float64 else values.float(), indices, row_pointers, (rows, columns))

    def to_dense(self) -> Tensor:
        """The weight (N, K)."""
        return dense(self.values, self.indices, self.row_pointers, self.shape)

    @cached_property
    def transposed(self) -> Pattern:
        """Where the values stand in the transposed weight, whose blocks are of one row."""
        row, column = places(self.indices, self.row_pointers, self.shape, self.block)
        rows = row[:, None] * self.block + torch.arange(self.block, device=row.device)
        return pattern(column.repeat_interleave(self.block), rows.flatten(), self.shape[1], self.shape[0])


def width(columns: int, column_blocks: int) -> int:
    """Columns in each block of columns but the last, which may have fewer."""
    return -(-columns // column_blocks)


def pattern(row: Tensor, column: Tensor, rows: int, columns: int) -> Pattern:
    """The pattern of values at these places of a matrix of so many rows and columns, which has blocks of one row."""
    column_blocks = -(-columns // MAX_COLUMNS)
    wide = width(columns, column_blocks)
    section = column // wide * rows + row
    order = (section * wide + column % wide).argsort()
    counts = section.bincount(minlength=column_blocks * rows)
    row_pointers = F.pad(counts.cumsum(0), (1, 0)).int()
    return Pattern(order, (column % wide)[order].short(), row_pointers)


def places(indices: Tensor, row_pointers: Tensor, shape: Sequence[int], block: int) -> tuple[Tensor, Tensor]:
    """Number of the block of rows, and column, of every block of values."""
    rows = shape[0] // block
    column_blocks = (len(row_pointers) - 1) // rows
    section = torch.arange(len(row_pointers) - 1, device=indices.device).repeat_interleave(row_pointers.diff())
    return section % rows, section // rows * width(shape[1], column_blocks) + indices


def dense(values: Tensor, indices: Tensor, row_pointers: Tensor, shape: Sequence[int]) -> Tensor:
    """The weight (N, K) of these parts of a SparseWeight."""
    rows, columns = shape
    row, column = places(indices, row_pointers, shape, values.shape[1])
    blocks = values.new_zeros(rows // values.shape[1], values.shape[1], columns)
    blocks[row, :, column] = values
    return blocks.view(rows, columns)


def sparse_linear(
    x: Tensor,
    weight: SparseWeight,
    bias: Tensor | None = None,
    activation: Literal["gelu"] | None = None,
    *,
    feature_major: bool = False,
) -> Tensor:
    """activation(x·Wᵀ + b) for x (..., K); feature-major, activation(W·x + b) for x (K, T).

    bias: (N,); activation: GELU in its exact form.  Returns (..., N) or (N, T) of x's dtype; sums are of float32.
    Gradients reach x, weight.values and bias; the last two in their own dtype.
    Raises ValueError where shapes or devices do not fit together.
    """
    rows, columns = weight.shape
    if x.shape[0 if feature_major else -1] != columns or (feature_major and x.ndim != 2):
        expected = f"({columns}, tokens)" if feature_major else f"(..., {columns})"
        raise ValueError(f"x is {tuple(x.shape)}; a weight {weight.shape} takes {expected}")
    if bias is not None and bias.shape != (rows,):
        raise ValueError(f"bias is {tuple(bias.shape)}; a weight {weight.shape} takes ({rows},)")
    if x.device != weight.values.device:
        raise ValueError(f"x is on {x.device}, the weight on {weight.values.device}; move one of them")
    if activation not in (None, "gelu"):
        raise ValueError(f"activation is {activation!r}; expected None or 'gelu'")
    flat = x if feature_major else x.reshape(-1, columns)
    parts = (weight.values, weight.indices, weight.row_pointers)
    learns = x.requires_grad or weight.values.requires_grad or (bias is not None and bias.requires_grad)
    gradients = learns and torch.is_grad_enabled()
    if gradients or torch.compiler.is_compiling():
        transposed = weight.transposed if gradients else (None, None, None)
        y = product(flat, *parts, bias, *transposed, weight.shape, feature_major)
        y = y if activation is None else F.gelu(y)
    else:  # straight, since an operator of torch costs a third of a small product
        version = choose(IMPLEMENTATIONS, x.device.type)
        y = version(flat, *parts, bias, weight.shape, gelu=activation == "gelu", feature_major=feature_major)
    return y if feature_major else y.view(*x.shape[:-1], rows)


@torch.library.custom_op("compresskit::sparse_linear", mutates_args=())
def product(
    x: Tensor,
    values: Tensor,
    indices: Tensor,
    row_pointers: Tensor,
    bias: Tensor | None,
    order: Tensor | None,
    transposed_indices: Tensor | None,
    transposed_row_pointers: Tensor | None,
    shape: Sequence[int],
    feature_major: bool,
) -> Tensor:
    """x·Wᵀ + b, or W·x + b, as torch knows it. The transposed pattern is needed where x has a gradient."""
    version = choose(IMPLEMENTATIONS, x.device.type)
    return version(x, values, indices, row_pointers, bias, shape, gelu=False, feature_major=feature_major)


@product.register_fake
def _(x, values, indices, row_pointers, bias, order, transposed_indices, transposed_row_pointers, shape, feature_major):
    return x.new_empty((shape[0], x.shape[1]) if feature_major else (x.shape[0], shape[0]))


@torch.library.custom_op("compresskit::sparse_linear_values_gradient", mutates_args=())
def sampled(
    upstream: Tensor,
    x: Tensor,
    indices: Tensor,
    row_pointers: Tensor,
    shape: Sequence[int],
    block: int,
    feature_major: bool,
) -> Tensor:
    """dy·xᵀ where the weight has values, (blocks, block); float32, or float64 for float64 activations."""
    version = choose(SAMPLED_IMPLEMENTATIONS, x.device.type)
    return version(upstream, x, indices, row_pointers, shape, block, feature_major=feature_major)


@sampled.register_fake
def _(upstream, x, indices, row_pointers, shape, block, feature_major):
    dtype = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(len(indices), block, dtype=dtype)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, indices, row_pointers, bias, *transposed, ctx.shape, ctx.feature_major = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x, values, indices, row_pointers, *transposed)


def _gradients(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    x, values, indices, row_pointers, order, *transposed = ctx.saved_tensors
    dx = dvalues = dbias = None
    if ctx.needs_input_grad[0]:
        turned = values.flatten().index_select(0, order)[:, None]
        dx = product(upstream, turned, *transposed, None, None, None, None, ctx.shape[::-1], ctx.feature_major)
    if ctx.needs_input_grad[1]:
        found = sampled(upstream, x, indices, row_pointers, ctx.shape, values.shape[1], ctx.feature_major)
        dvalues = found.to(values.dtype)
    if ctx.needs_input_grad[4]:
        dbias = upstream.sum(1 if ctx.feature_major else 0, dtype=ctx.bias_dtype)
    return dx, dvalues, None, None, dbias, None, None, None, None, None


product.register_autograd(_gradients, setup_context=_keep)


def reference(
    x: Tensor,
    values: Tensor,
    indices: Tensor,
    row_pointers: Tensor,
    bias: Tensor | None,
    shape: Sequence[int],
    *,
    gelu: bool,
    feature_major: bool,
) -> Tensor:
    """The definition: a dense product, in the dtype of the values."""
    weight = dense(values, indices, row_pointers, shape)
    y = (x.T if feature_major else x).to(weight.dtype) @ weight.T
    y = y if bias is None else y + bias
    y = y / 2 * (1 + (y / 2**0.5).erf()) if gelu else y
    return (y.T if feature_major else y).to(x.dtype).contiguous()


def torch_dense(
    x: Tensor,
    values: Tensor,
    indices: Tensor,
    row_pointers: Tensor,
    bias: Tensor | None,
    shape: Sequence[int],
    *,
    gelu: bool,
    feature_major: bool,
) -> Tensor:
    """A dense product, in the dtype of the activations."""
    weight = dense(values, indices, row_pointers, shape).to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    y = F.linear(x.T if feature_major else x, weight, bias)
    y = F.gelu(y) if gelu else y
    return y.T.contiguous() if feature_major else y


def numba_sparse(
    x: Tensor,
    values: Tensor,
    indices: Tensor,
    row_pointers: Tensor,
    bias: Tensor | None,
    shape: Sequence[int],
    *,
    gelu: bool,
    feature_major: bool,
) -> Tensor:
    """Only the products with values; dense in float64 and float16, and without numba."""
    kernels = _numba() if x.dtype in COMPILED and values.dtype == torch.float32 else None
    version = torch_dense if kernels is None else kernels.linear
    bias = bias if bias is None or bias.dtype == values.dtype else bias.to(values.dtype)
    return version(x, values, indices, row_pointers, bias, shape, gelu=gelu, feature_major=feature_major)


def torch_sampled(
    upstream: Tensor,
    x: Tensor,
    indices: Tensor,
    row_pointers: Tensor,
    shape: Sequence[int],
    block: int,
    *,
    feature_major: bool,
) -> Tensor:
    """The definition: the dense gradient, of which most is thrown away."""
    upstream, x = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (upstream, x))
    gradient = upstream @ x.T if feature_major else upstream.T @ x
    row, column = places(indices, row_pointers, shape, block)
    return gradient.view(-1, block, shape[1])[row, :, column]


def numba_sampled(
    upstream: Tensor,
    x: Tensor,
    indices: Tensor,
    row_pointers: Tensor,
    shape: Sequence[int],
    block: int,
    *,
    feature_major: bool,
) -> Tensor:
    """Only the products that are kept; else as numba_sparse."""
    kernels = _numba() if x.dtype in COMPILED else None
    version = torch_sampled if kernels is None else kernels.sampled_product
    return version(upstream, x, indices, row_pointers, shape, block, feature_major=feature_major)


@cache
def _numba() -> ModuleType | None:
    """The compiled versions, or None and, once, a warning."""
    try:
        from compresskit.kernels import numba_sparse as kernels
    except ImportError as error:
        warnings.warn(
            f"sparse linear layers run as dense ones, slowly: numba cannot be imported ({error}); pip install numba",
            stacklevel=2,
        )
        return None
    return kernels


IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {
    "reference": reference,
    "torch": torch_dense,
    "numba": numba_sparse,
}
SAMPLED_IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {
    "reference": torch_sampled,
    "torch": torch_sampled,
    "numba": numba_sampled,
}
