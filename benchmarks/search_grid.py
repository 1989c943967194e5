"""AutoTinyBERT's Candidate step over its grid of 1,525,200 architectures, predictor included:

    python -m benchmarks.search_grid

Ours filters columns with the physical-features predictor; a plain loop over all points with the same coefficients says
what is right. The original's loop makes one dictionary per architecture and asks the published network (4 x 2000 wide)
about it alone; it is timed on a slice of the grid, with columns through the same network beside it, and its time for
the whole grid is that of the slice times the number of points.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.harness import Contestant, Goal, measure, publish
from compresskit.models import presets
from compresskit.search.predictor import Mlp, Physical
from compresskit.search.select import candidates, speedup_band
from compresskit.search.spaces import (
    DIMENSIONS,
    RELEASED_GRIDS,
    Columns,
    Space,
    SuperBertKdSpace,
    grid,
    grid_size,
    joined,
)

GRID = RELEASED_GRIDS["kd"]
SLICE = SuperBertKdSpace(
    range(2, 7, 4), range(160, 737, 192), range(160, 2721, 640), range(240, 721, 240)
)  # 120 points
SUPERNET = presets.config("superbert")
BASE_MS, SPEEDUP = 243.0, 7.0
PHYSICAL = Physical(  # of the order of a 2024 server core
    {"constant": 0.3, "layers": 0.2, "projections": 4.6e-6, "feed_forward": 2.3e-6, "attention": 6e-4,
     "activation": 2e-4, "hidden": 4e-4, "embedding": 1e-3}
)  # fmt: skip
GOALS = {"seconds for 1,525,200 points": Goal(at_most=3.0, aim=1.0)}
LOOP = "the original's loop, published network"


def published_network() -> Mlp:
    """The published network with random weights, shifted so that the band is in the middle of the slice."""
    torch.manual_seed(0)
    sizes, names = [4, 2000, 2000, 2000, 2000, 1], ["first_layer", "layers.0", "layers.1", "layers.2", "predict"]
    weights: dict[str, Tensor] = {}
    for name, rows, columns in zip(names, sizes[1:], sizes, strict=False):
        layer = nn.Linear(columns, rows)
        weights |= {f"{name}.weight": layer.weight, f"{name}.bias": layer.bias}
    weights["predict.weight"] = weights["predict.weight"] * 20  # so that the slice's times differ
    middle = float(np.median(Mlp(weights).predict(joined(list(grid(SLICE, SUPERNET))))))
    weights["predict.bias"] = weights["predict.bias"] + (BASE_MS / SPEEDUP - middle) / Mlp.UNIT_MS
    return Mlp(weights)


def kept(found: Columns) -> Tensor:
    """The architectures of the columns, (N, 5)."""
    return torch.stack([torch.as_tensor(found[name]) for name in DIMENSIONS], dim=1)


class OriginalLoop:
    """searcher.py, KD flavour: nested loops, a dictionary per point, one call of the network each."""

    def __init__(self, mlp: Mlp):
        weights = mlp.weights
        layers: list[nn.Module] = []
        for name in ("first_layer", "layers.0", "layers.1", "layers.2", "predict"):
            layer = nn.Linear(*weights[f"{name}.weight"].shape[::-1])
            layer.load_state_dict({part: weights[f"{name}.{part}"] for part in ("weight", "bias")})
            layers += [layer, nn.ReLU()]
        self.network = nn.Sequential(*layers[:-1]).eval()

    def predict(self, arch: dict) -> float:
        """Milliseconds of one architecture."""
        mean_wide, mean_qkv = (
            sum(arch[name]) / len(arch[name]) for name in ("sample_intermediate_sizes", "sample_qkv_sizes")
        )
        features = [arch["sample_hidden_size"], arch["sample_layer_num"], mean_wide, mean_qkv]
        normed = [feature / norm for feature, norm in zip(features, Mlp.NORM, strict=True)]
        with torch.no_grad():
            return self.network(torch.tensor(normed).view(1, -1)).item() * Mlp.UNIT_MS

    def __call__(self, space: Space) -> Tensor:
        """The architectures within the band, (N, 5)."""
        low, high = 0.85 * BASE_MS / SPEEDUP, 1.10 * BASE_MS / SPEEDUP
        found = []
        for layers, hidden, wide, qkv in product(*vars(space).values()):
            arch = {
                "sample_layer_num": layers,
                "sample_num_attention_heads": [12] * layers,
                "sample_hidden_size": hidden,
                "sample_intermediate_sizes": [wide] * layers,
                "sample_qkv_sizes": [qkv] * layers,
            }
            if low <= self.predict(arch) <= high:
                found.append((layers, hidden, wide, 12, qkv))
        return torch.tensor(found)


def plain_loop(space: Space) -> Tensor:
    """What is right for the physical predictor: every point by itself."""
    low, high = 0.85 * BASE_MS / SPEEDUP, 1.10 * BASE_MS / SPEEDUP
    c = PHYSICAL.coefficients
    found = []
    for layers, hidden, wide, qkv in product(*vars(space).values()):
        per_layer = (
            c["layers"] + c["projections"] * hidden * qkv + c["feed_forward"] * hidden * wide + c["attention"] * qkv
            + c["activation"] * wide + c["hidden"] * hidden
        )  # fmt: skip
        if low <= c["constant"] + layers * per_layer + c["embedding"] * hidden <= high:
            found.append((layers, hidden, wide, 12, qkv))
    return torch.tensor(found)


def main() -> None:
    """Time both, publish seconds and ratio."""
    mlp = published_network()

    def columns(predictor: Mlp | Physical, space: Space) -> Tensor:
        return kept(candidates(space, SUPERNET, [speedup_band(predictor.predict, BASE_MS, SPEEDUP)]))

    contestants: dict[str, Contestant] = {
        LOOP: OriginalLoop(mlp),
        "columns, published network": lambda space: columns(mlp, space),
    }
    label = f"a slice of {grid_size(SLICE)} points"
    timings = measure(contestants, {label: [SLICE]}, baseline=LOOP, reference=OriginalLoop(mlp), max_error=0.0)
    ours = "columns, physical features"
    timings += measure(
        {ours: lambda space: columns(PHYSICAL, space)},
        {f"{grid_size(GRID):,} points": [GRID]},
        baseline=ours,
        reference=plain_loop,
        max_error=0.0,
    )
    loop, same_network, whole = (timing.median_ms for timing in timings)
    extrapolated_s = loop / grid_size(SLICE) * grid_size(GRID) / 1000
    publish(
        "search_grid",
        timings,
        {
            "seconds for 1,525,200 points": whole / 1000,
            "against the original's loop, extrapolated": extrapolated_s * 1000 / whole,
            "the same network by columns, on the slice": loop / same_network,
        },
        GOALS,
        notes={"the original's loop for the whole grid, extrapolated, in seconds": extrapolated_s},
    )


if __name__ == "__main__":
    main()
