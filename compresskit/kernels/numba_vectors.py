"""Vectors of a fixed number of float32 lanes inside numba functions, as LLVM has them.

Plain loops over arrays reach an eighth of the CPU's rate; a loop whose variable is one wide vector keeps it in
registers, of which LLVM takes as many as the CPU needs. Addresses are integers, strides bytes; nothing is checked.

A *tile row* is the activations of one feature at `lanes` consecutive tokens. A vector holds `copies` of them one after
the other, a copy for each of the output rows that share a weight's column. In bfloat16 two tokens lie in one 32-bit
word: there every copy holds the even tokens first, then the odd ones, which takes no shuffles.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numba.extending
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import register_model

intrinsic: Any = numba.extending.intrinsic  # its types do not know that a caller leaves out the typing context

# erf(z) = z·p(2·(z/LIMIT)² − 1) for |z| ≤ LIMIT, a Chebyshev fit with weight z + 0.2: in float32 at most 1.9e-7 from
# the true value, and 1 at LIMIT.
LIMIT = 3.8
ERF = (
    *(0.37210763, -0.18564121, 0.13773933, -0.11118526, 0.09083548, -0.07251931, 0.055042114, -0.038921636),
    *(0.026726436, -0.018372403, 0.009914224, -0.0032602402, 0.0023815092, -0.002710455, 0.0010216832),
)
# 2ᶠ for |f| ≤ 1/2, a polynomial through Chebyshev's points: in float32 at most 1.1e-7 from the true value, relatively.
POWER = (1.0, 0.693147207, 0.240226509, 0.0555032723, 0.00961805668, 0.00134004282, 0.000154614447)
LOG2_E = 1.44269504
ROUNDING = 12582912.0  # 1.5·2²³: a float32 near it has no digits after the point, and ends in its integer part
BLOCK = 16  # rows and columns that `transpose_block` turns at once

FLOAT, I8, I16, I32, I64 = ir.FloatType(), *(ir.IntType(bits) for bits in (8, 16, 32, 64))


class Vector(types.Type):
    """Numba's type of a vector of `size` float32 lanes."""

    def __init__(self, size: int) -> None:
        self.size = size
        super().__init__(name=f"Vector({size})")


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    """In memory and in registers the vector is LLVM's own."""

    def __init__(self, dmm: Any, fe_type: Vector) -> None:
        super().__init__(dmm, fe_type, ir.VectorType(FLOAT, fe_type.size))


@intrinsic
def load_uint16(typingctx, address):
    """The unsigned 16-bit integer there."""

    def codegen(context, builder, signature, args):
        return builder.zext(_load(builder, I16, args[0]), I64)

    return types.int64(types.int64), codegen


@intrinsic
def load_int32(typingctx, address):
    """The 32-bit integer there."""

    def codegen(context, builder, signature, args):
        return builder.sext(_load(builder, I32, args[0]), I64)

    return types.int64(types.int64), codegen


@intrinsic(prefer_literal=True)
def zeros(typingctx, size):
    """A vector of zeros."""

    def codegen(context, builder, signature, args):
        return ir.Constant(context.get_value_type(signature.return_type), None)

    return Vector(size.literal_value)(size), codegen


@intrinsic(prefer_literal=True)
def load(typingctx, size, address):
    """The `size` floats there."""

    def codegen(context, builder, signature, args):
        return _load(builder, context.get_value_type(signature.return_type), args[1])

    return Vector(size.literal_value)(size, types.int64), codegen


@intrinsic
def store(typingctx, address, value):
    """All lanes, one after the other."""

    def codegen(context, builder, signature, args):
        _store(builder, args[1], args[0])
        return context.get_dummy_value()

    return types.void(types.int64, value), codegen


@intrinsic(prefer_literal=True)
def load_tile(typingctx, lanes, copies, bfloat16, address):
    """A tile row, `copies` times."""

    def codegen(context, builder, signature, args):
        row = _load_tile(builder, lanes.literal_value, bfloat16.literal_value, args[3])
        return _shuffle(builder, row, row, list(range(lanes.literal_value)) * copies.literal_value)

    vector = Vector(lanes.literal_value * copies.literal_value)
    return vector(lanes, copies, bfloat16, types.int64), codegen


