"""One stage in several processes: torchrun's agent starts the command again for each, and stops all when one fails.

The first process runs the notebook as ever; the kernel inherits what torchrun says and trains together with the others,
which run no notebook and record nothing. With several machines users call torchrun themselves.
"""

import logging
import os
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import get_type_hints

from compresskit import tracking
from compresskit.stages.params import ParamsError, params_class, stage_module

LAUNCHED = "TORCHELASTIC_RUN_ID"  # set in every process that torchrun starts


class ProcessFailed(RuntimeError):
    """One of several processes failed, and all were stopped."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def launch(
    nproc: int,
    stage: str,
    params: Path | str | None = None,
    changes: Iterable[str] = (),
    *,
    deadline_s: float | None = None,
) -> None:
    """Run a stage in `nproc` processes of this machine, connected over loopback.

    The agent of `torch.distributed.run --standalone` runs inside this process: as a program of its own it would print
    tracebacks of its own.  Raises ParamsError before anything runs, ProcessFailed, KeyboardInterrupt on Ctrl-C.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher import LaunchConfig, elastic_launch

    if LAUNCHED in os.environ:
        raise ParamsError("--nproc starts processes, but torchrun has done so already; leave it out")
    changes = list(changes)
    params_class(stage).load(params, changes)
    if not hasattr(get_type_hints(stage_module(stage).open)["return"], "train"):
        raise ParamsError(f"stage {stage!r} does not train, so it has no use for several processes; leave --nproc out")
    tracking.initialise()
    arguments = ["-m", "compresskit.cli", "run", stage, *(["--params", str(params)] if params is not None else [])]
    arguments += [word for change in changes for word in ("--set", change)]
    arguments += ["--deadline", str(deadline_s)] if deadline_s is not None else []
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        run_id=uuid.uuid4().hex,
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = min(int(os.environ.get("OMP_NUM_THREADS", cores)), max(1, cores // nproc))
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    variables = {"OMP_NUM_THREADS": str(threads), "GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
    logging.disable(logging.ERROR)  # the agent's own; what went wrong is said below
    try:
        with environment(variables):
            elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        ended = signal.Signals(-failure.exitcode).name if failure.exitcode < 0 else f"exit code {failure.exitcode}"
        message = f"{stage}: process {number} of {nproc} ended with {ended}, and all were stopped"
        raise ProcessFailed(message, max(1, failure.exitcode)) from error
    except SignalException as error:
        raise KeyboardInterrupt(f"{stage}: all {nproc} processes stopped") from error
    finally:
        logging.disable(logging.NOTSET)


def assists() -> bool:
    """Whether torchrun started this process to help another one."""
    return LAUNCHED in os.environ and os.environ["RANK"] != "0"


def assist(stage: str, params: Path | str | None = None, changes: Iterable[str] = ()) -> None:
    """Help the first process to train a stage; see `stages.session.assist`."""
    from compresskit.stages import session

    checked = params_class(stage).load(params, changes)
    with environment({"COMPRESSKIT_HEADLESS": "1"}), ends_with_launcher():
        session.assist(stage, checked)


@contextmanager
def ends_with_launcher() -> Iterator[None]:
    """A process that torchrun started stops, as by SIGTERM, when torchrun is gone without having stopped it."""
    done = threading.Event()
    launcher = os.getppid()

    def watch() -> None:
        while not done.wait(1.0):
            if os.getppid() != launcher:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    if LAUNCHED in os.environ:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


@contextmanager
def environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Environment variables for the processes started inside; None removes one."""
    before = {name: os.environ.get(name) for name in values}

    def put(new: Mapping[str, str | None]) -> None:
        for name, value in new.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    put(values)
    try:
        yield
    finally:
        put(before)
