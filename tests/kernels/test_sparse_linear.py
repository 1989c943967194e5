"""Sparse linear layers: every version against the dense definition, in values and gradients, in every format."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compresskit.kernels import sparse_linear
from compresskit.kernels.sparse_linear import BLOCKS, IMPLEMENTATIONS, MAX_COLUMNS, SparseWeight

# float32 sums of up to 3072 products stay near 3e-7 of the result; bfloat16 rounds it to 8 bits, 2e-3 on average
# One output alone may be rounded to bfloat16 by 2⁻⁸ = 3.9e-3 of itself.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 4e-3}


@pytest.fixture
def numba_sparse():
    """The module of compiled products; skips where numba is not there."""
    return pytest.importorskip("compresskit.kernels.numba_sparse", reason="no numba", exc_type=ImportError)


def weight_of(rows: int, columns: int, density: float = 0.1, block: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(rows // block, columns, generator=generator) < density
    return torch.randn(rows, columns, generator=generator) * kept.repeat_interleave(block, 0)


def states_of(features: int, tokens: int, feature_major: bool, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(tokens, features, generator=torch.Generator().manual_seed(1)).to(dtype)
    return x.T.contiguous() if feature_major else x


def by_definition(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, feature_major: bool
) -> Tensor:
    """In float64."""
    y = F.linear((x.T if feature_major else x).double(), weight.double(), None if bias is None else bias.double())
    y = y if activation is None else F.gelu(y)
    return y.T if feature_major else y


def assert_close(found: Tensor, right: Tensor, tolerance: float) -> None:
    assert found.shape == right.shape
    distance, size = (found.double() - right.double()).norm(), right.double().norm()
    assert distance <= tolerance * size, f"relative error {distance / size:.2e}"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("feature_major", [True, False], ids=["feature-major", "row-major"])
@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("name", sorted(IMPLEMENTATIONS))
@pytest.mark.parametrize(
    ("rows", "columns", "tokens", "block"), [(768, 768, 128, 1), (48, 3072, 200, 8), (80, 1000, 1, 4), (33, 20, 387, 1)]
)
def test_every_version_gives_the_dense_product(
    monkeypatch, name, rows, columns, tokens, block, activation, feature_major, dtype
):
    monkeypatch.setenv("COMPRESSKIT_KERNELS", name)
    weight, x = weight_of(rows, columns, block=block), states_of(columns, tokens, feature_major, dtype)
    bias = torch.randn(rows, generator=torch.Generator().manual_seed(2))
    if dtype == torch.float64:
        weight, bias = weight.double(), bias.double()
    stored = SparseWeight.from_dense(weight, block)
    found = sparse_linear.sparse_linear(x, stored, bias, activation, feature_major=feature_major)
    assert found.dtype == dtype
    assert found.is_contiguous()
    # weights rounded to bfloat16 too, as the dense version does, cost as much again
    tolerance = TOLERANCE[dtype] * (2 if name == "torch" else 1)
    assert_close(found, by_definition(x, weight, bias, activation, feature_major), tolerance)


@settings(max_examples=60, deadline=None)
@given(
    block=st.sampled_from(BLOCKS),
    row_blocks=st.integers(1, 40),
    columns=st.integers(1, 2 * MAX_COLUMNS + 2),
    tokens=st.integers(1, 300),
    density=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    with_bias=st.booleans(),
    feature_major=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape_and_density_in_any_block(
    block, row_blocks, columns, tokens, density, with_bias, feature_major, seed
):
    weight = weight_of(row_blocks * block, columns, density, block, seed)
    bias = torch.ones(len(weight)) if with_bias else None
    stored = SparseWeight.from_dense(weight, block)
    assert torch.equal(stored.to_dense(), weight)
    for dtype in (torch.float32, torch.bfloat16):
        x = states_of(columns, tokens, feature_major, dtype)
        found = sparse_linear.sparse_linear(x, stored, bias, feature_major=feature_major)
        assert_close(found, by_definition(x, weight, bias, None, feature_major), TOLERANCE[dtype])


@pytest.mark.parametrize("columns", [3072, 65536, 100_000])
def test_columns_beyond_16_bits_are_no_limit(columns):
    weight = weight_of(3, columns, 0.01)
    stored = SparseWeight.from_dense(weight)
    assert stored.indices.dtype == torch.int16
    assert stored.indices.max() < MAX_COLUMNS
    x = states_of(columns, 5, feature_major=False)
    assert_close(sparse_linear.sparse_linear(x, stored), by_definition(x, weight, None, None, False), 2e-6)


def test_activations_of_any_number_of_dimensions_and_strides():
    weight = weight_of(24, 40)
    stored = SparseWeight.from_dense(weight)
    x = torch.randn(2, 40, 3, 7).permute(0, 2, 3, 1)
    assert_close(sparse_linear.sparse_linear(x, stored), x.double() @ weight.double().T, 2e-6)
    assert sparse_linear.sparse_linear(torch.randn(40), stored).shape == (24,)
    assert sparse_linear.sparse_linear(torch.randn(0, 40), stored).shape == (0, 24)
    assert sparse_linear.sparse_linear(torch.randn(40, 0), stored, feature_major=True).shape == (24, 0)


def test_gelu_is_exact_far_out_and_keeps_what_is_not_a_number(numba_sparse):
    """The identity as weight: the epilogue alone."""
    values = [*torch.linspace(-8, 8, 4001).tolist(), -1e4, 1e4, float("inf"), float("nan"), -0.0]
    x = torch.tensor(values)[None]
    stored = SparseWeight.from_dense(torch.ones(1, 1))
    found = sparse_linear.sparse_linear(x, stored, activation="gelu", feature_major=True)
    right = F.gelu(x.double())
    torch.testing.assert_close(found.double(), right, rtol=3e-7, atol=5e-7, equal_nan=True)


def test_bfloat16_is_rounded_to_nearest_and_keeps_what_is_not_a_number(numba_sparse):
    x = torch.tensor([[1.0, -2.5, float("inf"), float("-inf"), float("nan"), 3.14]] * 3, dtype=torch.bfloat16)
    stored = SparseWeight.from_dense(torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1 + 2**-8]]))
    found = sparse_linear.sparse_linear(x, stored, feature_major=True)
    right = (x.float() * torch.tensor([[1.0], [1.0], [1 + 2**-8]])).bfloat16()
    torch.testing.assert_close(found, right, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", sorted(IMPLEMENTATIONS))
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("feature_major", [True, False], ids=["feature-major", "row-major"])
@pytest.mark.parametrize(
    ("rows", "columns", "tokens", "block"), [(32, 900, 150, 1), (48, 30, 1, 16), (8, 1600, 129, 4)]
)
def test_gradients_are_those_of_the_dense_layer_where_the_weight_has_values(
    monkeypatch, name, dtype, feature_major, rows, columns, tokens, block
):
    monkeypatch.setenv("COMPRESSKIT_KERNELS", name)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    weight = weight_of(rows, columns, block=block).to(wide)
    stored = SparseWeight.from_dense(weight, block)
    stored.values.requires_grad_()
    bias = torch.randn(rows, dtype=wide, requires_grad=True)
    x = states_of(columns, tokens, feature_major, dtype).requires_grad_()
    y = sparse_linear.sparse_linear(x, stored, bias, "gelu", feature_major=feature_major)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    dx, dvalues, dbias = torch.autograd.grad(y, (x, stored.values, bias), upstream)
    assert (dx.dtype, dvalues.dtype, dbias.dtype) == (dtype, wide, wide)

    exact = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    right = torch.autograd.grad(by_definition(*exact, "gelu", feature_major), exact, upstream.double())
    on_mask = SparseWeight.from_dense(weight.double(), block)
    row, column = sparse_linear.places(on_mask.indices, on_mask.row_pointers, on_mask.shape, block)
    # gradients sum products of numbers that were rounded twice
    tolerance = TOLERANCE[dtype] * 5
    assert_close(dx, right[0], tolerance)
    assert_close(dvalues, right[1].view(-1, block, columns)[row, :, column], tolerance)
    assert_close(dbias, right[2], tolerance)


def test_in_float64_autograd_agrees_with_finite_differences():
    stored = SparseWeight.from_dense(weight_of(8, 12, 0.3, 4).double(), 4)
    values, x, bias = (
        stored.values.requires_grad_(),
        torch.randn(5, 12).double().requires_grad_(),
        torch.zeros(8).double(),
    )
    assert torch.autograd.gradcheck(
        lambda x, values, bias: sparse_linear.sparse_linear(
            x, SparseWeight(values, stored.indices, stored.row_pointers, stored.shape), bias, "gelu"
        ),
        (x, values, bias.requires_grad_()),
    )


def test_only_what_asks_for_a_gradient_is_computed(monkeypatch):
    def never(*given, **named):
        raise AssertionError("computed")

    stored = SparseWeight.from_dense(weight_of(16, 20))
    monkeypatch.setitem(sparse_linear.SAMPLED_IMPLEMENTATIONS, "numba", never)
    x = torch.randn(3, 20, requires_grad=True)
    sparse_linear.sparse_linear(x, stored).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("feature_major", [True, False])
def test_torch_accepts_the_operators(feature_major):
    stored = SparseWeight.from_dense(weight_of(16, 20, block=4), 4)
    values, bias = stored.values.requires_grad_(), torch.randn(16, requires_grad=True)
    x = states_of(20, 6, feature_major).requires_grad_()
    parts = (stored.indices, stored.row_pointers)
    torch.library.opcheck(
        sparse_linear.product, (x, values, *parts, bias, *stored.transposed, stored.shape, feature_major)
    )
    upstream = states_of(16, 6, feature_major)
    torch.library.opcheck(sparse_linear.sampled, (upstream, x.detach(), *parts, stored.shape, 4, feature_major))


def test_under_torch_compile_values_and_gradients_stay():
    stored = SparseWeight.from_dense(weight_of(16, 20))
    stored.values.requires_grad_()
    x, bias = states_of(20, 6, feature_major=False).requires_grad_(), torch.randn(16)

    def layer(x: Tensor) -> Tensor:
        return sparse_linear.sparse_linear(x, stored, bias, "gelu")

    results = []
    for form in (layer, torch.compile(layer, backend="aot_eager")):
        y = form(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), (x, stored.values))])
    torch.testing.assert_close(*results)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), results[0][0])


def test_values_that_are_a_parameter_learn_the_dense_layers_steps():
    """A few steps of SGD on the mask equal the same steps of a dense layer whose other weights are held at zero."""
    weight, x = weight_of(32, 48, 0.2), torch.randn(40, 48)
    target = torch.randn(40, 32)
    stored = SparseWeight.from_dense(weight)
    learned = SparseWeight(torch.nn.Parameter(stored.values), stored.indices, stored.row_pointers, stored.shape)
    dense = torch.nn.Parameter(weight.clone())
    optimizers = [torch.optim.SGD([parameter], lr=0.1) for parameter in (learned.values, dense)]
    for _ in range(5):
        for y in (sparse_linear.sparse_linear(x, learned), F.linear(x, dense * (weight != 0))):
            (y - target).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(learned.to_dense(), dense * (weight != 0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tokens", [150, 1100])  # threads share the rows of the one, and the tiles of the other
def test_two_threads_give_what_one_gives(numba_sparse, monkeypatch, tokens):
    monkeypatch.setattr(numba_sparse, "PARALLEL", 1)
    threads = torch.get_num_threads()
    weight = weight_of(100, 900, block=4)
    stored = SparseWeight.from_dense(weight, 4)
    x = states_of(900, tokens, feature_major=False).requires_grad_()
    stored.values.requires_grad_()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            y = sparse_linear.sparse_linear(x, stored, activation="gelu")
            results.append([y, *torch.autograd.grad(y.square().sum(), (x, stored.values))])
    finally:
        torch.set_num_threads(threads)
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(others, results[0], strict=True))


@pytest.mark.parametrize("sums", [{1: 64, 4: 16, 8: 8, 16: 4}, {1: 16, 4: 4, 8: 4, 16: 4}], ids=["AVX2", "narrow"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("block", BLOCKS)
def test_narrow_registers_give_the_same(numba_sparse, monkeypatch, sums, dtype, block):
    monkeypatch.setattr(numba_sparse, "SUMS", sums)
    weight, x = weight_of(32, 800, block=block), states_of(800, 150, True, dtype)
    stored = SparseWeight.from_dense(weight, block)
    found = sparse_linear.sparse_linear(x, stored, feature_major=True)
    assert_close(found, by_definition(x, weight, None, None, True), TOLERANCE[dtype])


WITHOUT_NUMBA = """
import sys, warnings
sys.modules["numba"] = None
import torch
from compresskit.kernels.sparse_linear import SparseWeight, sparse_linear
weight, x = torch.eye(6)[:4] * 2, torch.randn(5, 6)
stored = SparseWeight.from_dense(weight)
stored.values.requires_grad_()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        y = sparse_linear(x, stored)
        y.sum().backward()