@intrinsic(prefer_literal=True)
def store_tile(typingctx, lanes, bfloat16, address, stride, value):
    """Write every copy as a tile row, `stride` bytes apart; to bfloat16 rounded to nearest, ties to even."""

    def codegen(context, builder, signature, args):
        _, _, address, stride, value = args
        for start in range(0, value.type.count, lanes.literal_value):
            row = _shuffle(builder, value, value, range(start, start + lanes.literal_value))
            _store(builder, _pairs(builder, row) if bfloat16.literal_value else row, address)
            address = builder.add(address, stride)
        return context.get_dummy_value()

    return types.void(lanes, bfloat16, types.int64, types.int64, value), codegen


@intrinsic(prefer_literal=True)
def splat(typingctx, lanes, copies, address):
    """The `copies` floats there, each on all lanes of its copy."""

    def codegen(context, builder, signature, args):
        parts = []
        for copy in range(copies.literal_value):
            number = _load(builder, FLOAT, builder.add(args[2], ir.Constant(I64, 4 * copy)))
            vector = ir.VectorType(FLOAT, lanes.literal_value)
            one = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.Constant(I32, 0))
            parts.append(_shuffle(builder, one, one, [0] * lanes.literal_value))
        return _concatenate(builder, parts)

    return Vector(lanes.literal_value * copies.literal_value)(lanes, copies, types.int64), codegen


@intrinsic
def fma(typingctx, a, b, c):
    """a·b + c, rounded once."""

    def codegen(context, builder, signature, args):
        return _fma(builder, *args)

    return a(a, a, a), codegen


@intrinsic
def add(typingctx, a, b):
    """a + b."""

    def codegen(context, builder, signature, args):
        return builder.fadd(*args)

    return a(a, a), codegen


@intrinsic
def subtract(typingctx, a, b):
    """a − b."""

    def codegen(context, builder, signature, args):
        return builder.fsub(*args)

    return a(a, a), codegen


@intrinsic
def multiply(typingctx, a, b):
    """a·b."""

    def codegen(context, builder, signature, args):
        return builder.fmul(*args)

    return a(a, a), codegen


@intrinsic
def maximum(typingctx, a, b):
    """The larger of a and b; b where one is NaN."""

    def codegen(context, builder, signature, args):
        a, b = args
        return builder.select(builder.fcmp_ordered(">", a, b), a, b)

    return a(a, a), codegen


@intrinsic
def reciprocal(typingctx, vector):
    """1/v."""

    def codegen(context, builder, signature, args):
        return builder.fdiv(_constant(1.0, args[0].type), args[0])

    return vector(vector), codegen


@intrinsic
def exp(typingctx, vector):
    """eᵛ of v ≤ 0, relatively at most (1 + |v|)·1.2e-7 from the true value; 1e-38 where that is less. NaN stays NaN."""

    def codegen(context, builder, signature, args):
        (v,) = args
        words = ir.VectorType(I32, v.type.count)
        power = _at_least(builder, builder.fmul(v, _constant(LOG2_E, v.type)), -126.0)
        rounding = _constant(ROUNDING, v.type)
        rounded = builder.fadd(power, rounding)
        rest = builder.fsub(power, builder.fsub(rounded, rounding))
        polynomial = _constant(POWER[-1], v.type)
        for coefficient in POWER[-2::-1]:
            polynomial = _fma(builder, polynomial, rest, _constant(coefficient, v.type))
        exponent = builder.sub(builder.bitcast(rounded, words), _constant(0x4B400000 - 127, words))
        scale = builder.bitcast(builder.shl(exponent, _constant(23, words)), v.type)
        return builder.fmul(polynomial, scale)

    return vector(vector), codegen


