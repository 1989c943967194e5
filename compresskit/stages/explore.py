"""Looking around in what has been measured: the leaderboard's front and any run's curves, with widgets or without."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import ipywidgets as w
import pandas as pd
from IPython.display import display
from matplotlib.figure import Figure

from compresskit import tracking
from compresskit.evaluation import figures
from compresskit.stages.compare import pareto_rows
from compresskit.stages.params import Params
from compresskit.training.progress import HEADLESS

COSTS = ("latency_p50_ms", "latency_p95_ms", "params_m", "disk_mb", "gflops")


class ExploreParams(Params):
    """Parameters of the stage `explore`."""

    task: str = "sst2-bundled"  # a leaderboard: a task, or <task>-bundled for the bundled data
    cost: str = "latency_p50_ms"  # one of latency_p50_ms, latency_p95_ms, params_m, disk_mb, gflops


@dataclass
class Explore:
    """The opened stage. It only reads."""

    params: ExploreParams
    rows: pd.DataFrame

    def pareto(self, cost: str = "", systems: tuple[str, ...] = ()) -> Figure:
        """Score against a cost, of all systems or of some."""
        rows = self.rows[self.rows["system"].isin(systems)] if systems else self.rows
        return figures.pareto_plot(pareto_rows(rows), cost or self.params.cost)

    def curves(self, run_id: str) -> Figure:
        """The training curves of one run."""
        return figures.learning_curve(tracking.history(run_id))

    def trained(self) -> dict[str, str]:
        """Runs with curves in this task's experiments, newest first: name to run id."""
        return tracking.runs_with_curves(self.params.task)

    def show(self) -> None:
        """Both pictures under controls; without a person at the screen, the two pictures."""
        runs = self.trained()
        if os.environ.get(HEADLESS):
            for figure in (self.pareto(), *(self.curves(run_id) for run_id in list(runs.values())[:1])):
                display(figure)
            return
        cost = w.Dropdown(options=COSTS, value=self.params.cost, description="cost")
        systems = w.SelectMultiple(options=sorted(self.rows["system"].unique()), description="systems")
        run = w.Dropdown(options=runs, description="curves of")
        front, curves = w.Output(), w.Output()

        def draw_front(*_: Any) -> None:
            with front:
                front.clear_output(wait=True)
                display(self.pareto(cost.value, tuple(systems.value)))

        def draw_curves(*_: Any) -> None:
            with curves:
                curves.clear_output(wait=True)
                if run.value:
                    display(self.curves(run.value))

        cost.observe(draw_front, "value")
        systems.observe(draw_front, "value")
        run.observe(draw_curves, "value")
        draw_front()
        draw_curves()
        display(w.VBox([w.HBox([cost, systems]), front, run, curves]))


def open(params: ExploreParams) -> Explore:
    """Read the leaderboard of the task. Raises ValueError where it is empty or the cost unknown."""
    if params.cost not in COSTS:
        raise ValueError(f"cost {params.cost!r} is none of {', '.join(COSTS)}")
    return Explore(params, tracking.leaderboard_table(params.task))
