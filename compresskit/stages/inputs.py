"""What stages take in, by name: data folders, corpora, tokenizers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from compresskit import tracking
from compresskit.data import bundled, vocabulary
from compresskit.data.corpus import prepared

BUNDLED = "bundled"
DATA = "COMPRESSKIT_DATA"


def data_folder(data_dir: str) -> Path | str:
    """The folder or hub id that `data_dir` names; "bundled" is the data set the package makes, "" is $COMPRESSKIT_DATA.

    Raises ValueError where nothing is named.
    """
    source = data_dir or os.environ.get(DATA, "")
    if not source:
        raise ValueError(f"no data named; --set data_dir=FOLDER, export {DATA}=FOLDER, or use data_dir: bundled")
    if source == BUNDLED:
        return bundled.write(tracking.project_root() / ".cache" / "bundled")
    folder = Path(source).expanduser()
    return folder if folder.exists() else source


def glue_source(data_dir: str) -> Path | str:
    """Where the GLUE task folders are: in `data_dir` itself or in its `glue` folder."""
    source = data_folder(data_dir)
    return source / "glue" if isinstance(source, Path) and (source / "glue").is_dir() else source


def board(task: str, data_dir: str) -> str:
    """The leaderboard and experiment of a task: results on made sentences never stand beside results on real ones."""
    return f"{task}-{BUNDLED}" if data_dir == BUNDLED else task


def corpus_file(corpus: str) -> Path:
    """A text file of one sentence per line, or a folder made by the stage corpus; "bundled" and "" as in `data_folder`,
    in which it is corpus.txt.

    Raises FileNotFoundError where there is neither.
    """
    path = Path(corpus).expanduser() if corpus not in ("", BUNDLED) else Path(data_folder(corpus)) / "corpus.txt"
    if not path.is_file() and not prepared.is_prepared(path):
        raise FileNotFoundError(
            f"{path}: corpus names a text file with one sentence per line or a folder made by the stage corpus, and "
            "there is neither"
        )
    return path


def tokenizer_for(source: str | Path, vocab_size: int) -> Any:
    """The tokenizer beside a model, checked against the size of its embedding."""
    tokenizer = vocabulary.load_tokenizer(source)
    vocabulary.check_vocabulary(tokenizer, vocab_size, source)
    return tokenizer
