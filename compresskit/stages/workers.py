"""Several processes that work on independent jobs: one that dies costs its job's time and nothing else."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from multiprocessing.connection import Connection, wait
from typing import Any, Self

import torch

from compresskit.kernels.float32 import choose_float32_matmul
from compresskit.training.progress import HEADLESS

ATTEMPTS = 2  # at a job whose process died: what kills twice, such as too little memory, kills again
Work = Callable[[Any], Any]


class WorkerFailed(RuntimeError):
    """A job that cannot be done: its function raised an error, or the process that ran it died, and again."""


class Workers:
    """`count` processes, each with a function of its own from `make()`; with one, this process does the work itself.

    make, jobs and results are pickled. threads: of torch, in each process; 0: the cores shared out evenly.
    Use as a context: at its end, and when this process is killed, all of them stop.
    """

    def __init__(self, count: int, threads: int, make: Callable[[], Work]):
        self.count, self.make = count, make
        self.threads = threads or max(1, _cores() // count)
        self._here: Work | None = None
        self._processes: dict[Connection, multiprocessing.process.BaseProcess] = {}
        self._started = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection, process in self._processes.items():
            connection.close()
            process.kill()  # its work is done, or lost: what it saved stays whole
        for process in self._processes.values():
            process.join()
        self._processes.clear()

    def results(self, jobs: Mapping[str, Any] | Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        """Name and result of each job, as they are finished; started in the given order.

        jobs: by their names; an iterator is asked for the next name and job only when a process is free. A job whose
        process died is given to a new one. Raises WorkerFailed, one sentence that names the job, where that dies too,
        and where the function raises.
        """
        coming = iter(jobs.items()) if isinstance(jobs, Mapping) else jobs
        if self.count == 1:
            self._here = self._here or self.make()
            for name, job in coming:
                with _quiet():
                    result = self._here(job)
                yield name, result
            return
        again, attempts = deque[tuple[str, Any]](), Counter[str]()  # again: jobs whose process died
        busy: dict[Connection, tuple[str, Any]] = {}
        while True:
            while len(busy) < self.count and (job := again.popleft() if again else next(coming, None)):
                connection = next((c for c in self._processes if c not in busy), None) or self._start()
                busy[connection] = job
                with suppress(OSError):  # it died while idle: found out below
                    connection.send(job[1])
            if not busy:
                return
            heard = wait(list(busy))
            for connection in [own for own in busy if own in heard]:
                name, job = busy.pop(connection)
                try:
                    result, error = connection.recv()
                except (EOFError, OSError):
                    process = self._processes.pop(connection)
                    connection.close()
                    process.join()
                    attempts[name] += 1
                    if attempts[name] == ATTEMPTS:
                        raise WorkerFailed(
                            f"{name}: {ATTEMPTS} processes that worked on it ended with {_ending(process.exitcode)}; "
                            "with too little memory take fewer workers or a smaller batch_size, then run the same "
                            "command again: what is finished is kept"
                        ) from None
                    print(f"{name}: its process ended with {_ending(process.exitcode)}; tried again", flush=True)
                    again.append((name, job))
                    continue
                if error:
                    raise WorkerFailed(f"{name}: {error}")
                yield name, result

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")  # a fork would inherit locked threads, and CUDA
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._started, self.threads, self.make), daemon=True)
        process.start()
        theirs.close()
        self._started += 1
        self._processes[ours] = process
        return ours


def _serve(connection: Connection, number: int, threads: int, make: Callable[[], Work]) -> None:
    """The whole life of a process: a job, its result, the next."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the first process decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    choose_float32_matmul()  # as every stage's session does: all processes reckon alike
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
    work: Work | None = None
    with _quiet():
        while True:
            try:
                job = connection.recv()
            except EOFError:
                return
            try:
                work = work or make()
                answer = (work(job), "")
            except Exception as error:
                answer = (None, f"{type(error).__name__}: {' '.join(str(error).split())}")
            connection.send(answer)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars and notices of every single job."""
    before = os.environ.get(HEADLESS)
    os.environ[HEADLESS] = "1"
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield
    finally:
        if before is None:
            del os.environ[HEADLESS]
        else:
            os.environ[HEADLESS] = before


def _ending(exit_code: int | None) -> str:
    return signal.Signals(-exit_code).name if exit_code is not None and exit_code < 0 else f"exit code {exit_code}"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
