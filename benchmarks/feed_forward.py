"""EfficientBERT's formulas against the same arithmetic by hand, its size on disk, and its speed against BERT-base's:

    python -m benchmarks.feed_forward [--only formulas | bytes | models]

Formulas: all feed-forwards of one layer, 540 wide, 4 x 128 tokens, forward, and forward with backward; by hand is
torch's functions one after the other, on the same weights. A ratio is our time divided by that. Bytes: a classifier's
folder without its vocabulary. Models: one sequence of 128 tokens, one thread, each in its fastest float32 engine; a
ratio is BERT-base's time divided by the model's. The paper claims 4.4 for EfficientBERT.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Goal, Timing, measure, publish
from benchmarks.model_zoo import BASE, race
from compresskit.kernels.float32 import choose_float32_matmul
from compresskit.models import CompactBertForSequenceClassification, CompactBertModel, checkpoints, presets

PARTS = ("formulas", "bytes", "models")
MODELS = ("efficientbert-tiny", "efficientbert", "efficientbert-plusplus")
DIRECTIONS = ("forward", "forward+backward")
ON_DISK = "EfficientBERT's bytes on disk / BERT-base's"
GOALS = {
    **{f"layer {n}, {way}": Goal(at_most=1.05, aim=1.0) for n in range(1, 7) for way in DIRECTIONS},
    ON_DISK: Goal(at_most=0.15, aim=0.145),
    "speed-up of efficientbert": Goal(floor=1.0, aim=4.4),
}
Map = Callable[[Tensor], Tensor]


def gelu(t: Tensor) -> Tensor:
    """The form with tanh."""
    return F.gelu(t, approximate="tanh")


BY_HAND: list[Callable[[Tensor, Map, Map], Tensor]] = [  # of presets.EFFICIENTBERT, in its order
    lambda x, first, second: torch.tanh(second(gelu(first(x)))),
    lambda x, first, second: F.elu(second(gelu(first(x)))),
    lambda x, first, second: torch.sigmoid(second(torch.relu(first(x)))),
    lambda x, first, second: second(gelu(first(torch.maximum(x, torch.tanh(x))))),
    lambda x, first, second: second(torch.relu(first(x)[..., :270] * x[..., :270])),
    lambda x, first, second: F.leaky_relu(second(gelu(first(x)))),
]


def by_hand(number: int) -> Callable[[Any, Tensor], Tensor]:
    """All feed-forwards of a layer, without its module calls."""
    formula = BY_HAND[number]

    def run(layer: Any, x: Tensor) -> Tensor:
        for one in layer.feed_forward:
            wide, narrow, norm = one.intermediate["dense"], one.output.dense, one.output.LayerNorm
            first = partial(F.linear, weight=wide.weight, bias=wide.bias)
            out = formula(x, first, partial(F.linear, weight=narrow.weight, bias=narrow.bias))
            x = F.layer_norm(out + x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        return x

    return run


def ours(layer: Any, x: Tensor) -> Tensor:
    """As the encoder runs it."""
    return layer.feed(x, layer.config)


def with_backward(run: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Sequence[Tensor]]:
    """The output, and gradients of input and weights; of the cubes, for normalised states have constant squares."""

    def both(layer: Any, x: Tensor) -> Sequence[Tensor]:
        out = run(layer, x)
        return [out, *torch.autograd.grad((out**3).sum(), [x, *layer.feed_forward.parameters()])]

    return both


def formulas() -> tuple[list[Timing], dict[str, float]]:
    """Timings of all six layers, and our time over that by hand."""
    torch.manual_seed(0)
    model = CompactBertModel(presets.config("efficientbert"), add_pooling_layer=False).eval()
    timings: list[Timing] = []
    measures: dict[str, float] = {}
    for number, layer in enumerate(model.encoder.layer):
        x = torch.randn(4, 128, model.config.hidden_size, requires_grad=True)
        ways: dict[str, dict[str, Any]] = {
            "forward": {"ours": torch.no_grad()(ours), "by hand": torch.no_grad()(by_hand(number))},
            "forward+backward": {"ours": with_backward(ours), "by hand": with_backward(by_hand(number))},
        }
        for way, contestants in ways.items():
            label = f"layer {number + 1}, {way}"
            found = measure(contestants, {label: [layer, x]}, baseline="by hand", rounds=45)
            ms = {timing.contestant: timing.median_ms for timing in found}
            timings += found
            measures[label] = ms["ours"] / ms["by hand"]
    return timings, measures


def bytes_on_disk(name: str, folder: Path) -> int:
    """Of a classifier's folder."""
    torch.manual_seed(0)
    checkpoints.save(CompactBertForSequenceClassification(presets.config(name)), folder / name)
    return sum(path.stat().st_size for path in (folder / name).iterdir())


def main() -> None:
    """Measure everything, or the one part named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS)
    only = parser.parse_args().only
    choice = choose_float32_matmul()
    timings: list[Timing] = []
    measures: dict[str, float] = {}
    notes: dict[str, Any] = {"matmul": asdict(choice), "the paper's speed-up of efficientbert": 4.4}
    if only in (None, "formulas"):
        timings, measures = formulas()
    if only in (None, "bytes"):
        with TemporaryDirectory() as folder:
            sizes = {name: bytes_on_disk(name, Path(folder)) for name in (BASE, *MODELS)}
        notes["bytes"] = sizes
        measures[ON_DISK] = sizes["efficientbert"] / sizes[BASE]
    if only in (None, "models"):
        races = {name: race(name) for name in (BASE, *MODELS)}
        again = min(timing.median_ms for timing in race(BASE))
        best = {name: min(found, key=lambda timing: timing.median_ms) for name, found in races.items()}
        timings += [timing for found in races.values() for timing in found]
        measures |= {f"speed-up of {name}": best[BASE].median_ms / best[name].median_ms for name in MODELS}
        notes["fastest engine"] = {name: timing.contestant for name, timing in best.items()}
        notes["BERT-base again, against the first time"] = again / best[BASE].median_ms
    publish("feed_forward", timings, measures, {n: g for n, g in GOALS.items() if n in measures}, notes=notes)


if __name__ == "__main__":
    main()
