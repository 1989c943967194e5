"""Where the zeros of a model are, out of how many weights, and what they are worth in bytes, operations and time."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field

from compresskit.evaluation import figures, latency, sparsity
from compresskit.models import CompactBertModel, checkpoints, sparse
from compresskit.stages.params import Params
from compresskit.stages.session import Session, model_folder

logger = logging.getLogger(__name__)


class SparsityReportParams(Params):
    """Parameters of the stage `sparsity_report`."""

    model: str = "models:/demo-pruned@latest"  # a run, a registered model, a folder or a hub id
    seq_len: int = Field(128, ge=1)  # tokens of the sequence whose operations are counted and whose time is measured
    threads: int = Field(1, ge=1)  # of timed calls


@dataclass
class SparsityReportStage:
    """The opened stage."""

    params: SparsityReportParams
    session: Session
    encoder: CompactBertModel  # dense
    report: sparsity.SparsityReport
    speed: pd.DataFrame
    measured: dict[str, float] = field(default_factory=dict)

    def totals(self) -> pd.DataFrame:
        """The shares of zeros, each with its denominator."""
        return self.report.totals

    def kinds(self) -> pd.DataFrame:
        """The same for each kind of parameter."""
        return self.report.kinds

    def layers(self) -> pd.DataFrame:
        """The same for the prunable matrices of each encoder layer."""
        return self.report.layers

    def matrices(self) -> pd.DataFrame:
        """One row per parameter tensor."""
        return self.report.matrices

    def heatmap(self) -> Figure:
        """Percentage of zeros per layer and kind of matrix."""
        return figures.sparsity_heatmap(self.report)

    def measure(self) -> pd.DataFrame:
        """Time of the encoder, dense and with its pruned layers sparse, by turns; dense alone with too few zeros."""
        contestants = {"dense": self.encoder}
        try:
            contestants["sparse"] = sparse.to_sparse(self.encoder)
        except ValueError as error:
            logger.warning("timed dense only: %s", error)
        params = self.params
        batch = latency.random_batch(self.encoder.config.vocab_size, 1, params.seq_len)
        table = latency.table(latency.measure(contestants, batch, threads=params.threads))
        ms = table.set_index("name")["latency_p50_ms"]
        self.measured = {"measured_speedup": float(ms["dense"] / ms["sparse"])} if "sparse" in ms else {}
        self.session.run.table("measured", table)
        return table

    def finish(self) -> pd.DataFrame:
        """Log tables and figure; returns the row of results."""
        tables = {"matrices": self.report.matrices, "totals": self.report.totals, "kinds": self.report.kinds}
        for name, table in {**tables, "layers": self.report.layers, "speed": self.speed}.items():
            self.session.run.table(name, table)
        self.session.run.figure("sparsity", self.heatmap())
        names = ("sparsity", "encoder_sparsity", "model_sparsity")
        shares = {name: getattr(self.report, name) for name in names}
        expected = {"expected_speedup": self.speed.at["encoder", "expected_speedup"]}
        return self.session.finish({**shares, **expected, **self.measured})


def open(params: SparsityReportParams) -> SparsityReportStage:
    """Read the weights as they were saved, start the run."""
    session = Session("sparsity_report", params, experiment="sparsity", name="sparsity-report")
    found = checkpoints.read(model_folder(params.model))
    weights = sparse.dense_weights(found.weights, found.config.get("sparse") or {})
    counted = sparsity.report({**weights, **found.training_only})
    encoder = sparse.to_dense(found.model(CompactBertModel))
    speed = sparsity.expected_speedup(counted, encoder.config, params.seq_len)
    return SparsityReportStage(params, session, encoder, counted, speed)
