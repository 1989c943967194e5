"""Runs, models and the leaderboard in MLflow. The only room that knows MLflow, and it imports it when first used."""

from compresskit.tracking.leaderboard import (
    SYSTEMS,
    leaderboard,
    leaderboard_table,
    leaderboard_tasks,
    log_latency,
    view_url,
)
from compresskit.tracking.lookup import (
    attach,
    close,
    history,
    pipeline_runs,
    read_json,
    reap,
    run_params,
    runs_with_curves,
    seconds,
    status,
)
from compresskit.tracking.models import digest, folder_digest, model_digest, register, resolve, run_of
from compresskit.tracking.runs import Run, SilentRun, start
from compresskit.tracking.store import initialise, project_root, store_uri

__all__ = [
    "SYSTEMS",
    "Run",
    "SilentRun",
    "attach",
    "close",
    "digest",
    "folder_digest",
    "history",
    "initialise",
    "leaderboard",
    "leaderboard_table",
    "leaderboard_tasks",
    "log_latency",
    "model_digest",
    "pipeline_runs",
    "project_root",
    "read_json",
    "reap",
    "register",
    "resolve",
    "run_of",
    "run_params",
    "runs_with_curves",
    "seconds",
    "start",
    "status",
    "store_uri",
    "view_url",
]
