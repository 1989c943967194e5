"""A finished corpus folder: its vocabulary and, for each epoch, its instances, memory-mapped.

    corpus.json      what it was made of and how, with counts; written last
    tokenizer/       the vocabulary
    documents/NAME/  the tokenised documents of each source
    epoch_E/         instances: columns input_ids, token_type_ids, next_sentence_label, what was masked if anything was

Where sources were kept apart, each has a folder NAME/ of this form, and corpus.json names them as `parts`.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset

from compresskit.data import shards, vocabulary

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
        return self.manifest["settings"]["max_seq_len"]

    @cached_property
    def tokenizer(self) -> Any:
        """The vocabulary its ids belong to."""
        return vocabulary.load_tokenizer(self.folder / "tokenizer")

    @cached_property
    def epochs(self) -> list[Dataset]:
        """The instances of each epoch."""
        return [shards.dataset(self.folder / f"epoch_{epoch}") for epoch in range(self.manifest["settings"]["epochs"])]

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
