"""The same model in other inference engines, as functions that `latency.measure` can time.

    torch          as this suite runs it: on the GPU, or float32 products as kernels/float32.py chose them
    torch-default  dense, with torch's default float32 products
    torch-sparse   pruned layers by their nonzero weights (models/sparse.py)
    onnxruntime    float32;  onnxruntime-int8: weights and activations in 8 bits, scaled at run time, per channel
    openvino       float32;  openvino-bf16: bfloat16 products;  openvino-int8: 8 bits, scaled on a few batches

All but torch's run an ONNX graph on the CPU and need the extra `export`. What 8 bits cost in score has to be measured
on rows of the task: the scales of openvino-int8 come from random tokens, so it tells times only.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

Batch = Mapping[str, Tensor]
Call = Callable[[Batch], object]
Engine = Literal[
    "torch",
    "torch-default",
    "torch-sparse",
    "onnxruntime",
    "onnxruntime-int8",
    "openvino",
    "openvino-bf16",
    "openvino-int8",
]
ENGINES: tuple[Engine, ...] = get_args(Engine)
PACKAGES = {
    "onnxruntime": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino", "nncf"),
}
CALIBRATION_BATCHES = 8


def check_installed(engine: Engine) -> None:
    """Raise ModuleNotFoundError, with the remedy, where a package that the engine needs is not installed."""
    needed = PACKAGES.get(engine.partition("-")[0], ())
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise ModuleNotFoundError(
            f"the engine {engine} needs {', '.join(missing)}; install the extra: pip install 'compresskit[export]'"
        )


def uses_onnx(engine: Engine) -> bool:
    """Whether the engine runs an ONNX graph rather than the module."""
    return engine.partition("-")[0] in PACKAGES


def prepare(engine: Engine, model: nn.Module, graph: Path | None, batch: Batch, threads: int) -> nn.Module | Call:
    """The model in this engine, as `latency.measure` takes it, for batches of the shape of `batch`.

    model: in evaluation mode, sparse or dense as the engine says; graph: its ONNX file, beside which quantised copies
    are kept. Raises ValueError where an engine needs the file and there is none.
    """
    if not uses_onnx(engine):
        return AtDefaultPrecision(model) if engine == "torch-default" else model
    if graph is None:
        raise ValueError(f"the engine {engine} runs an ONNX graph; give its file")
    if engine.startswith("onnxruntime"):
        return _onnxruntime(_int8_onnx(graph) if engine.endswith("int8") else graph, threads)
    return _openvino(engine, graph, batch, threads)


class AtDefaultPrecision(nn.Module):
    """A module that computes with torch's default float32 products, whatever is in force around it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, **batch: Tensor) -> Any:
        """As the model."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            return self.model(**batch)
        finally:
            torch.set_float32_matmul_precision(before)


def _arrays(batch: Batch, names: Sequence[str]) -> dict[str, np.ndarray]:
    return {name: batch[name].numpy() for name in names}


def _int8_onnx(graph: Path) -> Path:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    made = graph.with_suffix(".int8.onnx")
    if not made.exists():
        model = onnx.load(graph)
        model.graph.ClearField("value_info")  # the exporter's shapes inside are at odds with those found here
        quantize_dynamic(model, made, weight_type=QuantType.QInt8, per_channel=True)
    return made


def _onnxruntime(graph: Path, threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    return lambda batch: session.run(None, _arrays(batch, names))


def _openvino(engine: Engine, graph: Path, batch: Batch, threads: int) -> Call:
    import openvino

    core = openvino.Core()
    found = core.read_model(_int8_openvino(core, graph, batch) if engine.endswith("int8") else graph)
    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32" if engine == "openvino" else "bf16",
    }
    request = core.compile_model(found, "CPU", settings).create_infer_request()
    names = [given.any_name for given in found.inputs]
    return lambda batch: request.infer(_arrays(batch, names), share_inputs=True)


def _int8_openvino(core: Any, graph: Path, batch: Batch) -> Path:
    """Post-training quantisation, with bfloat16 for what stays in floating point."""
    made = graph.with_suffix(".int8.xml")
    if made.exists():
        return made
    os.environ.setdefault("NNCF_CI", "1")  # else importing nncf reports the use of it to its makers, unasked
    import nncf
    import openvino

    found = core.read_model(graph)
    names = [given.any_name for given in found.inputs]
    generator = np.random.default_rng(0)
    highest = int(batch["input_ids"].max()) + 1
    rows = [
        {**_arrays(batch, names), "input_ids": generator.integers(highest, size=tuple(batch["input_ids"].shape))}
        for _ in range(CALIBRATION_BATCHES)
    ]
    quantised = nncf.quantize(
        found, nncf.Dataset(rows), model_type=nncf.ModelType.TRANSFORMER, subset_size=CALIBRATION_BATCHES
    )
    openvino.save_model(quantised, made, compress_to_fp16=False)
    return made
