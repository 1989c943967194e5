"""What is no stage: the UI, a look at the installation, runs left behind, where plots go."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from compresskit import tracking
from compresskit.stages.params import stage_names

PACKAGES = ("torch", "transformers", "datasets", "mlflow", "papermill", "ipykernel", "jupyterlab", "matplotlib")


def reap(host: str | None = None) -> list[str]:
    """Close runs whose process is gone; see tracking.reap."""
    return tracking.reap(host)


def leaderboard_tasks() -> list[str]:
    """The tasks with a leaderboard."""
    return tracking.leaderboard_tasks()


def plot_path(task: str) -> Path:
    """Where `compare` puts a task's plot."""
    return tracking.project_root() / "mlruns" / "compare" / f"{task}.png"


def serve(port: int) -> int:
    """MLflow's UI on this machine only, with one worker and no job runner (2 processes instead of 15), until Ctrl-C."""
    uri = tracking.initialise()
    if uri.startswith("http"):
        raise ValueError(f"the store is a server already: open {uri}")
    for task in tracking.leaderboard_tasks():
        print(f"leaderboard {task}: {tracking.view_url(task, f'http://127.0.0.1:{port}')}", flush=True)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return subprocess.run(command, env=environment, cwd=tracking.project_root() / "mlruns").returncode


def doctor() -> list[str]:
    """Print what runs here with what.  Returns what is wrong, each with its remedy."""
    from jupyter_client.kernelspec import KernelSpecManager

    wrong = []
    print(f"python      {sys.version.split()[0]}  {sys.executable}")
    for package in PACKAGES:
        try:
            print(f"{package:<11} {version(package)}")
        except PackageNotFoundError:
            wrong.append(f"{package} is not installed; run `make` or `pip install -e .`")
    kernels = KernelSpecManager().find_kernel_specs()
    print(f"kernels     {', '.join(f'{name} ({place})' for name, place in sorted(kernels.items()))}")
    if "python3" not in kernels:
        wrong.append("there is no kernel `python3`; run `python -m ipykernel install --sys-prefix`")
    root = tracking.project_root()
    print(f"project     {root}  (stages: {', '.join(stage_names())})")
    print(f"store       {tracking.initialise()}")
    if not os.access(root / "mlruns", os.W_OK):
        wrong.append(f"{root / 'mlruns'} cannot be written")
    return wrong
