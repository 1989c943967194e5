"""Measured latency of finished models over batch sizes, lengths and threads."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from itertools import product

import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field

from compresskit import tracking
from compresskit.evaluation import figures, latency
from compresskit.models import CompactBertModel, checkpoints
from compresskit.stages.params import Params
from compresskit.stages.session import Session, model_folder, on_device


class LatencyParams(Params):
    """Parameters of the stage `latency`."""

    models: dict[str, str] = {"baseline-teacher": "models:/demo-teacher@latest"}  # source by <system>-<variant>
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

    def measure(self) -> pd.DataFrame:
        """Time the encoders by turns, for each combination of batch size, length and threads."""
        params = self.params
        vocab_size = min(model.config.vocab_size for model in self.models.values())
        for threads, batch_size, seq_len in product(params.threads, params.batch_sizes, params.seq_lens):
            self.results += latency.measure(
                self.models,
                latency.random_batch(vocab_size, batch_size, seq_len, params.seed),
                threads=threads,
                rounds=params.rounds,
                budget_s=params.budget_s,
                seed=params.seed,
            )
        return latency.table(self.results)

    def bars(self, batch_size: int, seq_len: int, threads: int) -> Figure:
        """All models under one condition."""
        table = latency.table(
            [r for r in self.results if (r.batch_size, r.seq_len, r.threads) == (batch_size, seq_len, threads)]
        )
        table["system"] = [name.partition("-")[0] for name in table["name"]]
        return figures.latency_bars(table)

    def finish(self) -> pd.DataFrame:
        """One run per model and condition in the experiment latency/<host>, with raw samples; returns the table."""
        for result in self.results:
            tracking.log_latency(platform.node() or "localhost", asdict(result), self.params.models[result.name])
        table = latency.table(self.results)
        self.session.run.table("latency", table)
        self.session.finish({"fastest": table["name"].iloc[0], "fastest_ms": float(table["latency_p50_ms"].iloc[0])})
        return table


def open(params: LatencyParams) -> LatencyStage:
    """Load every encoder, start the run. Raises ValueError where no model is named."""
    if not params.models:
        raise ValueError("no models named; models maps <system>-<variant> to a run, a folder or a hub id")
    session = Session("latency", params, experiment="latency", name="latency", seed=params.seed)
    models = {
        name: on_device(checkpoints.load(CompactBertModel, model_folder(source)))
        for name, source in params.models.items()
    }
    return LatencyStage(params, session, models, [])
