"""Documents to chunks of at most max_seq_len tokens: consecutive sentences, no special tokens, no segments.

AutoTinyBERT's corpus step (Yin et al. 2021, generate_data of its code).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from compresskit.data import corpora
from compresskit.data.corpus import shards
from compresskit.data.corpus.documents import Documents

MIN_TOKENS = 3  # of a chunk: masking leaves out the first and the last
ROWS_AT_ONCE = 2_000  # chunks turned to a column together
SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32()))])


@dataclass
class Counts:
    """What an epoch has of one source; dropped: tokens of chunks that were too short; longest: tokens of a chunk."""

    instances: int = 0
    tokens: int = 0
    dropped: int = 0
    longest: int = 0


def document_chunks(document: Iterable[list[int]], max_seq_len: int, faithful: bool = False) -> Iterator[list[int]]:
    """The chunks of a document, each as many whole sentences as fit; what is left at its end is a chunk too.

    A sentence longer than a chunk is continued in the next one; chunks of fewer than 3 tokens are left out. faithful:
    such a sentence is one over-long chunk, with an empty one before it where it begins a document, as released.
    """
    if not faithful:
        yield from (chunk for chunk in corpora.pack(document, max_seq_len) if len(chunk) >= MIN_TOKENS)
        return
    chunk: list[int] = []
    for sentence in document:
        if len(chunk) + len(sentence) > max_seq_len:
            yield chunk
            chunk = []
        chunk = chunk + sentence
    if chunk:
        yield chunk


def write(
    folder: Path,
    documents: Documents,
    sources: dict[str, int],
    max_seq_len: int,
    faithful: bool = False,
    advance: Callable[[int], None] = lambda done: None,
) -> dict[str, Counts]:
    """Write the chunks of all documents, in their order, going on where an earlier call was stopped.

    sources: the number of documents of each source, in the order in which they stand in `documents`. advance gets the
    number of documents done. Takes the memory of a few thousand chunks. Raises ValueError where no chunk is left.
    """
    done, counts = 0, {name: Counts() for name in sources}
    if notes := shards.notes(folder):
        done, counts = notes[-1]["done"], {name: Counts(**count) for name, count in notes[-1]["counts"].items()}
    if done == len(documents):
        return counts

    rows: list[list[int]] = []
    first = 0  # document of the source
    with shards.Writer(folder, SCHEMA) as writer:
        for name, size in sources.items():
            count = counts[name]
            for number in range(max(first, done), first + size):
                document = documents[number]
                kept = 0
                for chunk in document_chunks(document, max_seq_len, faithful):
                    rows.append(chunk)
                    kept += len(chunk)
                    if len(rows) == ROWS_AT_ONCE:
                        _add(writer, rows, count)
                count.dropped += document.num_tokens - kept
                done = number + 1
                if writer.due:
                    _add(writer, rows, count)
                    writer.commit({"done": done, "counts": {n: asdict(c) for n, c in counts.items()}})
                advance(done)
            _add(writer, rows, count)
            first += size
        if not any(count.instances for count in counts.values()):
            raise ValueError(
                f"{len(documents)} documents have no chunk of at least {MIN_TOKENS} tokens; give more text"
            )
        writer.commit({"done": done, "counts": {n: asdict(c) for n, c in counts.items()}})
    return counts


def _add(writer: shards.Writer, rows: list[list[int]], count: Counts) -> None:
    """Append the rows to the file, count and forget them."""
    if rows:
        writer.add([pa.array(rows, SCHEMA.field(0).type)])
        count.instances += len(rows)
        count.tokens += sum(map(len, rows))
        count.longest = max(count.longest, *map(len, rows))
        rows.clear()
