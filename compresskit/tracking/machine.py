"""Who runs this, and on what: the tags that let a number be judged later, and tell a live run from a dead one."""

import getpass
import os
import platform
import socket
import subprocess
import sys
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version

import psutil

from compresskit.tracking.store import project_root


def tags() -> dict[str, str]:
    """Tags of a run that starts now in this process."""
    commit = _git("rev-parse", "HEAD") or "unknown"
    return {
        "git.commit": commit,
        "dirty": str(bool(_git("status", "--porcelain"))).lower() if commit != "unknown" else "unknown",
        "hardware": hardware(),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "compresskit": _version("compresskit"),
        "process": process(),
        "mlflow.user": getpass.getuser(),
        "mlflow.source.git.commit": commit,
    }


@lru_cache(maxsize=1)
def hardware() -> str:
    """Processor, cores this process may use, and GPUs when torch is there and sees some."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch = sys.modules.get("torch")  # not imported for this
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch else []
    return ", ".join([f"{name} x {cores} cores", *gpus])


def process(pid: int | None = None) -> str:
    """host/pid/start time: a name no other process, and no later one with the same number, has."""
    pid = pid or os.getpid()
    return f"{socket.gethostname()}/{pid}/{psutil.Process(pid).create_time():.2f}"


def alive(name: str) -> bool | None:
    """Whether a process named by `process` still runs; None when it belongs to another machine."""
    host, _, rest = name.partition("/")
    if host != socket.gethostname():
        return None
    pid, _, began = rest.partition("/")
    try:
        other = psutil.Process(int(pid))
        # 2 s: the clock may have been set in between, and the start time is counted from boot
        return abs(other.create_time() - float(began)) < 2 and other.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=project_root(), capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
