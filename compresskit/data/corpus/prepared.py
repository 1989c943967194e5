"""A finished corpus folder: its vocabulary and, for each epoch, its instances, memory-mapped.

    corpus.json      what it was made of and how, with counts; written last
    tokenizer/       the vocabulary
    documents/NAME/  the tokenised documents of each source
    epoch_E/         instances: columns input_ids, token_type_ids, next_sentence_label, what was masked if anything was;
                     or chunks: input_ids alone, without special tokens

Where sources were kept apart, each has a folder NAME/ of this form, and corpus.json names them as `parts`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets

from compresskit.data import vocabulary
from compresskit.data.corpus import shards

MANIFEST = "corpus.json"
FORMAT = 1


@dataclass(frozen=True)
class PreparedCorpus:
    """An opened corpus folder. `epochs[e % len(epochs)]` serves epoch e; batching.Batches takes it as it is."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def max_seq_len(self) -> int:
        """Tokens of the longest instance there can be."""
        longest = [count.get("longest", 0) for count in self.manifest["instances"]]  # of chunks as released
        return max(self.manifest["settings"]["max_seq_len"], *longest)

    @cached_property
    def tokenizer(self) -> Any:
        """The vocabulary its ids belong to."""
        return vocabulary.load_tokenizer(self.folder / "tokenizer")

    @cached_property
    def epochs(self) -> list[Dataset]:
        """The instances of each epoch."""
        return [shards.dataset(self.folder / f"epoch_{epoch}") for epoch in range(self.manifest["settings"]["epochs"])]

    def source_sizes(self, epoch: int) -> list[int]:
        """How many instances of an epoch come from each source, in the order in which they stand in it."""
        return [count["instances"] for count in self.manifest["instances"] if count["epoch"] == epoch]

    def check_fits(self, tokenizer: Any, max_seq_len: int) -> None:
        """Raise ValueError unless its ids belong to this tokenizer's vocabulary and no row can be longer."""
        if tokenizer.get_vocab() != self.tokenizer.get_vocab():
            raise ValueError(
                f"{self.folder} was made with another vocabulary; make the corpus with `vocabulary` naming that of the "
                "model, or give neither vocabulary nor model here"
            )
        if self.max_seq_len > max_seq_len:
            raise ValueError(
                f"{self.folder} has rows of up to {self.max_seq_len} tokens, max_seq_len is {max_seq_len}; raise it, "
                "or make the corpus with fewer"
            )


def is_prepared(folder: Path) -> bool:
    """Whether a folder is a finished corpus."""
    return (folder / MANIFEST).is_file()


def load(folder: str | Path) -> PreparedCorpus:
    """Open a corpus folder. Raises FileNotFoundError where there is none; ValueError where it holds several apart."""
    folder = Path(folder)
    if not is_prepared(folder):
        raise FileNotFoundError(f"{folder} is no finished corpus, it has no {MANIFEST}; make one with the stage corpus")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        found = (manifest["format"], manifest["parts"], manifest["settings"]["max_seq_len"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / MANIFEST}: not written by the stage corpus ({error}); make the corpus again"
        ) from None
    if found[0] != FORMAT:
        raise ValueError(f"{folder / MANIFEST}: format {found[0]}, this version reads {FORMAT}; make the corpus again")
    if found[1]:
        parts = ", ".join(str(folder / name) for name in found[1])
        raise ValueError(f"{folder} holds several corpora apart; name one of {parts}")
    return PreparedCorpus(folder, manifest)


def hold_out(rows: Dataset, sizes: Sequence[int], share: float, most: int) -> tuple[Dataset, Dataset]:
    """Rows to train on, and the last `share` of each source, at most `most` rows together, to judge by.

    sizes: rows of each source, one after the other in `rows`. Instances stand in the order of the documents they were
    made from, so what is held out of every epoch of a corpus is text that, but for a few sentences, none trains on.
    Raises ValueError where no row can be spared.
    """
    spared = [max(0, min(max(1, round(share * size)), most // len(sizes), size - 1)) for size in sizes]
    if not any(spared):
        raise ValueError(f"the corpus has too few rows ({len(rows)}) to spare one to judge by; give it more text")
    train, held_out, begin = [], [], 0
    for size, last in zip(sizes, spared, strict=True):
        train.append(rows.select(range(begin, begin + size - last)))
        if last:
            held_out.append(rows.select(range(begin + size - last, begin + size)))
        begin += size
    return concatenate_datasets(train), concatenate_datasets(held_out)
