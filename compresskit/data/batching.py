"""Batches of similar length from rows of token ids, in an order that depends only on seed and epoch.

Letters: B rows of a batch, S length of its longest row.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import Tensor

TARGETS = ("labels", "start_positions", "end_positions", "next_sentence_label")
POOL_BATCHES = 50  # rows are sorted by length inside pools of this many batches: little padding, still random


class Batches:
    """Cuts `dataset` (columns `input_ids`, optionally `token_type_ids` and targets; other columns are ignored).

    A batch is a dict of tensors: `input_ids`, `token_type_ids`, `attention_mask` (B, S) int64 with 1 on real tokens,
    and each target the data set has, (B,) int64 or float32. With `with_index` it also has `index`, (B,) int64:
    positions of the rows in `dataset`. S is the longest row of the batch, or `pad_to` where given.

    With `shuffle`, an epoch's order depends only on (seed, epoch); `length_buckets` sorts by length inside pools of 50
    batches and shuffles the batches. Without `shuffle` rows come sorted by length, or in the order of `dataset` when
    `length_buckets` is off.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        pad_token_id: int,
        shuffle: bool = True,
        length_buckets: bool = True,
        drop_last: bool = False,
        pad_to: int | None = None,
        with_index: bool = False,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size} is not positive")
        if len(dataset) < (batch_size if drop_last else 1):
            raise ValueError(f"{len(dataset)} rows do not fill one batch of {batch_size}; lower batch_size")
        present = [name for name in ("input_ids", "token_type_ids", *TARGETS) if name in dataset.column_names]
        self.rows = dataset.select_columns(present).with_format("arrow")
        self.lengths = np.concatenate(  # by parts: a memory-mapped corpus stays on the disk
            [pc.list_value_length(part["input_ids"]).to_numpy() for part in self.rows.iter(batch_size=10_000)]
        )
        if pad_to is not None and self.lengths.max() > pad_to:
            raise ValueError(f"a row of {self.lengths.max()} tokens does not fit pad_to {pad_to}")
        self.batch_size, self.seed, self.pad_token_id, self.pad_to = batch_size, seed, pad_token_id, pad_to
        self.shuffle, self.length_buckets, self.with_index = shuffle, length_buckets, with_index
        self.num_batches = len(dataset) // batch_size if drop_last else -(-len(dataset) // batch_size)

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self.from_step(0, len(self))

    def from_step(self, step: int, num_steps: int) -> Iterator[dict[str, Tensor]]:
        """The batches of the optimizer steps `step` to `num_steps` − 1, counted from 0 over all epochs."""
        while step < num_steps:
            epoch, first = divmod(step, len(self))
            for index in self._epoch(epoch)[first : first + num_steps - step]:
                yield self._batch(index)
                step += 1

    def _epoch(self, epoch: int) -> list[np.ndarray]:
        """Row positions of each batch of an epoch."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.lengths)) if self.shuffle else np.arange(len(self.lengths))
        if self.length_buckets:
            pool = POOL_BATCHES * self.batch_size if self.shuffle else len(order)
            order = order[: len(self) * self.batch_size]  # what drop_last drops is drawn before sorting
            cuts = range(0, len(order), pool)
            order = np.concatenate(
                [p[np.argsort(self.lengths[p], kind="stable")] for p in (order[c : c + pool] for c in cuts)]
            )
        batches = [order[b * self.batch_size : (b + 1) * self.batch_size] for b in range(len(self))]
        if self.shuffle and self.length_buckets:
            batches = [batches[b] for b in rng.permutation(len(batches))]
        return batches

    def _batch(self, index: np.ndarray) -> dict[str, Tensor]:
        table: pa.Table = self.rows[index]
        lengths = self.lengths[index]
        mask = np.arange(self.pad_to or max(lengths.max(), 1)) < lengths[:, None]  # (B, S)
        batch = {"input_ids": _padded(table["input_ids"], mask, self.pad_token_id)}
        if "token_type_ids" in table.column_names:
            batch["token_type_ids"] = _padded(table["token_type_ids"], mask, 0)
        else:
            batch["token_type_ids"] = np.zeros(mask.shape, dtype=np.int64)
        batch["attention_mask"] = mask.astype(np.int64)
        for name in TARGETS:
            if name in table.column_names:
                values = table[name].to_numpy()
                batch[name] = values.astype(np.float32 if values.dtype.kind == "f" else np.int64)
        if self.with_index:
            batch["index"] = index.astype(np.int64)
        return {name: torch.from_numpy(array) for name, array in batch.items()}


class Epochs:
    """Batches of rows that are made anew for every epoch: `epochs[e % len(epochs)]` serves epoch e."""

    def __init__(self, epochs: Sequence[Batches]):
        self.epochs = epochs

    def num_steps(self, num_train_epochs: float) -> int:
        """Batches in so many epochs, the last of which may be a fraction; at least 1."""
        whole = int(num_train_epochs)
        part = math.ceil((num_train_epochs - whole) * len(self._of(whole)))
        return max(1, sum(len(self._of(epoch)) for epoch in range(whole)) + part)

    def from_step(self, step: int, num_steps: int) -> Iterator[dict[str, Tensor]]:
        """The batches of the optimizer steps `step` to `num_steps` − 1, counted from 0 over all epochs."""
        begin = 0  # of the epoch
        for epoch in count():
            if begin >= num_steps:
                return
            batches = self._of(epoch)
            end = begin + len(batches)
            if step < end:
                own = epoch * len(batches) - begin  # what its own count of steps is ahead
                yield from batches.from_step(own + max(step, begin), own + min(end, num_steps))
            begin = end

    def _of(self, epoch: int) -> Batches:
        return self.epochs[epoch % len(self.epochs)]


class Mixed:
    """Batches of several data sets, none mixing them; an epoch has all of all, in an order drawn by (seed, epoch).

    Each batch also has `task`, (B,) int64: the position of its data set in `parts`. Of each part the batches come in
    its own order (EfficientBERT's multi-task sampler).
    """

    def __init__(self, parts: Sequence[Batches], seed: int):
        self.parts, self.seed = parts, seed
        self.tasks = np.repeat(np.arange(len(parts)), [len(part) for part in parts])  # of the batches of an epoch

    def __len__(self) -> int:
        return len(self.tasks)

    def from_step(self, step: int, num_steps: int) -> Iterator[dict[str, Tensor]]:
        """The batches of the optimizer steps `step` to `num_steps` − 1, counted from 0 over all epochs."""
        while step < num_steps:
            epoch, first = divmod(step, len(self))
            order = np.random.default_rng([self.seed, epoch]).permutation(self.tasks)
            before = np.bincount(order[:first], minlength=len(self.parts))
            own = [
                part.from_step(epoch * len(part) + int(done), (epoch + 1) * len(part))
                for part, done in zip(self.parts, before, strict=True)
            ]
            for task in order[first : first + num_steps - step].tolist():
                batch = next(own[task])
                yield {**batch, "task": torch.full((len(batch["input_ids"]),), task)}
                step += 1


def _padded(column: pa.ChunkedArray, mask: np.ndarray, value: int) -> np.ndarray:
    padded = np.full(mask.shape, value, dtype=np.int64)
    padded[mask] = column.combine_chunks().flatten().to_numpy()
    return padded
