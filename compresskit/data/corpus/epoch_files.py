"""TinyBERT's own files of pre-training instances: epoch_<e>.json, one JSON object per line, and metrics beside it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset

from compresskit.data.corpus.instances import Instance
from compresskit.data.corpus.shards import write_json

FIELDS = ("tokens", "segment_ids", "is_random_next", "masked_lm_positions", "masked_lm_labels")


def write_epoch(folder: Path, epoch: int, rows: Dataset, tokenizer: Any, max_seq_len: int) -> None:
    """Write epoch_<e>.json and epoch_<e>_metrics.json, byte for byte as the original program does."""
    path = folder / f"epoch_{epoch}.json"
    unfinished = path.with_name(path.name + ".part")
    with unfinished.open("w", encoding="ascii", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(_object(row, tokenizer)) + "\n")
    os.replace(unfinished, path)
    write_json(folder / f"epoch_{epoch}_metrics.json", {"num_training_examples": len(rows), "max_seq_len": max_seq_len})


def is_written(folder: Path, epoch: int) -> bool:
    """Whether both files of an epoch are there; the metrics come last."""
    return (folder / f"epoch_{epoch}_metrics.json").is_file()


def _object(row: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    return {
        "tokens": tokenizer.convert_ids_to_tokens(row["input_ids"]),
        "segment_ids": row["token_type_ids"],
        "is_random_next": bool(row["next_sentence_label"]),
        "masked_lm_positions": row.get("masked_lm_positions", []),
        "masked_lm_labels": tokenizer.convert_ids_to_tokens(row.get("masked_lm_ids", [])),
    }


def read_epoch(folder: Path, epoch: int, tokenizer: Any) -> Iterator[Instance]:
    """The instances of epoch_<e>.json, in order.

    Raises FileNotFoundError; ValueError with the line of what is no instance, for a token that the vocabulary does not
    have, and where the metrics count other lines than there are.
    """
    path, metrics_path = folder / f"epoch_{epoch}.json", folder / f"epoch_{epoch}_metrics.json"
    for needed in (path, metrics_path):
        if not needed.is_file():
            raise FileNotFoundError(f"{needed}: no such file; expected epoch_<e>.json and epoch_<e>_metrics.json")
    vocab = tokenizer.get_vocab()
    number = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            yield _instance(line, vocab, f"{path} line {number}")
    expected = json.loads(metrics_path.read_text(encoding="utf-8")).get("num_training_examples")
    if number != expected:
        raise ValueError(f"{path} has {number} lines, {metrics_path.name} says {expected}; the file was cut short")


def _instance(line: bytes, vocab: dict[str, int], place: str) -> Instance:
    try:
        row = json.loads(line)
        tokens, segments, random_next, positions, labels = (row[name] for name in FIELDS)
        ids, masked = [vocab[token] for token in tokens], [vocab[token] for token in labels]
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{place}: not an instance ({error}); expected a JSON object with {', '.join(FIELDS)}"
        ) from None
    except KeyError as error:
        what = "field" if error.args[0] in FIELDS else "entry of the vocabulary"
        raise ValueError(
            f"{place}: no {what} {error.args[0]!r}; the vocabulary must be the one the file was made with"
        ) from None
    if len(segments) != len(ids) or len(positions) != len(masked) or any(not 0 <= p < len(ids) for p in positions):
        raise ValueError(
            f"{place}: segment_ids and tokens, or masked_lm_positions and masked_lm_labels, do not fit together"
        )
    return Instance(ids, segments, int(random_next), positions, masked)
