"""BERT-base with 95 % zeros in all 72 matrices, batch 1, against dense engines:

    python -m benchmarks.sparse_bert [--only S=128 | S=384]

Ours is the pruned model after models.sparse.to_sparse. The engines run the same weights, zeros included: torch with its
default products and through oneDNN, ONNX Runtime and OpenVINO in float32 and in 8 bits (evaluation/engines.py). Float32
logits are held to 1e-5 of those in float64. 8 bits are held to nothing: they are here for their speed only.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.harness import Goal, Timing, as_float64, measure, publish
from compresskit.evaluation import engines, latency
from compresskit.evaluation.engines import Engine
from compresskit.kernels.float32 import choose_float32_matmul
from compresskit.models import CompactBertConfig, CompactBertForSequenceClassification, export, sparse
from compresskit.pruning.masks import magnitude_mask, prunable

LENGTHS = (128, 384)
GOALS = {
    "S=128 against torch default": Goal(floor=10.0, aim=14.0),
    "S=128 against torch oneDNN": Goal(floor=5.5, aim=8.0),
    "S=128 against the best float32": Goal(floor=4.3, aim=6.0),
    "S=128 against the best int8": Goal(floor=1.5, aim=2.0),
    "S=384 against the best float32": Goal(floor=3.2, aim=4.3),
    "S=384 against the best int8": Goal(floor=1.1, aim=1.5),
}
FLOAT32: tuple[Engine, ...] = ("torch-default", "torch", "onnxruntime", "openvino")
INT8: tuple[Engine, ...] = ("onnxruntime-int8", "openvino-int8")


def pruned_bert(sparsity: float = 0.95) -> CompactBertForSequenceClassification:
    """BERT-base with random weights, so many zeros in each of its 72 matrices."""
    torch.manual_seed(0)
    model = CompactBertForSequenceClassification(CompactBertConfig()).eval()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in prunable(parameters):
            parameters[name].mul_(magnitude_mask(parameters[name], sparsity))
    return model


def race(seq_len: int, graph: Path) -> tuple[list[Timing], dict[str, float]]:
    """Timings at this length, and how many times faster ours is than each engine and the best of each kind."""
    model = pruned_bert()
    if not graph.exists():
        export.to_onnx(model, graph)
    batch = latency.random_batch(30000, 1, seq_len)
    calls: dict[str, Any] = {"ours": sparse.to_sparse(model)}
    for name in (*FLOAT32, *INT8):
        calls[name] = engines.prepare(name, model, graph, batch, threads=1)

    def timed(call: Any) -> Any:
        def logits(**given: torch.Tensor) -> Any:
            with torch.inference_mode():
                output = call(**given) if isinstance(call, torch.nn.Module) else call(given)
            return output.logits if hasattr(output, "logits") else output

        return lambda *values: logits(**dict(zip(batch, values, strict=True)))

    exact = as_float64(model)
    timings = measure(
        {name: timed(call) for name, call in calls.items()},
        {f"1 x {seq_len}": list(batch.values())},
        baseline="torch",
        reference=timed(exact),
        max_error={name: float("inf") if name in INT8 else 1e-5 for name in calls},
    )
    ms = {timing.contestant: timing.median_ms for timing in timings}
    rivals = {
        "torch default": ms["torch-default"],
        "torch oneDNN": ms["torch"],
        "the best float32": min(ms["onnxruntime"], ms["openvino"]),
        "the best int8": min(ms[name] for name in INT8),
    }
    return timings, {f"S={seq_len} against {name}": time / ms["ours"] for name, time in rivals.items()}


def main() -> None:
    """Measure both lengths, or the one named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[f"S={seq_len}" for seq_len in LENGTHS])
    only = parser.parse_args().only
    choice = choose_float32_matmul()
    timings: list[Timing] = []
    measures: dict[str, float] = {}
    with TemporaryDirectory() as folder:
        for seq_len in LENGTHS:
            if only in (None, f"S={seq_len}"):
                found, ratios = race(seq_len, Path(folder) / "model.onnx")
                timings += found
                measures |= ratios
    goals = {name: goal for name, goal in GOALS.items() if name in measures}
    publish("sparse_bert", timings, measures, goals, notes={"matmul": asdict(choice)})


if __name__ == "__main__":
    main()
