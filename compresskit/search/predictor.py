"""Latency of an architecture, predicted from a few that were measured on the same machine under the same conditions.

Three ways, over columns (search/spaces.py) and with one interface; `fit_best` keeps the one that is best on held-out
data:

    physical   non-negative least squares on what a forward pass does
    flops      a straight line in the operations
    mlp        AutoTinyBERT's network of hidden_size, layers, mean intermediate_size and mean qkv_size
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from pickle import UnpicklingError
from random import Random
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy.optimize import nnls
from scipy.stats import spearmanr
from torch import Tensor, nn

from compresskit.search.costs import Flops
from compresskit.search.files import write_whole
from compresskit.search.spaces import DIMENSIONS, Columns, rows

PREDICTOR_FILE, WEIGHTS_FILE = "predictor.json", "predictor.safetensors"


class Predictor(Protocol):
    """What a search asks: a number for each architecture."""

    def predict(self, columns: Columns) -> NDArray[Any]:
        """One number per architecture, in their order."""


@dataclass(frozen=True)
class Conditions:
    """What measured times hold for; another value of any field is another time."""

    flavour: str
    threads: int
    batch_size: int
    seq_len: int
    clock: str
    cpu: str
    float32_matmul_precision: str

    def check(self, asked: Conditions) -> None:
        """Raise ValueError, naming every difference, where `asked` are not these conditions."""
        wrong = [
            f"{f.name} {getattr(self, f.name)!r}, not {getattr(asked, f.name)!r}"
            for f in fields(self)
            if getattr(self, f.name) != getattr(asked, f.name)
        ]
        if wrong:
            raise ValueError(
                f"the latencies were measured with {', '.join(wrong)}; measure again under these conditions"
            )


# Ways of predicting


@dataclass(frozen=True)
class Physical:
    """latency_ms = Σ coefficient · feature, no coefficient negative, so more work never counts for less time.

    Fitted by least squares of the relative error. Batch and length are the same for all rows, so that features need
    not hold them: what grows with S² per head, and what grows with S per column, differ by constant factors.
    """

    kind: ClassVar[str] = "physical"
    coefficients: dict[str, float]

    def __post_init__(self) -> None:
        """Refuse coefficients of features that there are not."""
        known = physical_features({name: np.ones(1) for name in DIMENSIONS})
        if unknown := sorted(self.coefficients.keys() - known.keys()):
            raise ValueError(f"unknown feature {unknown[0]!r}; there are {', '.join(known)}")

    @classmethod
    def fit(cls, columns: Columns, latency_ms: NDArray[Any], seq_len: int, seed: int = 0) -> Physical:
        """The best coefficients for measured rows."""
        features = physical_features(columns)
        scale = {name: float(np.max(values)) or 1.0 for name, values in features.items()}
        matrix = np.stack([values / scale[name] for name, values in features.items()], axis=1)
        found, _ = nnls(matrix / latency_ms[:, None], np.ones(len(latency_ms)))
        return cls({name: float(c) / scale[name] for name, c in zip(features, found, strict=True)})

    def predict(self, columns: Columns) -> NDArray[Any]:
        """Milliseconds of each architecture."""
        features = physical_features(columns)
        total = np.zeros(len(columns["hidden_size"]))
        for name, coefficient in self.coefficients.items():
            if coefficient:
                total += coefficient * features[name]
        return total


def physical_features(columns: Columns) -> dict[str, NDArray[Any]]:
    """What a forward pass does, by name; for layers of different widths their means serve, as all is linear in them.

    The bytes of the weights are a sum of these, and need no feature.
    """
    l, h, f, n, q = (columns[name].astype(np.float64) for name in DIMENSIONS)
    return {
        "constant": np.ones_like(h),
        "layers": l,  # calls of kernels
        "projections": l * h * q,  # products with the weights of query, key, value and output
        "feed_forward": l * h * f,
        "attention": l * q,  # products of the maps, and all that is done per column of q, k, v
        "maps": l * n,  # softmax
        "activation": l * f,
        "hidden": l * h,  # residuals and normalisation
        "embedding": h,
    }


@dataclass(frozen=True)
class FlopsLine:
    """latency_ms = intercept + slope · FLOPs, by least squares of the relative error."""

    kind: ClassVar[str] = "flops"
    intercept: float
    slope: float
    seq_len: int

    @classmethod
    def fit(cls, columns: Columns, latency_ms: NDArray[Any], seq_len: int, seed: int = 0) -> FlopsLine:
        """The best line through measured rows."""
        flops = Flops(seq_len).predict(columns) / 1e9
        slope, intercept = np.polyfit(flops, latency_ms, 1, w=1 / latency_ms)
        return cls(float(intercept), float(slope) / 1e9, seq_len)

    def predict(self, columns: Columns) -> NDArray[Any]:
        """Milliseconds of each architecture."""
        return self.intercept + self.slope * Flops(self.seq_len).predict(columns)


class Mlp:
    """AutoTinyBERT's predictor: 4 numbers, ReLU layers of one width, 1 output in units of 200 ms."""

    kind: ClassVar[str] = "mlp"
    NORM = (768, 12, 3072, 768)  # of hidden_size, num_hidden_layers, intermediate_size, qkv_size
    UNIT_MS = 200.0
    BATCH, LEARNING_RATE = 128, 1e-5

    def __init__(self, weights: Mapping[str, Tensor]):
        """weights: of first_layer, layers.0, layers.1, …, predict, named as in the original's time.pt.

        Raises ValueError where they are not.
        """
        self.depth = sum(name.startswith("layers.") and name.endswith(".weight") for name in weights)
        parts = ("first_layer", *(f"layers.{i}" for i in range(self.depth)), "predict")
        expected = {f"{part}.{what}" for part in parts for what in ("weight", "bias")}
        if expected != set(weights):
            raise ValueError(f"a latency predictor has the weights {sorted(expected)}; found {sorted(weights)}")
        self.weights = {  # in the order of the layers
            f"{part}.{what}": weights[f"{part}.{what}"].detach().float().contiguous()
            for part in parts
            for what in ("weight", "bias")
        }
        if self.weights["first_layer.weight"].shape[1:] != (len(self.NORM),):
            raise ValueError(
                f"first_layer.weight is {tuple(self.weights['first_layer.weight'].shape)}; expected {len(self.NORM)} "
                "columns, for hidden_size, num_hidden_layers, intermediate_size and qkv_size"
            )

    @classmethod
    def fit(
        cls,
        columns: Columns,
        latency_ms: NDArray[Any],
        seq_len: int,
        seed: int = 0,
        *,
        width: int = 400,
        steps: int = 5000,
    ) -> Mlp:
        """Trained as published: Adam at 1e-5, 128 rows a step, drawn without replacement, mean squared error.

        width: published as 2000 by its scripts, 400 by its constructor.
        """
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            sizes = [len(cls.NORM), *[width] * 4, 1]
            linears = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        names = ("first_layer", *(f"layers.{i}" for i in range(3)), "predict")
        weights = {
            f"{name}.{what}": getattr(linear, what)
            for name, linear in zip(names, linears, strict=True)
            for what in ("weight", "bias")
        }
        x = torch.from_numpy(cls.features(columns) / np.array(cls.NORM)).float()
        y = torch.from_numpy(np.asarray(latency_ms) / cls.UNIT_MS).float()
        optimizer = torch.optim.Adam(weights.values(), lr=cls.LEARNING_RATE, fused=True)
        for _ in range(steps):
            batch = torch.randperm(len(x), generator=generator)[: cls.BATCH]
            loss = F.mse_loss(_forward(weights, x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return cls(weights)

    @staticmethod
    def features(columns: Columns) -> NDArray[Any]:
        """hidden_size, num_hidden_layers, mean intermediate_size and mean qkv_size of each architecture, (N, 4)."""
        names = ("hidden_size", "num_hidden_layers", "intermediate_size", "qkv_size")
        return np.stack([columns[name] for name in names], axis=1).astype(np.float64)

    @torch.no_grad()
    def predict(self, columns: Columns) -> NDArray[Any]:
        """Milliseconds of each architecture."""
        x = torch.from_numpy(self.features(columns) / np.array(self.NORM)).float()
        parts = [_forward(self.weights, part) for part in x.split(4096)]
        return torch.cat(parts).double().numpy() * self.UNIT_MS

    @classmethod
    def load(cls, path: str | Path) -> Mlp:
        """A file written by `save`, the original's `time.pt` among them; nothing in it is executed."""
        try:
            if Path(path).suffix == ".safetensors":
                return cls(load_file(path))
            return cls(torch.load(path, map_location="cpu", weights_only=True))
        except (
            OSError,
            RuntimeError,
            UnpicklingError,
            SafetensorError,
            ValueError,
            AttributeError,
            TypeError,
        ) as error:
            raise ValueError(f"{path}: is no latency predictor's weights ({error})") from error

    def save(self, path: Path) -> None:
        """Write the weights: the original's format where the name ends in .pt, else safetensors."""
        unfinished = path.with_name(f".{path.name}")
        if path.suffix == ".pt":
            torch.save(self.weights, unfinished)
        else:
            save_file(self.weights, unfinished)
        os.replace(unfinished, path)


def _forward(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """x: (N, 4).  Returns (N,)."""
    for part in (name.removesuffix(".weight") for name in weights if name.endswith(".weight")):
        x = F.linear(x, weights[f"{part}.weight"], weights[f"{part}.bias"])
        if part != "predict":
            x = F.relu(x)
    return x[:, 0]


Fitted = Physical | FlopsLine | Mlp
Fit = Callable[[Columns, NDArray[Any], int, int], Fitted]
WAYS: dict[str, Fit] = {"physical": Physical.fit, "flops": FlopsLine.fit, "mlp": Mlp.fit}


# Choosing among them


@dataclass(frozen=True)
class HeldOut:
    """How good a way of predicting is on rows that it was not fitted to."""

    kind: str
    mape_pct: float  # mean absolute error relative to the measured latency
    p95_error_pct: float
    spearman: float
    measured_ms: list[float]
    predicted_ms: list[float]


def held_out(kind: str, measured_ms: ArrayLike, predicted_ms: ArrayLike) -> HeldOut:
    """Compare predictions with measurements."""
    measured, predicted = np.asarray(measured_ms, float), np.asarray(predicted_ms, float)
    error = np.abs(predicted - measured) / measured * 100
    ordered = len(set(measured)) > 1 and len(set(predicted)) > 1  # one time for all orders nothing
    rank = float(spearmanr(measured, predicted).statistic) if ordered else 0.0
    return HeldOut(
        kind, float(error.mean()), float(np.quantile(error, 0.95)), rank, measured.tolist(), predicted.tolist()
    )


def fit_best(
    columns: Columns,
    latency_ms: ArrayLike,
    seq_len: int,
    *,
    ways: Mapping[str, Fit] = WAYS,
    folds: int = 5,
    seed: int = 0,
) -> tuple[Fitted, list[HeldOut]]:
    """The way of predicting with the least error on held-out rows, fitted to all; and the errors of all, best first.

    columns, latency_ms: architectures and their measured times; seq_len: of the measurement. Each row is held out once,
    in one of `folds` seeded parts. Raises ValueError for fewer than 2 rows per fold, and for times that are none.
    """
    measured = np.asarray(latency_ms, float)
    if len(measured) < 2 * folds:
        raise ValueError(f"{len(measured)} measured architectures for {folds} folds; measure at least {2 * folds}")
    times = np.isfinite(measured) & (measured > 0)
    if not times.all():
        raise ValueError(f"latencies are positive numbers; one is {measured[~times][0]}")
    order = list(range(len(measured)))
    Random(seed).shuffle(order)
    results = []
    for kind, fit in ways.items():
        predicted = np.empty_like(measured)
        for fold in range(folds):
            out = order[fold::folds]
            kept = sorted(set(order) - set(out))
            predicted[out] = fit(rows(columns, kept), measured[kept], seq_len, seed).predict(rows(columns, out))
        results.append(held_out(kind, measured, predicted))
    results.sort(key=lambda result: (result.mape_pct, -result.spearman))
    return ways[results[0].kind](columns, measured, seq_len, seed), results


# A fitted predictor as a folder


@dataclass(frozen=True)
class LatencyPredictor:
    """A fitted predictor, what its times hold for, and how far they can be trusted.

    reference_ms: times of known models measured beside the architectures, BERT-base first of all.
    """

    fitted: Fitted
    conditions: Conditions
    held_out: list[HeldOut]
    repeat_noise_pct: float
    reference_ms: dict[str, float]

    def predict(self, columns: Columns) -> NDArray[Any]:
        """Milliseconds of each architecture."""
        return self.fitted.predict(columns)

    def save(self, folder: str | Path) -> None:
        """Write predictor.json, and predictor.safetensors where there are weights."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        record = {
            "kind": self.fitted.kind,
            "fitted": None if isinstance(self.fitted, Mlp) else asdict(self.fitted),
            "conditions": asdict(self.conditions),
            "held_out": [asdict(result) for result in self.held_out],
            "repeat_noise_pct": self.repeat_noise_pct,
            "reference_ms": self.reference_ms,
        }
        if isinstance(self.fitted, Mlp):
            self.fitted.save(folder / WEIGHTS_FILE)
        write_whole(folder / PREDICTOR_FILE, json.dumps(record, indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> LatencyPredictor:
        """A folder written by `save`.  Raises ValueError or FileNotFoundError, naming the file."""
        path = Path(folder) / PREDICTOR_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: a latency predictor's folder has this file; make one with the stage latency_predictor"
            )
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            kind = record["kind"]
            if kind == Mlp.kind:
                fitted: Fitted = Mlp.load(path.parent / WEIGHTS_FILE)
            else:
                fitted = {way.kind: way for way in (Physical, FlopsLine)}[kind](**record["fitted"])
            return cls(
                fitted,
                Conditions(**record["conditions"]),
                [HeldOut(**result) for result in record["held_out"]],
                record["repeat_noise_pct"],
                record["reference_ms"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: is no latency predictor ({type(error).__name__}: {error})") from error
