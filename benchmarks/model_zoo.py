"""AutoTinyBERT's and TinyBERT's published architectures against BERT-base, each on its fastest float32 engine:

    python -m benchmarks.model_zoo

Random weights, one sequence of 128 tokens, one thread. Each model runs in torch with its default products and through
oneDNN, in ONNX Runtime and in OpenVINO; a ratio is BERT-base's best time divided by the model's best. The published
ratios, taken on other machines and engines, stand in the notes. Outputs are held to 1e-5 of those in float64.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.harness import Timing, as_float64, measure, publish
from compresskit.evaluation import engines, latency
from compresskit.evaluation.engines import Engine
from compresskit.kernels.float32 import choose_float32_matmul
from compresskit.models import CompactBertModel, export, presets

PUBLISHED = {
    "autotinybert-s1": 7.2,
    "autotinybert-s2": 15.7,
    "autotinybert-s3": 20.2,
    "autotinybert-s4": 27.2,
    "autotinybert-kd-s1": 4.6,
    "autotinybert-kd-s2": 9.0,
    "autotinybert-kd-s3": 10.7,
    "autotinybert-kd-s4": 17.0,
    "tinybert-4": 9.4,
    "tinybert-6": 2.0,
}
BASE = "bert-base"
FLOAT32: tuple[Engine, ...] = ("torch-default", "torch", "onnxruntime", "openvino")


def race(name: str, seq_len: int = 128) -> list[Timing]:
    """One model in every engine."""
    torch.manual_seed(0)
    model = CompactBertModel(presets.config(name), add_pooling_layer=False).eval()
    batch = latency.random_batch(30000, 1, seq_len)

    def timed(call: Any) -> Any:
        def last_hidden_state(*values: torch.Tensor) -> Any:
            given = dict(zip(batch, values, strict=True))
            with torch.inference_mode():
                output = call(**given) if isinstance(call, torch.nn.Module) else call(given)
            return output.last_hidden_state if hasattr(output, "last_hidden_state") else output

        return last_hidden_state

    with TemporaryDirectory() as folder:
        graph = Path(folder) / "model.onnx"
        export.to_onnx(model, graph)
        return measure(
            {engine: timed(engines.prepare(engine, model, graph, batch, threads=1)) for engine in FLOAT32},
            {f"{name}, 1 x {seq_len}": list(batch.values())},
            baseline="torch",
            reference=timed(as_float64(model)),
        )


def main() -> None:
    """Measure all; BERT-base first and last, so that a drift of the machine shows."""
    choice = choose_float32_matmul()
    timings: dict[str, list[Timing]] = {}
    for name in (BASE, *PUBLISHED):
        timings[name] = race(name)
    again = race(BASE)
    best = {name: min(found, key=lambda timing: timing.median_ms) for name, found in timings.items()}
    base_ms = best[BASE].median_ms
    publish(
        "model_zoo",
        [timing for found in timings.values() for timing in found],
        {name: base_ms / best[name].median_ms for name in PUBLISHED},
        notes={
            "matmul": asdict(choice),
            "published": PUBLISHED,
            "fastest engine": {name: timing.contestant for name, timing in best.items()},
            "BERT-base again, against the first time": min(timing.median_ms for timing in again) / base_ms,
        },
    )


if __name__ == "__main__":
    main()
