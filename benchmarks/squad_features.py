"""Featurising SQuAD 1.1 dev, against the official way, question by question and character by character:

    COMPRESSKIT_DATA=FOLDER python -m benchmarks.squad_features

FOLDER holds squad/dev-v1.1.json and vocab/vocab.txt. One thread against one, both up to the windows' tokens and maps,
without targets, as dev rows have none; padding is left out on both sides. The peer (squad_original.py) is timed on
every eighth article, the ratio is per question. Before, the windows of all articles are compared with the peer's:
tokens, words, contexts, targets as in training, padded arrays, masks.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import squad_original
from benchmarks.harness import MIN_ROUNDS, Goal, Timing, measure, publish
from compresskit.data import squad, squad_features, vocabulary

MAX_SEQ_LEN = 384
EVERY = 8  # of the articles: the peer needs most of a minute for all
PEER, OURS = "character by character", "offsets"
GOALS = {"squad features": Goal(floor=10.0, aim=30.0)}


def ours(examples: Sequence[squad.SquadExample], tokenizer: Any) -> int:
    """The number of windows, made by our way."""
    return len(squad_features.encode(examples, tokenizer, MAX_SEQ_LEN, training=False))


def peers(examples: Sequence[squad.SquadExample], tokenizer: squad_original.WordPiece) -> int:
    """The same by the official one."""
    return len(squad_original.features(examples, tokenizer, MAX_SEQ_LEN, training=False))


def require_equal(
    examples: Sequence[squad.SquadExample], tokenizer: Any, peer: squad_original.WordPiece, **sizes: int
) -> int:
    """How many windows there are, or a ValueError that names the first one that differs."""
    features = squad_features.encode(examples, tokenizer, **sizes)
    records = squad_features.official_records(features, examples, tokenizer)
    arrays = squad_features.padded_arrays(features, tokenizer, sizes["max_seq_len"])
    windows = squad_original.features(examples, peer, **sizes)
    if len(records) != len(windows):
        raise ValueError(f"{len(records)} windows, the official featuriser has {len(windows)}")
    for number, (record, window) in enumerate(zip(records, windows, strict=True)):
        record |= {name: array[number].tolist() for name, array in arrays.items()}
        window |= squad_original.padded(window, peer, sizes["max_seq_len"])
        if wrong := [name for name in window if window[name] != record[name]]:
            raise ValueError(f"question {record['qas_id']}: {wrong[0]} differs from the official featuriser's")
    return len(windows)


def race(folder: Path, rounds: int = MIN_ROUNDS) -> tuple[list[Timing], dict[str, float], dict[str, Any]]:
    """Timings, the ratio per question, and what was read."""
    examples = squad.read(folder / "squad" / "dev-v1.1.json")
    tokenizer = vocabulary.load_tokenizer(folder / "vocab" / "vocab.txt")
    peer = squad_original.WordPiece(tokenizer.get_vocab())
    titles = list(dict.fromkeys(example.title for example in examples))[::EVERY]
    part = [example for example in examples if example.title in titles]
    windows = require_equal(examples, tokenizer, peer, max_seq_len=MAX_SEQ_LEN)
    found = measure({PEER: peers}, {"dev, every eighth article": [part, peer]}, baseline=PEER, rounds=rounds)
    found += measure({OURS: ours}, {"dev": [examples, tokenizer]}, baseline=OURS, rounds=rounds)
    per_question = {PEER: found[0].median_ms / len(part), OURS: found[1].median_ms / len(examples)}
    notes = {"questions": len(examples), "questions of the peer": len(part), "windows compared": windows}
    return found, {"squad features": per_question[PEER] / per_question[OURS]}, notes


if __name__ == "__main__":
    if "COMPRESSKIT_DATA" not in os.environ:
        raise SystemExit("export COMPRESSKIT_DATA=FOLDER with squad/dev-v1.1.json and vocab/vocab.txt in it")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    timings, measures, notes = race(Path(os.environ["COMPRESSKIT_DATA"]))
    publish("squad_features", timings, measures, GOALS, notes=notes)
