"""What a stopped run needs to go on as if it had not stopped: weights, optimizer, random states, the step."""

from __future__ import annotations

import contextlib
import io
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from compresskit.training import distributed


class Stateful(Protocol):
    """A part of a run: model, optimizer, scheduler, pruner, the best weights so far."""

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on."""

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Go on from there."""


class TrainingState:
    """Saves the parts of a run to one file now and then and restores them.

    A save is written beside the last one and then takes its place, so a kill at any moment leaves a whole file. The
    position in the data is not stored: batches are a function of seed and step. Of several processes only the first
    reads and writes; `adopt` tells the others.
    """

    def __init__(self, folder: Path, every_seconds: float = 60.0, before_save: Callable[[], object] | None = None):
        self.path = Path(folder) / "state.pt"
        self.every_seconds = every_seconds
        self.before_save = before_save  # what must not be behind the save, such as numbers that wait to be logged
        self.silent = distributed.rank() > 0
        self._last = time.monotonic()

    def restore(self, parts: dict[str, Stateful]) -> int:
        """Load the last save into `parts` and return its step; 0 where there is none.

        Raises ValueError where the file does not fit the parts.
        """
        if self.silent:
            return 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._unfinished.unlink(missing_ok=True)
        if not self.path.exists():
            return 0
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
            if saved["parts"].keys() != parts.keys():
                raise ValueError(f"it holds {', '.join(saved['parts'])}; this run has {', '.join(parts)}")
            for name, part in parts.items():
                part.load_state_dict(saved["parts"][name])
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"{self.path} does not belong to this run ({reason}); delete it to start afresh"
            ) from error
        torch.set_rng_state(saved["torch_rng"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state_all(saved["cuda_rng"])
        return int(saved["step"])

    def save_when_due(self, step: int, parts: dict[str, Stateful]) -> None:
        """Save if the last save is `every_seconds` old."""
        if time.monotonic() - self._last >= self.every_seconds:
            self.save(step, parts)

    def save(self, step: int, parts: dict[str, Stateful]) -> None:
        """Replace the file. Raises OSError with the remedy when that fails; the last save then still stands."""
        if self.silent:
            return
        if self.before_save is not None:
            self.before_save()
        saved = {
            "step": step,
            "parts": {name: part.state_dict() for name, part in parts.items()},
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        try:
            with open(self._unfinished, "wb") as file:
                torch.save(saved, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(self._unfinished, self.path)
        except (OSError, RuntimeError) as error:  # torch answers the system's error with one of its own
            reason = error.__context__ if isinstance(error.__context__, OSError) else error
            raise OSError(
                f"{self.path} could not be written ({str(reason).splitlines()[0]}); make room and run the same command "
                "again: it goes on from the last save"
            ) from error
        finally:  # gone already unless something failed or Ctrl-C came
            with contextlib.suppress(OSError):
                self._unfinished.unlink(missing_ok=True)
        self._last = time.monotonic()

    def discard(self) -> None:
        """Remove the file once the run is finished."""
        if not self.silent:
            self.path.unlink(missing_ok=True)

    @property
    def _unfinished(self) -> Path:
        return self.path.with_name("state.pt.part")


def adopt(parts: Mapping[str, Stateful], step: int) -> int:
    """Give every process the parts of the first as they are there, and its `step`, which is returned."""
    if distributed.size() == 1:
        return step
    packed = io.BytesIO()
    if distributed.rank() == 0:
        torch.save({"step": step, "parts": {name: part.state_dict() for name, part in parts.items()}}, packed)
    told = torch.load(io.BytesIO(distributed.broadcast(packed.getvalue())), map_location="cpu", weights_only=True)
    if distributed.rank():
        for name, part in parts.items():
            part.load_state_dict(told["parts"][name])
    return int(told["step"])


class Best:
    """The weights that scored highest so far, the earliest of equals; `stale` scores since then were no higher."""

    def __init__(self) -> None:
        self.score: float | None = None
        self.step = self.stale = 0
        self.weights: dict[str, torch.Tensor] = {}

    def offer(self, score: float, step: int, model: torch.nn.Module) -> bool:
        """Keep a copy of the model's weights if `score` is strictly higher than all before; NaN is below all."""
        if self.score is not None and not (score > self.score or (math.isnan(self.score) and not math.isnan(score))):
            self.stale += 1
            return False
        self.score, self.step, self.stale = score, step, 0
        self.weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        return True

    def state_dict(self) -> dict[str, Any]:
        """See Stateful."""
        return {"score": self.score, "step": self.step, "stale": self.stale, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See Stateful."""
        self.score, self.step, self.stale, self.weights = (state[n] for n in ("score", "step", "stale", "weights"))
