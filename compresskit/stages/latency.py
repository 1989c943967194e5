"""Measured latency of finished models over inference engines, batch sizes, lengths and threads."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field

from compresskit import tracking
from compresskit.evaluation import engines, figures, latency
from compresskit.evaluation.engines import Engine
from compresskit.models import CompactBertModel, checkpoints, export, sparse
from compresskit.stages import length_choice
from compresskit.stages.params import Params
from compresskit.stages.session import Session, model_folder, on_device


class LatencyParams(Params):
    """Parameters of the stage `latency`."""

    models: dict[str, str] = {"baseline-teacher": "models:/demo-teacher@latest"}  # by <system>-<variant>; ?lengths=2x
    engines: list[Engine] = ["torch"]  # see evaluation/engines.py; all but torch's need the extra `export`
    batch_sizes: list[int] = [1, 8]
    seq_lens: list[int] = [32, 128]
    threads: list[int] = [1]
    rounds: int = Field(20, ge=10)
    budget_s: float = Field(60.0, gt=0)  # per combination of batch size, length and threads
    seed: int = 0


@dataclass
class LatencyStage:
    """The opened stage."""

    params: LatencyParams
    session: Session
    models: dict[str, CompactBertModel]
    results: list[latency.Latency]

    def contestants(self) -> dict[str, tuple[str, Engine]]:
        """Every model in every engine, by a name of its own."""
        wanted = product(self.models, self.params.engines)
        return {
            f"{model}, {engine}" if len(self.params.engines) > 1 else model: (model, engine) for model, engine in wanted
        }

    def measure(self) -> pd.DataFrame:
        """Time the encoders by turns, for each combination of batch size, length and threads."""
        params = self.params
        vocab_size = min(model.config.vocab_size for model in self.models.values())
        forms = self._forms()
        for threads, batch_size, seq_len in product(params.threads, params.batch_sizes, params.seq_lens):
            batch, graphs = latency.random_batch(vocab_size, batch_size, seq_len, params.seed), self._graphs(seq_len)
            self.results += latency.measure(
                {
                    name: engines.prepare(engine, forms[name], graphs.get(model), batch, threads)
                    for name, (model, engine) in self.contestants().items()
                },
                batch,
                threads=threads,
                rounds=params.rounds,
                budget_s=params.budget_s,
                seed=params.seed,
            )
        return latency.table(self.results)

    def _forms(self) -> dict[str, CompactBertModel]:
        """The model of each contestant: as it was saved, sparse, or dense."""
        how = {"torch": lambda model: model, "torch-sparse": sparse.to_sparse}
        return {
            name: how.get(engine, sparse.to_dense)(self.models[model])
            for name, (model, engine) in self.contestants().items()
        }

    def _graphs(self, seq_len: int) -> dict[str, Path]:
        """An ONNX file of each model, where an engine needs it; in the work folder, so that a stopped run finds it.

        One that drops tokens takes inputs of one length only, so it has a file for each.
        """
        if not any(map(engines.uses_onnx, self.params.engines)):
            return {}
        graphs = {}
        for name, model in self.models.items():
            fixed = f"-{seq_len}" if model.config.length_config else ""
            graphs[name] = self.session.folder / f"{name}{fixed}.onnx"
            if not graphs[name].exists():
                export.to_onnx(sparse.to_dense(model), graphs[name], seq_len)
        return graphs

    def bars(self, batch_size: int, seq_len: int, threads: int) -> Figure:
        """All models under one condition."""
        table = latency.table(
            [r for r in self.results if (r.batch_size, r.seq_len, r.threads) == (batch_size, seq_len, threads)]
        )
        table["system"] = [name.partition("-")[0] for name in table["name"]]
        return figures.latency_bars(table)

    def finish(self) -> pd.DataFrame:
        """One run per model, engine and condition in the experiment latency/<host>, raw samples with it; the table."""
        contestants = self.contestants()
        for result in self.results:
            model, engine = contestants[result.name]
            measured = {**asdict(result), "name": model, "engine": engine}
            tracking.log_latency(platform.node() or "localhost", measured, self.params.models[model])
        table = latency.table(self.results)
        self.session.run.table("latency", table)
        self.session.finish({"fastest": table["name"].iloc[0], "fastest_ms": float(table["latency_p50_ms"].iloc[0])})
        return table


def open(params: LatencyParams) -> LatencyStage:
    """Load every encoder, start the run. Raises ValueError where no model or engine is named, ModuleNotFoundError where
    an engine is not installed.
    """
    if not params.models:
        raise ValueError("no models named; models maps <system>-<variant> to a run, a folder or a hub id")
    if not params.engines:
        raise ValueError("no engines named; engines lists where the models run, such as torch")
    for engine in params.engines:
        engines.check_installed(engine)
    session = Session("latency", params, experiment="latency", name="latency", seed=params.seed)
    models = {
        name: length_choice.chosen(on_device(checkpoints.load(CompactBertModel, model_folder(source))), source)
        for name, source in params.models.items()
    }
    return LatencyStage(params, session, models, [])
