"""Documents to pre-training instances: [CLS] A [SEP] B [SEP], where B follows A or comes from another document.

TinyBERT's corpus step (Jiao et al. 2020, its code's version of BERT's create_pretraining_data): `document_instances` is
the rule, `write` an epoch of it on disk, `load` reads what was written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from compresskit.data.corpus import shards
from compresskit.data.corpus.documents import Articles, Documents

ROWS_AT_ONCE = 2_000  # instances turned to columns together


@dataclass(frozen=True)
class Recipe:
    """How instances are cut and masked; TinyBERT's defaults."""

    max_seq_len: int = 128  # tokens of an instance, special ones included
    short_seq_prob: float = 0.1  # a document gets a shorter target length, drawn from 2 to max_seq_len − 3
    one_seq: bool = False  # B always follows A
    masked_lm_prob: float = 0.0  # of the tokens of an instance
    max_predictions_per_seq: int = 20
    whole_word_mask: bool = False  # the pieces of a word are masked together
    faithful: bool = False  # as released: one token is masked even where masked_lm_prob is 0

    def __post_init__(self) -> None:
        if self.max_seq_len < 5:
            raise ValueError(f"max_seq_len {self.max_seq_len} leaves no room for two segments; give at least 5")

    @property
    def masks(self) -> bool:
        return self.masked_lm_prob > 0 or self.faithful


class Instance(NamedTuple):
    """One row; where it is masked, `input_ids` has the masks and `masked_lm_ids` what stood at these positions."""

    input_ids: list[int]
    token_type_ids: list[int]
    next_sentence_label: int  # 1: B comes from another document
    masked_lm_positions: list[int]
    masked_lm_ids: list[int]


@dataclass(frozen=True)
class Pieces:
    """What has to be known of a vocabulary: the ids that instances are built with."""

    cls: int
    sep: int
    mask: int
    full_stop: int  # stands for a segment without tokens
    vocab_size: int
    continues: np.ndarray  # (V,) bool: the piece goes on with the word before it

    @classmethod
    def of(cls, tokenizer: Any) -> Pieces:
        tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        return cls(
            tokenizer.cls_token_id,
            tokenizer.sep_token_id,
            tokenizer.mask_token_id,
            tokenizer.convert_tokens_to_ids("."),
            len(tokens),
            np.array([token.startswith("##") for token in tokens]),
        )


def document_instances(
    documents: Documents | Articles, number: int, rng: Random, recipe: Recipe, pieces: Pieces
) -> Iterator[Instance]:
    """The instances of one document; draws come from `rng` in the order of the original program.

    Sentences are gathered until the target length, then cut into A and the rest at a random place. With one chance in
    two (always when there is no rest) B is a run of sentences of another document, and the rest begins the next
    instance; otherwise B is the rest. Too long pairs lose tokens of the longer one, at its front or its back.
    """
    document = documents[number]
    room = recipe.max_seq_len - 3
    target = room
    if rng.random() < recipe.short_seq_prob:
        target = rng.randint(2, room)
    begin = end = length = 0  # sentences begin … end − 1 are gathered, `length` tokens
    while end < len(document):
        length += len(document[end])
        end += 1
        if end < len(document) and length < target:
            continue
        cut = begin + (rng.randrange(1, end - begin) if end - begin > 1 else 1)
        a = [piece for sentence in range(begin, cut) for piece in document[sentence]]
        random_next = not recipe.one_seq and (end - begin == 1 or rng.random() < 0.5)
        if random_next:
            b = _run(documents, number, rng, target - len(a))
            end = cut
        else:
            b = [piece for sentence in range(cut, end) for piece in document[sentence]]
        a, b = _truncated(a or [pieces.full_stop], b or [pieces.full_stop], room, rng)
        input_ids = [pieces.cls, *a, pieces.sep, *b, pieces.sep]
        positions, masked = mask(input_ids, rng, recipe, pieces) if recipe.masks else ([], [])
        yield Instance(input_ids, [0] * (len(a) + 2) + [1] * (len(b) + 1), int(random_next), positions, masked)
        begin, length = end, 0


def _run(documents: Documents | Articles, number: int, rng: Random, wanted: int) -> list[int]:
    """Consecutive sentences of another document, from a random one on, until there are `wanted` tokens."""
    other = documents.draw_other(number, rng)
    tokens: list[int] = []
    for sentence in range(rng.randrange(len(other)), len(other)):
        tokens += other[sentence]
        if len(tokens) >= wanted:
            break
    return tokens


