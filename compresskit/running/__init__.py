"""Stages and pipelines from checked parameters to a recorded run. The only room that knows papermill."""

from compresskit.running.desk import doctor, leaderboard_tasks, plot_path, reap, serve
from compresskit.running.pipeline import run_pipeline
from compresskit.running.processes import assist, assists, launch
from compresskit.running.stage import Done, StageFailed, run_stage

__all__ = [
    "Done",
    "StageFailed",
    "assist",
    "assists",
    "doctor",
    "launch",
    "leaderboard_tasks",
    "plot_path",
    "reap",
    "run_pipeline",
    "run_stage",
    "serve",
]
