"""How far, how fast, how long still: a bar by hand, plain lines every 15 s where nobody watches."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

from tqdm.auto import tqdm

HEADLESS = "COMPRESSKIT_HEADLESS"  # set by the runner
LINE_SECONDS = 15.0
Item = TypeVar("Item")


class Progress:
    """`with Progress("distill", total) as progress: progress.at(step, loss=…)`; `start` steps were done before."""

    def __init__(self, label: str, total: int, start: int = 0):
        self.label, self.total, self.start = label, total, start
        self._bar: Any = None
        if not os.environ.get(HEADLESS):
            self._bar = tqdm(total=total, initial=start, desc=label, mininterval=0.5)
        self._begun = self._spoken = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def at(self, step: int, **numbers: float) -> None:
        """Report that `step` of `total` steps are done, with the numbers of the moment."""
        if self._bar is not None:
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in numbers.items()}, refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if now - self._spoken < LINE_SECONDS and step < self.total:
            return
        self._spoken = now
        seconds = (now - self._begun) / max(1, step - self.start)
        left = tqdm.format_interval(seconds * (self.total - step))
        shown = "".join(f", {name} {value:.4g}" for name, value in numbers.items())
        line = f"{self.label}: {step} of {self.total}, {seconds:.3g} s each, {left} left{shown}"
        print(line, file=sys.stdout, flush=True)


class Speed:
    """Examples per second since it was made, pauses left out."""

    def __init__(self) -> None:
        self.examples, self._pauses, self._begun = 0, 0.0, time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside takes no time."""
        began = time.perf_counter()
        yield
        self._pauses += time.perf_counter() - began

    def per_second(self) -> float:
        """So far."""
        return self.examples / max(time.perf_counter() - self._begun - self._pauses, 1e-9)


def watched(label: str, items: Iterable[Item], total: int) -> Iterator[Item]:
    """The items, of which there are `total`, one after the other, with their progress shown."""
    with Progress(label, total) as progress:
        for number, item in enumerate(items, start=1):
            yield item
            progress.at(number)