torch.testing.assert_close(y, x @ weight.T)
torch.testing.assert_close(stored.values.grad[:, 0], 3 * x.sum(0)[:4])
print(*(warning.message for warning in caught), sep="\\n")
"""


def test_without_numba_the_result_is_right_and_one_warning_says_what_to_do():
    done = subprocess.run([sys.executable, "-c", WITHOUT_NUMBA], capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    assert line.startswith("sparse linear layers run as dense ones, slowly: numba cannot be imported")
    assert line.endswith("pip install numba")


TWICE = """
import os, sys, torch
from compresskit.kernels.sparse_linear import SparseWeight, sparse_linear
from compresskit.kernels import numba_sparse
sparse_linear(torch.randn(5, 6), SparseWeight.from_dense(torch.eye(6)))
print(sum(numba_sparse.product(32, 32, 1, False).stats.cache_hits.values()))
"""


def test_compiled_code_is_kept_on_disk(numba_sparse, tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    runs = [
        subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert runs == ["0\n", "1\n"]


def test_without_a_folder_to_keep_it_in_code_is_compiled_each_time(numba_sparse, tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_LOCATOR_CLASSES", "ZipCacheLocator")  # takes no module outside of a zip file
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


def test_importing_the_package_does_not_load_numba():
    program = "import sys, compresskit.kernels.sparse_linear, compresskit.cli; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("x", "bias", "activation", "feature_major", "sentence"),
    [
        ((5, 7), None, None, False, r"x is \(5, 7\); a weight \(4, 6\) takes \(..., 6\)"),
        ((5, 6), None, None, True, r"x is \(5, 6\); a weight \(4, 6\) takes \(6, tokens\)"),
        ((6, 5, 2), None, None, True, r"x is \(6, 5, 2\); a weight \(4, 6\) takes \(6, tokens\)"),
        ((5, 6), (6,), None, False, r"bias is \(6,\); a weight \(4, 6\) takes \(4,\)"),
        ((5, 6), None, "relu", False, "activation is 'relu'; expected None or 'gelu'"),
    ],
)
def test_what_does_not_fit_is_refused(x, bias, activation, feature_major, sentence):
    stored = SparseWeight.from_dense(torch.ones(4, 6))
    bias = None if bias is None else torch.zeros(bias)
    with pytest.raises(ValueError, match=sentence):
        sparse_linear.sparse_linear(torch.zeros(x), stored, bias, activation, feature_major=feature_major)


def test_a_weight_elsewhere_is_refused():
    """Its addresses would be nonsense on the CPU."""
    stored = SparseWeight.from_dense(torch.ones(4, 6))
    stored.__dict__["values"] = stored.values.to("meta")
    with pytest.raises(ValueError, match="x is on cpu, the weight on meta; move one of them"):
        sparse_linear.sparse_linear(torch.zeros(5, 6), stored)


@pytest.mark.parametrize("block", [2, 16])
def test_a_block_that_does_not_divide_the_rows_is_refused(block):
    with pytest.raises(
        ValueError, match=rf"block is {block}; expected one of \(1, 4, 8, 16\) that divides the 24 rows"
    ):
        SparseWeight.from_dense(torch.ones(24, 5), block)


@pytest.mark.parametrize(
    ("part", "value", "sentence"),
    [
        ("indices", torch.tensor([0, 1, 9], dtype=torch.int16), "lead out of the weight"),
        ("indices", torch.tensor([0, 1, -1], dtype=torch.int16), "lead out of the weight"),
        ("indices", torch.tensor([0, 1, 2]), "expected torch.int16"),
        ("row_pointers", torch.tensor([0, 2, 1, 3], dtype=torch.int32), "lead out of the weight"),
        ("row_pointers", torch.tensor([0, 1, 2, 9], dtype=torch.int32), "lead out of the weight"),
        ("row_pointers", torch.tensor([0, 3], dtype=torch.int32), "do not belong together"),
        ("values", torch.ones(2, 1), "do not belong together"),
        ("values", torch.ones(3, 3), "blocks are of"),
        ("values", torch.ones(3, 2)[:, :1], "must be contiguous"),
        ("shape", (3, 2), "lead out of the weight"),
    ],
)
def test_parts_from_a_damaged_file_are_refused(part, value, sentence):
    """The compiled code checks nothing."""
    stored = SparseWeight.from_dense(torch.eye(3))
    parts = {name: getattr(stored, name) for name in ("values", "indices", "row_pointers", "shape")}
    assert torch.equal(SparseWeight(**parts).to_dense(), torch.eye(3))
    with pytest.raises(ValueError, match=sentence):
        SparseWeight(**(parts | {part: value}))


def test_the_cpu_takes_the_compiled_version(monkeypatch):
    called = []
    monkeypatch.setitem(
        IMPLEMENTATIONS, "numba", lambda *given, **named: called.append(1) or IMPLEMENTATIONS["torch"](*given, **named)
    )
    sparse_linear.sparse_linear(torch.zeros(2, 3), SparseWeight.from_dense(torch.ones(1, 3)))
    assert called
