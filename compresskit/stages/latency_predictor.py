"""Latency of any architecture of a space, from a random sample of them timed on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from random import Random
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field, model_validator

from compresskit.evaluation import figures, latency
from compresskit.evaluation.latency import Clock, Latency
from compresskit.models import CompactBertConfig, CompactBertModel, checkpoints, presets
from compresskit.search import files, predictor
from compresskit.search.predictor import Conditions, HeldOut, LatencyPredictor, Mlp
from compresskit.search.spaces import columns_of, space_of
from compresskit.stages.params import Params
from compresskit.stages.session import Session, model_folder, on_device
from compresskit.training.progress import Progress

DATA_FILE, ORIGINAL_FILE = "latency_data.json", "lat.tmp"
AGAIN = " again"  # ends the name of an architecture's second measurement
MAX_DRAWS = 100  # per architecture that is wanted


class LatencyPredictorParams(Params):
    """Parameters of the stage `latency_predictor`."""

    results: ClassVar[tuple[str, ...]] = ("run_id", "predictor")

    supernet: str = "superbert"  # whose subnets are timed: a run, a registered model, a folder, or a preset's name
    flavour: Literal["mlm", "kd"] = "kd"
    architectures: int = Field(80, ge=10)  # drawn at random from the space that the search looks at
    repeats: int = Field(8, ge=1)  # architectures that are timed again at the end, for the machine's own noise
    group: int = Field(8, ge=1)  # timed by turns, and in memory together
    rounds: int = Field(15, ge=10)
    batch_size: int = Field(1, ge=1)
    seq_len: int = Field(128, ge=1)
    threads: int = Field(1, ge=1)
    clock: Clock = "wall"  # cpu: time of this process alone, where others use the machine too; one thread only
    predictors: list[Literal["physical", "flops", "mlp"]] = ["physical", "flops", "mlp"]
    mlp_width: int = Field(400, ge=1)  # the published scripts have 2000
    mlp_steps: int = Field(5000, ge=1)
    folds: int = Field(5, ge=2)  # parts of the architectures, each held out once
    seed: int = 0

    @model_validator(mode="after")
    def _measurable(self) -> LatencyPredictorParams:
        """Refuse what would fail only after the measurement."""
        if not self.predictors:
            raise ValueError("predictors names none; take physical, flops or mlp")
        if self.clock == "cpu" and self.threads > 1:
            raise ValueError(f"clock cpu adds up {self.threads} threads; take the clock wall, or one thread")
        if self.repeats > self.architectures:
            raise ValueError(f"repeats {self.repeats} exceeds architectures {self.architectures}")
        if self.architectures < 2 * self.folds:
            raise ValueError(f"architectures {self.architectures} are too few for {self.folds} folds; measure more")
        return self


@dataclass
class LatencyPredictorStage:
    """The opened stage."""

    params: LatencyPredictorParams
    session: Session
    supernet: CompactBertConfig
    architectures: list[CompactBertConfig]
    results: dict[str, Latency] = field(default_factory=dict)  # by number of the architecture, or name of a reference
    held_out: list[HeldOut] = field(default_factory=list)
    fitted: LatencyPredictor | None = None

    def measure(self) -> pd.DataFrame:
        """Time references, architectures, and some of these again at the end. Goes on where a stopped run ended."""
        params = self.params
        batch = latency.random_batch(self.supernet.vocab_size, params.batch_size, params.seq_len, params.seed)
        builders = self._builders()
        # BERT-base alone: its weights would empty the caches for those that are timed by turns with it
        groups = [builders[:1], *(builders[i : i + params.group] for i in range(1, len(builders), params.group))]
        measured = latency.measure_groups(
            [dict(group) for group in groups],
            batch,
            self.session.folder / "latencies",
            threads=params.threads,
            rounds=params.rounds,
            clock=params.clock,
            seed=params.seed,
        )
        with Progress("measure architectures", len(builders)) as progress:
            for group in measured:
                self.results |= {result.name: result for result in group}
                progress.at(len(self.results), latency_ms=group[-1].latency_p50_ms)
        return self.table()

    def _builders(self) -> list[tuple[str, Callable[[], CompactBertModel]]]:
        whole = {
            "bert-base": presets.config("bert-base", vocab_size=self.supernet.vocab_size),
            "supernet": self.supernet,
        }
        drawn = {str(number): config for number, config in enumerate(self.architectures)}
        again = {f"{number}{AGAIN}": self.architectures[number] for number in range(self.params.repeats)}
        return [
            (name, lambda config=config: on_device(CompactBertModel(config)))  # type: ignore[misc]
            for name, config in (whole | drawn | again).items()
        ]

    def table(self) -> pd.DataFrame:
        """The measured architectures: shape, median, spread."""
        shapes = pd.DataFrame(columns_of(self.architectures)).astype(int)
        times = [self.results[str(number)] for number in range(len(self.architectures))]
        names = ("latency_p50_ms", "latency_p95_ms", "iqr_ms", "relative_iqr", "rounds")
        return shapes.assign(**{name: [getattr(time, name) for time in times] for name in names})

    def repeat_noise_pct(self) -> float:
        """Mean difference of the second measurement of an architecture from its first, in per cent of the first."""
        pairs = [(self.results[str(n)], self.results[f"{n}{AGAIN}"]) for n in range(self.params.repeats)]
        return float(np.mean([abs(b.latency_p50_ms / a.latency_p50_ms - 1) for a, b in pairs])) * 100

    def fit(self) -> pd.DataFrame:
        """Fit every way of predicting; returns the errors on held-out architectures, best first."""
        params = self.params
        ways: dict[str, predictor.Fit] = {name: predictor.WAYS[name] for name in params.predictors}
        if "mlp" in ways:
            ways["mlp"] = partial(Mlp.fit, width=params.mlp_width, steps=params.mlp_steps)
        best, self.held_out = predictor.fit_best(
            columns_of(self.architectures),
            self.table()["latency_p50_ms"].to_numpy(),
            params.seq_len,
            ways=ways,
            folds=params.folds,
            seed=params.seed,
        )
        self.fitted = LatencyPredictor(
            best,
            conditions(params.flavour, params.threads, params.batch_size, params.seq_len, params.clock),
            self.held_out,
            self.repeat_noise_pct(),
            {name: self.results[name].latency_p50_ms for name in ("bert-base", "supernet")},
        )
        return self.errors()

    def errors(self) -> pd.DataFrame:
        """Held-out errors of every way of predicting, best first."""
        names = ("kind", "mape_pct", "p95_error_pct", "spearman")
        table = pd.DataFrame([{name: getattr(result, name) for name in names} for result in self.held_out])
        return table.assign(repeat_noise_pct=self.repeat_noise_pct())

    def scatter(self) -> Figure:
        """Predicted against measured, each architecture by predictors that did not know it."""
        points = [
            pd.DataFrame({"kind": r.kind, "measured_ms": r.measured_ms, "predicted_ms": r.predicted_ms})
            for r in self.held_out
        ]
        return figures.predicted_scatter(pd.concat(points))

    def finish(self) -> pd.DataFrame:
        """Keep predictor, data and pictures; returns the row of results."""
        assert self.fitted is not None, "fit() comes first"
        folder = self.session.folder / "predictor"
        self.fitted.save(folder)
        table = self.table()
        rows: list[dict[str, Any]] = json.loads(table.to_json(orient="records"))
        for number, row in enumerate(rows):
            row["samples_ms"] = self.results[str(number)].samples_ms
        data = {"conditions": asdict(self.fitted.conditions), "machine": latency.describe_machine(), "rows": rows}
        files.write_whole(folder / DATA_FILE, json.dumps(data, indent=1) + "\n")
        measured = zip(self.architectures, table["latency_p50_ms"], strict=True)
        files.write_latencies(folder / ORIGINAL_FILE, measured)
        run = self.session.run
        run.artifact(folder, "predictor")
        run.table("latencies", table)
        run.table("held_out", self.errors())
        run.figure("predicted", self.scatter())
        best = self.held_out[0]
        return self.session.finish(
            {
                "predictor": f"runs:/{run.run_id}/predictor",
                "kind": best.kind,
                "mape_pct": best.mape_pct,
                "spearman": best.spearman,
                "repeat_noise_pct": self.repeat_noise_pct(),
                "bert_base_ms": self.fitted.reference_ms["bert-base"],
            }
        )


def conditions(flavour: str, threads: int, batch_size: int, seq_len: int, clock: str) -> Conditions:
    """What a measurement made now, in this process, holds for."""
    machine = latency.describe_machine()
    device = str(machine.get("gpu", machine["cpu"]))
    return Conditions(flavour, threads, batch_size, seq_len, clock, device, str(machine["float32_matmul_precision"]))


def supernet_config(source: str) -> CompactBertConfig:
    """The shape of a supernet: of a saved model, or of a preset."""
    if source in presets.PRESETS:
        return presets.config(source)
    folder = checkpoints.local_folder(model_folder(source))
    return checkpoints.Checkpoint(checkpoints.read_config(folder), {}, str(source)).architecture()


def draw_architectures(supernet: CompactBertConfig, flavour: str, count: int, seed: int) -> list[CompactBertConfig]:
    """So many different subnets.  Raises ValueError where the space is too small."""
    space, rng = space_of(flavour, supernet), Random(seed)
    drawn: dict[tuple, CompactBertConfig] = {}
    for _ in range(MAX_DRAWS * count):
        config = space.sample(supernet, rng)
        drawn.setdefault(config.key(), config)
        if len(drawn) == count:
            return list(drawn.values())
    raise ValueError(
        f"{len(drawn)} different architectures in {MAX_DRAWS * count} draws, {count} are wanted; ask for fewer"
    )


def open(params: LatencyPredictorParams) -> LatencyPredictorStage:
    """Draw the architectures, start the run."""
    supernet = supernet_config(params.supernet)
    if params.seq_len > supernet.max_position_embeddings:
        raise ValueError(
            f"seq_len {params.seq_len} exceeds the {supernet.max_position_embeddings} positions of {params.supernet}"
        )
    drawn = draw_architectures(supernet, params.flavour, params.architectures, params.seed)
    session = Session(
        "latency_predictor", params, experiment="latency", name=f"latency_predictor-{params.flavour}", seed=params.seed
    )
    return LatencyPredictorStage(params, session, supernet, drawn)