@intrinsic(prefer_literal=True)
def repeat(typingctx, copies, vector):
    """The vector, `copies` times."""

    def codegen(context, builder, signature, args):
        lanes = range(args[1].type.count)
        return _shuffle(builder, args[1], args[1], list(lanes) * copies.literal_value)

    return Vector(vector.size * copies.literal_value)(copies, vector), codegen


@intrinsic
def gelu(typingctx, vector):
    """v/2·(1 + erf(v/√2)), 4e-7 at most from the true value; NaN stays NaN."""

    def codegen(context, builder, signature, args):
        (v,) = args
        scaled = builder.fmul(v, _constant(0.5**0.5, v.type))
        z = _at_least(builder, _at_least(builder, scaled, -LIMIT), LIMIT, flip=True)
        argument = _fma(builder, builder.fmul(z, z), _constant(2 / LIMIT**2, v.type), _constant(-1.0, v.type))
        polynomial = _constant(ERF[-1], v.type)
        for coefficient in ERF[-2::-1]:
            polynomial = _fma(builder, polynomial, argument, _constant(coefficient, v.type))
        half = builder.fmul(_at_least(builder, v, -LIMIT * 2**0.5), _constant(0.5, v.type))  # else −100 gives 100·error
        return _fma(builder, half, builder.fmul(z, polynomial), half)

    return vector(vector), codegen


@intrinsic(prefer_literal=True)
def load_rows(typingctx, lanes, copies, address, stride):
    """Tile rows of `copies` features in float32, `stride` bytes apart."""

    def codegen(context, builder, signature, args):
        rows = []
        for copy in range(copies.literal_value):
            place = builder.add(args[2], builder.mul(args[3], ir.Constant(I64, copy)))
            rows.append(_load(builder, ir.VectorType(FLOAT, lanes.literal_value), place))
        return _concatenate(builder, rows)

    return Vector(lanes.literal_value * copies.literal_value)(lanes, copies, types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def add_dots(typingctx, lanes, address, a, b):
    """Add to each of the floats there the scalar product of one copy in a with the same copy in b."""

    def codegen(context, builder, signature, args):
        _, address, a, b = args
        for start in range(0, a.type.count, lanes.literal_value):
            total = _sum(builder, a, b, start, start + lanes.literal_value)
            _store(builder, builder.fadd(_load(builder, FLOAT, address), total), address)
            address = builder.add(address, ir.Constant(I64, 4))
        return context.get_dummy_value()

    return types.void(lanes, types.int64, a, a), codegen


@intrinsic
def prefetch(typingctx, address):
    """Ask for the cache line there; harmless at any address."""

    def codegen(context, builder, signature, args):
        pointer = I8.as_pointer()
        function_type = ir.FunctionType(ir.VoidType(), [pointer, I32, I32, I32])
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
        read, keep, data = (ir.Constant(I32, flag) for flag in (0, 3, 1))
        builder.call(function, [builder.inttoptr(args[0], pointer), read, keep, data])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic(prefer_literal=True)
def copy_element(typingctx, element_bytes, source, target):
    """Copy one element of 2 or 4 bytes."""

    def codegen(context, builder, signature, args):
        element = ir.IntType(8 * element_bytes.literal_value)
        _store(builder, _load(builder, element, args[1]), args[2])
        return context.get_dummy_value()

    return types.void(element_bytes, types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def transpose_block(typingctx, element_bytes, source, source_stride, target, target_stride):
    """Write the block of BLOCK rows and columns at `source`, elements of 2 or 4 bytes, transposed to `target`."""

    def codegen(context, builder, signature, args):
        _, source, source_stride, target, target_stride = args
        vector = ir.VectorType(ir.IntType(8 * element_bytes.literal_value), BLOCK)
        rows = []
        for _ in range(BLOCK):
            rows.append(_load(builder, vector, source))
            source = builder.add(source, source_stride)
        half = BLOCK // 2
        low, high = ([i + offset for pair in zip(range(half), range(BLOCK, BLOCK + half), strict=True) for i in pair]
                     for offset in (0, half))  # fmt: skip
        for _ in range(BLOCK.bit_length() - 1):  # interleaving far rows log2(BLOCK) times moves every bit of the index
            rows = [_shuffle(builder, rows[i], rows[i + half], order) for i in range(half) for order in (low, high)]
        for row in rows:
            _store(builder, row, target)
            target = builder.add(target, target_stride)
        return context.get_dummy_value()

    integers = [types.int64] * 4
    return types.void(element_bytes, *integers), codegen


def _load(builder: Any, kind: ir.Type, address: Any) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=_alignment(kind))


def _store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=_alignment(value.type))


