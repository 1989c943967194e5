"""Where the zeros of a model are, out of how many weights, and what they are worth in bytes and in operations."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field

from compresskit.evaluation import figures, sparsity
from compresskit.models import checkpoints
from compresskit.stages.params import Params
from compresskit.stages.session import Session, model_folder


class SparsityReportParams(Params):
    """Parameters of the stage `sparsity_report`."""

    model: str = "models:/demo-pruned@latest"  # a run, a registered model, a folder or a hub id
    seq_len: int = Field(128, ge=1)  # tokens of the sequence whose operations are counted


@dataclass
class SparsityReportStage:
    """The opened stage."""

    session: Session
    report: sparsity.SparsityReport
    speed: pd.DataFrame

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

    def finish(self) -> pd.DataFrame:
        """Log tables and figure; returns the row of results."""
        tables = {"matrices": self.report.matrices, "totals": self.report.totals, "kinds": self.report.kinds}
        for name, table in {**tables, "layers": self.report.layers, "speed": self.speed}.items():
            self.session.run.table(name, table)
        self.session.run.figure("sparsity", self.heatmap())
        names = ("sparsity", "encoder_sparsity", "model_sparsity")
        shares = {name: getattr(self.report, name) for name in names}
        return self.session.finish({**shares, "expected_speedup": self.speed.at["encoder", "expected_speedup"]})


def open(params: SparsityReportParams) -> SparsityReportStage:
    """Read the weights as they were saved, start the run."""
    session = Session("sparsity_report", params, experiment="sparsity", name="sparsity-report")
    found = checkpoints.read(model_folder(params.model))
    counted = sparsity.report({**found.weights, **found.training_only})
    speed = sparsity.expected_speedup(counted, found.architecture(), params.seq_len)
    return SparsityReportStage(session, counted, speed)
