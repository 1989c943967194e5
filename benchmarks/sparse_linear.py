"""Sparse linear layers against the fastest dense and sparse products there are, forward and in training:

    python -m benchmarks.sparse_linear [--only PART …]

Peers: torch's dense product by default and through oneDNN, ONNX Runtime's in float32 and in dynamic int8, torch's and
SciPy's sparse matrices. Masks are random, activations of the first part feature-major; a shape is that of the weight,
N x K, with T tokens. A ratio is the fastest peer's time divided by ours. With --only no result file is written.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import onnx
import onnxruntime
import scipy.sparse
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic
from torch import Tensor

from benchmarks.harness import Goal, Timing, check, measure, publish, table, tensors
from compresskit.kernels.sparse_linear import SparseWeight, sparse_linear

SHAPES = ((768, 768), (3072, 768), (768, 3072))
DENSE = ("torch", "torch, oneDNN", "ORT")
SPARSE = ("torch sparse_csr", "SciPy csr")
FLOAT32_ERROR, BFLOAT16_ERROR, INT8_ERROR = 1e-5, 4e-3, 5e-2

Call = Callable[..., Any]
Results = tuple[list[Timing], dict[str, float]]


class Layer:
    """One layer with zeros, and everybody who can run it on x (T, K) or xt, its transpose; all return (T, N)."""

    def __init__(self, rows: int, columns: int, tokens: int, sparsity: float = 0.95, block: int = 1) -> None:
        generator = torch.Generator().manual_seed(0)
        kept = torch.rand(rows // block, columns, generator=generator) >= sparsity
        weight = torch.randn(rows, columns, generator=generator) / columns**0.5
        self.weight = weight * kept.repeat_interleave(block, 0)
        self.bias = torch.randn(rows, generator=generator)
        self.stored = SparseWeight.from_dense(self.weight, block)
        self.x = torch.randn(tokens, columns, generator=generator)
        self.inputs = (self.x, self.x.T.contiguous())
        self.label = f"{rows}x{columns} T={tokens}"

    def reference(self, x: Tensor, xt: Tensor) -> Tensor:
        """In float64."""
        return F.linear(x.double(), self.weight.double(), self.bias.double())

    def dense(self) -> dict[str, Call]:
        """Peers in float32 that multiply by zeros too."""
        return {
            "torch": at("highest", lambda x, xt: F.linear(x, self.weight, self.bias)),
            "torch, oneDNN": at("medium", lambda x, xt: F.linear(x, self.weight, self.bias)),
            "ORT": self._session(int8=False),
        }

    def sparse(self) -> dict[str, Call]:
        """General sparse matrices."""
        csr, bias = self.weight.to_sparse_csr(), self.bias[:, None]
        theirs, numbers = scipy.sparse.csr_array(self.weight.numpy()), bias.numpy()
        return {
            "torch sparse_csr": lambda x, xt: (csr @ xt).add_(bias).T,
            "SciPy csr": lambda x, xt: torch.from_numpy(theirs @ xt.numpy() + numbers).T,
        }

    def ours(self) -> Call:
        """Feature-major, in the dtype of xt."""
        return lambda x, xt: sparse_linear(xt, self.stored, self.bias, feature_major=True).T

    def int8(self) -> Call:
        """ORT with weights of int8 per output feature, and activations quantised at each call."""
        return self._session(int8=True)

    def _session(self, int8: bool) -> Call:
        states = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, size])
            for name, size in zip("xy", reversed(self.weight.shape), strict=True)
        ]
        nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Add", ["p", "b"], ["y"])]
        parts = {"w": self.weight.T.contiguous(), "b": self.bias}
        initial = [numpy_helper.from_array(tensor.numpy(), name) for name, tensor in parts.items()]
        graph = helper.make_graph(nodes, "linear", states[:1], states[1:], initial)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        with tempfile.TemporaryDirectory() as folder:
            plain, path = Path(folder, "plain.onnx"), Path(folder, "model.onnx")
            onnx.save(model, plain if int8 else path)
            if int8:
                quantize_dynamic(plain, path, per_channel=True)
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda x, xt: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def at(precision: str, form: Call) -> Call:
    """The form with torch's float32 products at this precision."""

    def run(*given: Any) -> Any:
        torch.set_float32_matmul_precision(precision)
        return form(*given)

    return run


def against(timings: Sequence[Timing], peers: Sequence[str], ours: str) -> float:
    """How many times as long the fastest of the peers takes."""
    ms = {timing.contestant: timing.median_ms for timing in timings}
    return min(ms[peer] for peer in peers) / ms[ours]