def _alignment(kind: ir.Type) -> int:
    """That of one element: tensors promise no more."""
    element = kind.element if isinstance(kind, ir.VectorType) else kind
    return 4 if element == FLOAT else element.width // 8


def _shuffle(builder: Any, a: Any, b: Any, order: Iterable[int]) -> Any:
    """The lanes of a and b, counted through, in this order."""
    order = list(order)
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(order)), order))


def _concatenate(builder: Any, parts: Sequence[Any]) -> Any:
    """2ⁿ vectors as one; by pairs, which LLVM sees through."""
    while len(parts) > 1:
        lanes = range(2 * parts[0].type.count)
        parts = [_shuffle(builder, parts[i], parts[i + 1], lanes) for i in range(0, len(parts), 2)]
    return parts[0]


def _load_tile(builder: Any, lanes: int, bfloat16: int, address: Any) -> Any:
    """A tile row as float32."""
    if not bfloat16:
        return _load(builder, ir.VectorType(FLOAT, lanes), address)
    words = ir.VectorType(I32, lanes // 2)
    pairs = _load(builder, words, address)
    even = builder.shl(pairs, _constant(16, words))
    odd = builder.and_(pairs, _constant(0xFFFF0000, words))
    return _concatenate(builder, [builder.bitcast(half, ir.VectorType(FLOAT, lanes // 2)) for half in (even, odd)])


def _pairs(builder: Any, row: Any) -> Any:
    """Even and odd tokens, rounded to bfloat16, as 32-bit words of two."""
    lanes = row.type.count
    words = ir.VectorType(I32, lanes // 2)
    halves = []
    for half in (range(lanes // 2), range(lanes // 2, lanes)):
        tokens = _shuffle(builder, row, row, half)
        bits = builder.bitcast(tokens, words)
        last_kept = builder.and_(builder.lshr(bits, _constant(16, words)), _constant(1, words))
        rounded = builder.add(bits, builder.add(last_kept, _constant(0x7FFF, words)))
        is_nan = builder.fcmp_unordered("uno", tokens, tokens)
        halves.append(builder.select(is_nan, _constant(0x7FC00000, words), rounded))
    even, odd = halves
    return builder.or_(builder.lshr(even, _constant(16, words)), builder.and_(odd, _constant(0xFFFF0000, words)))


def _constant(value: float, kind: ir.VectorType) -> ir.Constant:
    return ir.Constant(kind, [value] * kind.count)


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    name = f"llvm.fma.v{a.type.count}f32"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(a.type, [a.type] * 3), name)
    return builder.call(function, [a, b, c])


def _sum(builder: Any, a: Any, b: Any, start: int, stop: int) -> Any:
    """Σ a·b over these lanes, in strips of at most 16."""
    strip = min(16, stop - start)
    total = None
    for first in range(start, stop, strip):
        x, y = (_shuffle(builder, v, v, range(first, first + strip)) for v in (a, b))
        total = builder.fmul(x, y) if total is None else _fma(builder, x, y, total)
    while strip > 1:
        strip //= 2
        low, high = (_shuffle(builder, total, total, half) for half in (range(strip), range(strip, 2 * strip)))
        total = builder.fadd(low, high)
    return builder.extract_element(total, ir.Constant(I32, 0))


def _at_least(builder: Any, v: Any, bound: float, flip: bool = False) -> Any:
    """max(v, bound), or min with `flip`; NaN stays."""
    limit = _constant(bound, v.type)
    return builder.select(builder.fcmp_ordered(">" if flip else "<", v, limit), limit, v)
