"""Where the zeros of a model are, out of how many weights, and what they are worth in bytes."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from compresskit.evaluation import figures, sparsity
from compresskit.models import checkpoints, sparse
from compresskit.stages.params import Params
from compresskit.stages.session import Session, model_folder


class SparsityReportParams(Params):
    """Parameters of the stage `sparsity_report`."""

    model: str = "models:/demo-pruned@latest"  # a run, a registered model, a folder or a hub id


@dataclass
class SparsityReportStage:
    """The opened stage."""

    session: Session
    report: sparsity.SparsityReport

    def totals(self) -> pd.DataFrame:
        """The shares of zeros, each with its denominator."""
        return self.report.totals

    def matrices(self) -> pd.DataFrame:
        """One row per parameter tensor."""
        return self.report.matrices

    def heatmap(self) -> Figure:
        """Percentage of zeros per layer and kind of matrix."""
        return figures.sparsity_heatmap(self.report)

    def finish(self) -> pd.DataFrame:
        """Log tables and figure; returns the row of results."""
        self.session.run.table("matrices", self.report.matrices)
        self.session.run.table("totals", self.report.totals)
        self.session.run.figure("sparsity", self.heatmap())
        names = ("sparsity", "encoder_sparsity", "model_sparsity")
        return self.session.finish({name: getattr(self.report, name) for name in names})


def open(params: SparsityReportParams) -> SparsityReportStage:
    """Read the weights as they were saved, start the run."""
    session = Session("sparsity_report", params, experiment="sparsity", name="sparsity-report")
    found = checkpoints.read(model_folder(params.model))
    weights = sparse.dense_weights(found.weights, found.config.get("sparse") or {})
    return SparsityReportStage(session, sparsity.report({**weights, **found.training_only}))