def race(layer: Layer, contestants: dict[str, Call], max_error: float, label: str | None = None) -> list[Timing]:
    """All contestants on the layer's inputs, held to the float64 product."""
    inputs = {label or layer.label: layer.inputs}
    baseline = next(iter(contestants))
    return measure(contestants, inputs, baseline=baseline, reference=layer.reference, max_error=max_error)


def feature_major(tokens: int) -> Results:
    """All three shapes of BERT-base at 95 % zeros, against all peers."""
    timings, measures = [], {}
    for shape in SHAPES:
        layer = Layer(*shape, tokens)
        exact = race(layer, layer.dense() | layer.sparse() | {"ours": layer.ours()}, FLOAT32_ERROR)
        rounded = race(layer, {"ORT int8": layer.int8(), "ours": layer.ours()}, INT8_ERROR, f"{layer.label}, int8")
        measures[f"{layer.label}, dense"] = against(exact, DENSE, "ours")
        measures[f"{layer.label}, torch default"] = against(exact, ["torch"], "ours")
        measures[f"{layer.label}, sparse"] = against(exact, SPARSE, "ours")
        measures[f"{layer.label}, int8"] = against(rounded, ["ORT int8"], "ours")
        timings += exact + rounded
    return timings, measures


def row_major() -> Results:
    """The drop-in form, (T, K) to (T, N), of few tokens too."""
    timings, measures = [], {}
    few = [(768, 768, tokens) for tokens in (1, 8, 32, 100)]
    for rows, columns, tokens in [(*shape, 128) for shape in SHAPES] + few:
        layer = Layer(rows, columns, tokens)
        ours = {"ours, row-major": lambda x, xt, layer=layer: sparse_linear(x, layer.stored, layer.bias)}
        timings += race(layer, layer.dense() | ours, FLOAT32_ERROR)
        measures[f"{layer.label}, row-major, dense"] = against(timings[-4:], DENSE, "ours, row-major")
    return timings, measures


def bfloat16() -> Results:
    """Activations in bfloat16, sums in float32, against dense float32."""
    timings, measures = [], {}
    for tokens in (128, 1024):
        for shape in SHAPES:
            layer = Layer(*shape, tokens)
            half, ours = layer.inputs[1].bfloat16(), layer.ours()
            contestants = layer.dense() | {"ours, bfloat16": lambda x, xt, half=half, ours=ours: ours(x, half)}
            timings += race(layer, contestants, BFLOAT16_ERROR)
            measures[f"{layer.label}, bfloat16, dense"] = against(timings[-4:], DENSE, "ours, bfloat16")
    return timings, measures


def sparsities() -> Results:
    """From 50 to 98 % zeros, one by one and in blocks, 768x768 and 128 tokens."""
    timings, measures = [], {}
    for sparsity in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98):
        for block in (1, 4, 8, 16):
            layer = Layer(768, 768, 128, sparsity, block)
            name = f"{sparsity:.0%} zeros in blocks of {block}"
            timings += race(layer, layer.dense() | {"ours": layer.ours()}, FLOAT32_ERROR, f"{layer.label}, {name}")
            measures[f"{name}, dense"] = against(timings[-4:], DENSE, "ours")
    return timings, measures


