"""What a frozen teacher says, computed no more often and no more exactly than needed."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from compresskit.training import distributed
from compresskit.training.distill import inputs, mean_losses
from compresskit.training.loop import Batch, Losses, Pieces

Model = TypeVar("Model", bound=PreTrainedModel)
NOT_OF_THE_ANSWER = {"_name_or_path", "transformers_version", "architectures"}  # fields of a config
MAX_LOSS_CHANGE = 1e-3  # of the intermediate loss, by a teacher in bfloat16; measured: 3e-4


class TeacherLogits:
    """The teacher's answers to the rows of a data set, each computed when it is first met; for batches with `index`.

    path: a file that keeps them for later runs, under `key`: whatever decides them, such as digests of teacher and
    rows, order included. A file with another key is not used. As a part of a training state they survive a kill.
    """

    def __init__(self, teacher: PreTrainedModel, num_rows: int, path: Path | None = None, key: str = ""):
        self.teacher, self.path, self.key = teacher, path, key
        self.logits = torch.full((num_rows, teacher.config.num_labels or 2), torch.nan)
        self.known = torch.zeros(num_rows, dtype=torch.bool)
        found = self._read()
        if found is not None:
            self.logits, self.known = found

    def __call__(self, batch: Batch) -> Tensor:
        """The answers to a batch with `index`, (B,).  Returns (B, C) on the batch's device."""
        index = batch["index"].cpu()
        new = ~self.known[index]
        if new.any():
            rows = new.nonzero().squeeze(1).to(batch["input_ids"].device)
            self.teacher.eval()
            with torch.no_grad():
                answers = self.teacher(**{name: tensor[rows] for name, tensor in inputs(batch).items()}).logits
            self.logits[index[new]] = answers.float().cpu()
            self.known[index[new]] = True
        return self.logits[index].to(batch["input_ids"].device)

    def keep(self) -> None:
        """Write the file, where a path was given; of several processes the first one, with the rows it met."""
        if self.path is None or distributed.rank():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        try:
            save_file({"logits": self.logits, "known": self.known}, unfinished, metadata={"key": self.key})
            os.replace(unfinished, self.path)
        finally:
            unfinished.unlink(missing_ok=True)

    def state_dict(self) -> dict[str, Any]:
        """See `state.Stateful`."""
        return {"logits": self.logits, "known": self.known}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `state.Stateful`."""
        self.logits, self.known = state["logits"], state["known"]

    def _read(self) -> tuple[Tensor, Tensor] | None:
        if self.path is None or not self.path.is_file():
            return None
        with contextlib.suppress(SafetensorError), safe_open(self.path, "pt") as file:  # broken: computed anew
            logits, known = (file.get_tensor(name) for name in ("logits", "known"))
            fits = logits.shape == self.logits.shape and known.shape == self.known.shape
            return (logits, known) if fits and (file.metadata() or {}).get("key") == self.key else None
        return None


def model_digest(model: PreTrainedModel) -> str:
    """The first 16 hex digits of a SHA-256 over the config and names, shapes and values of all weights: everything that
    an answer depends on.
    """
    config = {name: value for name, value in model.config.to_dict().items() if name not in NOT_OF_THE_ANSWER}
    total = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        total.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return total.hexdigest()[:16]


def has_fast_bfloat16() -> bool:
    """Whether this machine multiplies bfloat16 faster than float32: a GPU, or a CPU with instructions for it."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def in_bfloat16(
    teacher: Model, student: PreTrainedModel, losses: Callable[[Model], Losses | Pieces], batches: Iterable[Batch]
) -> tuple[Model, float]:
    """A copy of the teacher in bfloat16, and how much it changes the student's loss on `batches`, relative.

    losses: what is minimised, of a teacher. The models' modes are left as found; the random state is not touched, for
    nothing drops out here.
    """
    half = copy.deepcopy(teacher).eval()
    nn.Module.to(half, torch.bfloat16)
    sample = list(batches)
    exact, rounded = (mean_losses(student, losses(model), sample)["loss"] for model in (teacher.eval(), half))
    return half, abs(rounded - exact) / max(exact, 1e-12)