def _truncated(a: list[int], b: list[int], room: int, rng: Random) -> tuple[list[int], list[int]]:
    """Both segments, `room` tokens together: one by one, the longer loses its first or its last, b if equal."""
    ends = {"a": [0, len(a)], "b": [0, len(b)]}
    for _ in range(len(a) + len(b) - room):
        longer = ends["a"] if ends["a"][1] - ends["a"][0] > ends["b"][1] - ends["b"][0] else ends["b"]
        if rng.random() < 0.5:
            longer[0] += 1
        else:
            longer[1] -= 1
    return a[slice(*ends["a"])], b[slice(*ends["b"])]


def mask(input_ids: list[int], rng: Random, recipe: Recipe, pieces: Pieces) -> tuple[list[int], list[int]]:
    """Mask `input_ids` in place; returns the positions, ascending, and the ids that stood there.

    round(length · masked_lm_prob) tokens, at least 1 and at most max_predictions_per_seq: 80 % become [MASK], 10 %
    stay, 10 % become any entry of the vocabulary. [CLS] and [SEP] are never chosen.
    """
    groups: list[list[int]] = []
    for position, piece in enumerate(input_ids):
        if piece in (pieces.cls, pieces.sep):
            continue
        if recipe.whole_word_mask and groups and pieces.continues[piece]:
            groups[-1].append(position)
        else:
            groups.append([position])
    number = min(recipe.max_predictions_per_seq, max(1, round(len(input_ids) * recipe.masked_lm_prob)))
    rng.shuffle(groups)
    chosen: dict[int, int] = {}
    for group in groups:
        if len(chosen) >= number:
            break
        if len(chosen) + len(group) > number:
            continue
        for position in group:
            chosen[position] = input_ids[position]
            if rng.random() < 0.8:
                input_ids[position] = pieces.mask
            elif rng.random() >= 0.5:
                input_ids[position] = rng.choice(range(pieces.vocab_size))
    positions = sorted(chosen)
    return positions, [chosen[position] for position in positions]


# --- an epoch on disk


@dataclass
class Counts:
    """What an epoch has of one source: the one that segment A comes from."""

    instances: int = 0
    tokens: int = 0
    random_next: int = 0


def write(
    folder: Path,
    documents: Documents | Articles,
    sources: dict[str, int],
    rng: Random,
    recipe: Recipe,
    pieces: Pieces,
    advance: Callable[[int], None] = lambda done: None,
) -> dict[str, Counts]:
    """Write the instances of all documents, in their order, going on where an earlier call was stopped.

    sources: the number of documents of each source, in the order in which they stand in `documents`. advance gets the
    number of documents done. Takes the memory of a few thousand instances. Raises ValueError for fewer than two
    documents.
    """
    if len(documents) < 2:
        raise ValueError(
            f"{len(documents)} document in all, at least 2 are needed: a random next sentence comes from another one; "
            "a blank line, an article or a book ends a document"
        )
    done, counts = 0, {name: Counts() for name in sources}
    if notes := shards.notes(folder):
        done, counts = notes[-1]["done"], {name: Counts(**count) for name, count in notes[-1]["counts"].items()}
        version, state, gauss = notes[-1]["rng"]
        rng.setstate((version, tuple(state), gauss))
    if done == len(documents):
        return counts

    def note() -> dict[str, Any]:
        return {"done": done, "counts": {n: asdict(count) for n, count in counts.items()}, "rng": rng.getstate()}

    rows: list[Instance] = []
    first = 0  # document of the source
    with shards.Writer(folder, schema(recipe)) as writer:
        for name, size in sources.items():
            for number in range(max(first, done), first + size):
                for instance in document_instances(documents, number, rng, recipe, pieces):
                    rows.append(instance)
                    if len(rows) == ROWS_AT_ONCE:
                        _add(writer, rows, counts[name])
                done = number + 1
                if writer.due:
                    _add(writer, rows, counts[name])
                    writer.commit(note())
                advance(done)
            _add(writer, rows, counts[name])
            first += size
        writer.commit(note())
    return counts


def schema(recipe: Recipe) -> pa.Schema:
    """The columns of an epoch; what was masked only where something is."""
    ids, positions = pa.list_(pa.int32()), pa.list_(pa.int16())
    fields = [("input_ids", ids), ("token_type_ids", pa.list_(pa.int8())), ("next_sentence_label", pa.int8())]
    masked = [("masked_lm_positions", positions), ("masked_lm_ids", ids)] if recipe.masks else []
    return pa.schema(fields + masked)


def _add(writer: shards.Writer, rows: list[Instance], count: Counts) -> None:
    """Append the rows to the file, count and forget them."""
    columns = [pa.array([getattr(row, field.name) for row in rows], field.type) for field in writer.schema]
    writer.add(columns)
    count.instances += len(rows)
    count.tokens += len(columns[0].values)
    count.random_next += sum(row.next_sentence_label for row in rows)
    rows.clear()