def training() -> Results:
    """Output and gradients of one layer, 3072x768, 1024 tokens, whose mask is fixed."""
    layer = Layer(3072, 768, 1024)
    stored = layer.stored
    values, dense, bias = (t.detach().clone().requires_grad_() for t in (stored.values, layer.weight, layer.bias))
    learns = SparseWeight(values, stored.indices, stored.row_pointers, stored.shape)
    upstream = torch.randn(1024, 3072, generator=torch.Generator().manual_seed(1))
    turned = upstream.T.contiguous()
    x, xt = (states.requires_grad_() for states in layer.inputs)

    def of_dense(x: Tensor, xt: Tensor) -> list[Tensor]:
        y = F.linear(x, dense, bias)
        dx, _, dbias = torch.autograd.grad(y, (x, dense, bias), upstream)
        return [y, dx, dbias]

    def of_values(x: Tensor, xt: Tensor, feature_major: bool = False) -> list[Tensor]:
        states, gradient = (xt, turned) if feature_major else (x, upstream)
        y = sparse_linear(states, learns, bias, feature_major=feature_major)
        dx, _, dbias = torch.autograd.grad(y, (states, values, bias), gradient)
        return [y.T, dx.T, dbias] if feature_major else [y, dx, dbias]

    exact = [x.detach().double(), layer.weight.double().requires_grad_(), layer.bias.double()]
    (right,) = torch.autograd.grad(F.linear(*exact), exact[1], upstream.double())
    on_mask = SparseWeight.from_dense(torch.where(layer.weight != 0, right, 0)).values
    (found,) = torch.autograd.grad(sparse_linear(x, learns, bias), values, upstream)
    check("gradient of the values", found, list(tensors(on_mask)), 1e-6)

    double = [layer.weight.double(), layer.bias.double().requires_grad_()]

    def reference(x: Tensor, xt: Tensor) -> list[Tensor]:
        wide = x.detach().double().requires_grad_()
        y = F.linear(wide, *double)
        return [y, *torch.autograd.grad(y, (wide, double[1]), upstream.double())]

    contestants = {
        "torch": at("highest", of_dense),
        "torch, oneDNN": at("medium", of_dense),
        "ours": of_values,
        "ours, feature-major": lambda x, xt: of_values(x, xt, feature_major=True),
    }
    label = {f"{layer.label}, training": (x, xt)}
    timings = measure(contestants, label, baseline="torch", reference=reference, max_error=FLOAT32_ERROR)
    return timings, {
        f"training, {ours}, {peer}": against(timings, [peer], ours)
        for ours in ("ours", "ours, feature-major")
        for peer in DENSE[:2]
    }


FIRST_CALL = """
import time, torch
x, weight = torch.randn(768, 128), torch.eye(768)
begin = time.process_time()
from compresskit.kernels.sparse_linear import SparseWeight, sparse_linear
sparse_linear(x, SparseWeight.from_dense(weight), feature_major=True)
print(time.process_time() - begin)
"""


def first_call() -> Results:
    """CPU seconds of the first call in a process that has torch already, imports included: compiling, and from disk."""
    seconds: dict[str, list[float]] = {"cold": [], "cached": []}
    for _ in range(5):
        with tempfile.TemporaryDirectory() as folder:
            for found in seconds.values():
                command, environment = [sys.executable, "-c", FIRST_CALL], os.environ | {"NUMBA_CACHE_DIR": folder}
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
                found.append(float(done.stdout))
    return [], {f"first call, {state}, CPU s": median(found) for state, found in seconds.items()}


PARTS: dict[str, Callable[[], Results]] = {
    **{f"T={tokens}": partial(feature_major, tokens) for tokens in (128, 384, 1024, 4096)},
    "row-major": row_major,
    "bfloat16": bfloat16,
    "sparsities": sparsities,
    "training": training,
    "first call": first_call,
}

GOALS = {
    "80% zeros in blocks of 1, dense": Goal(floor=1.8, aim=2.5),
    "90% zeros in blocks of 1, dense": Goal(floor=3.8, aim=5.0),
    "98% zeros in blocks of 1, dense": Goal(floor=15.0, aim=20.0),
    "training, ours, torch": Goal(floor=7.0, aim=12.0),
    "training, ours, torch, oneDNN": Goal(floor=3.5, aim=6.0),
    "first call, cold, CPU s": Goal(at_most=3.0, aim=1.5),
    "first call, cached, CPU s": Goal(at_most=1.0, aim=0.5),
}
for rows, columns in SHAPES:
    for tokens in (128, 384, 1024, 4096):
        where = f"{rows}x{columns} T={tokens}"
        GOALS[f"{where}, dense"] = Goal(floor=7.5, aim=9.0) if tokens == 128 else Goal(floor=6.0, aim=8.0)
        GOALS[f"{where}, sparse"] = Goal(floor=3.5, aim=5.0)
        GOALS[f"{where}, int8"] = Goal(floor=2.0, aim=3.0)
    GOALS[f"{rows}x{columns} T=128, row-major, dense"] = Goal(floor=5.0, aim=7.0)
    GOALS[f"{rows}x{columns} T=128, bfloat16, dense"] = Goal(floor=10.0, aim=13.0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sparse_linear")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    only = parser.parse_args().only
    timings: list[Timing] = []
    measures: dict[str, float] = {}
    for part in only or PARTS:
        more, found = PARTS[part]()
        timings, measures = timings + more, measures | found
    if only:
        print(table(timings), json.dumps({name: round(ratio, 2) for name, ratio in measures.items()}), sep="\n")
    else:
        publish("sparse_linear", timings, measures, GOALS)
