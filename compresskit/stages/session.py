"""What every training stage does around its work: seeds, threads, processes, the tracked run, resuming, keeping."""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Literal, TypeVar

import pandas as pd
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compresskit import tracking
from compresskit.kernels.float32 import choose_float32_matmul
from compresskit.models import checkpoints
from compresskit.stages import length_choice
from compresskit.stages.params import Params, stage_module
from compresskit.training import distributed
from compresskit.training.state import TrainingState

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Precision = Literal["auto", "float32", "bfloat16", "float16"]  # of matrix products
LAST_WORD_SECONDS = 20.0  # the first process needs about 5 s to close its run and keep its notebook
Model = TypeVar("Model", bound=nn.Module)


class Session:
    """One run of one stage. The same parameters always name the same work folder, in which a stopped run goes on.

    Where torchrun started several processes, all meet here; only the first has a run that is recorded.
    """

    def __init__(self, stage: str, params: Params, *, experiment: str, name: str, seed: int = 0, threads: int = 0):
        torch.manual_seed(seed)
        if threads:
            torch.set_num_threads(threads)
        matmul = choose_float32_matmul()
        key = params.task_key(stage)
        self.folder = tracking.project_root() / "mlruns" / "unfinished" / key
        self.run: tracking.Run
        distributed.start()
        rows, processes = getattr(params, "batch_size", 0), distributed.size()
        if rows % processes:
            raise ValueError(
                f"batch_size {rows} is no multiple of {processes} processes, which share each batch equally"
            )
        if distributed.rank():
            self.run = tracking.SilentRun()
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.run = tracking.start(
            stage,
            experiment=experiment,
            name=name,
            params=params.model_dump(mode="json"),
            task_key=key,
            tags={
                "float32_matmul": matmul.precision,
                "float32_matmul.why": matmul.reason,
                "threads": torch.get_num_threads(),
                "processes": processes,
            },
        )

    def state(self, part: str = "train") -> TrainingState:
        """Where a training loop of this run saves itself."""
        return TrainingState(self.folder / part, before_save=self.run.flush)

    def observe(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log the numbers of one step."""
        self.run.log(step, numbers)

    def keep(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        card: Mapping[str, Any],
        register: str | None = None,
        training_only: Mapping[str, Tensor] | None = None,
        beside: Sequence[Path] = (),
    ) -> str:
        """Save model, tokenizer and `card` (typed results as JSON beside the model); returns the run's model URI.

        training_only: see `checkpoints.save`. beside: more files for the model's folder.
        """
        folder = self.folder / "model"
        checkpoints.save(model, folder, tokenizer, training_only)
        for file in beside:
            shutil.copy(file, folder)
        return self.run.model(folder, card=dict(card), register=register)

    def finish(self, result: Mapping[str, Any]) -> pd.DataFrame:
        """Close the run, hand `result` on to a pipeline, drop the work folder; returns the result as one row."""
        self.run.finish(dict(result))
        shutil.rmtree(self.folder, ignore_errors=True)
        distributed.stop()
        return pd.DataFrame([result])


def assist(stage: str, params: Params) -> None:
    """What a process above the first does for a stage: its part of the training, and nothing else.

    One that fails leaves the others at once, says so, and lets the first one end its run before all are stopped.
    """
    messages = sys.stderr
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        try:
            stage_module(stage).open(params).train()
            distributed.stop()
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        except Exception as error:
            if not isinstance(error, distributed.Parted):
                print(f"compresskit: process {os.environ['RANK']}: {type(error).__name__}: {error}", file=messages)
            distributed.stop(wait=False)
            time.sleep(LAST_WORD_SECONDS)
            raise SystemExit(1) from error


def steps(num_train_epochs: float, batches_per_epoch: int, max_steps: int) -> int:
    """Optimizer steps of a run; max_steps, unless 0, is the most."""
    wanted = max(1, math.ceil(num_train_epochs * batches_per_epoch))
    return min(wanted, max_steps) if max_steps else wanted


def model_folder(source: str) -> str | Path:
    """What a stage's `model` names, as something that loads: runs:/…/model, models:/name@alias, a folder, a hub id.

    What may stand behind it, ?lengths=…, is read by stages/length_choice.py.
    """
    return tracking.resolve(length_choice.split(source)[0])


def autocast_dtype(precision: Precision) -> torch.dtype | None:
    """The dtype of matrix products: auto is bfloat16 on a GPU that has it, else that of the weights, as is float32."""
    if precision == "auto":
        return torch.bfloat16 if DEVICE.type == "cuda" and torch.cuda.is_bf16_supported() else None
    return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def on_device(model: Model) -> Model:
    """The model, moved to this machine's GPU where it has one."""
    nn.Module.to(model, DEVICE)
    return model
