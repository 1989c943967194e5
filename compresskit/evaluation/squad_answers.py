"""From logits to answer texts and the official files: n-best lists over all windows of a question.

Shapes: N windows, S positions of the longest one.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import ArrayLike, NDArray

from compresskit.data.glue_submission import write_whole
from compresskit.data.squad import SquadExample
from compresskit.data.squad_features import flat_lists, words

BLOCK = 1000  # windows at a time: n_best_size² candidates each
NO_NULL = 1_000_000.0  # the null score of a question without windows


@dataclass(frozen=True)
class Answers:
    """Candidates by question id, best first, and for 2.0 how far the null score lies above the best text.

    A candidate is what nbest_predictions.json says of it: text, probability (among those of its question, by the sum of
    the logits), start_logit, end_logit.
    """

    n_best: dict[str, list[dict[str, Any]]]
    null_odds: dict[str, float] | None

    def best_texts(self) -> dict[str, str]:
        """The best candidate of each question that is no empty text."""
        return {name: next(c["text"] for c in candidates if c["text"]) for name, candidates in self.n_best.items()}

    def predictions(self, null_threshold: float = 0.0) -> dict[str, str]:
        """The answer to each question; in 2.0 the empty text where the null odds exceed the threshold."""
        odds = self.null_odds or {}
        return {
            name: "" if odds.get(name, -np.inf) > null_threshold else text for name, text in self.best_texts().items()
        }


def write_files(folder: Path, files: Mapping[str, Any]) -> None:
    """Write the official files into `folder`, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_whole(folder / name, (json.dumps(content, indent=4) + "\n").encode())


def answers(
    examples: Sequence[SquadExample],
    features: Dataset,
    start_logits: ArrayLike,
    end_logits: ArrayLike,
    tokenizer: Any,
    *,
    null: bool,
    n_best_size: int = 20,
    max_answer_length: int = 30,
) -> Answers:
    """The n-best answers from the logits of the windows, (N, S) each, as the official post-processing finds them.

    A candidate begins and ends at one of the `n_best_size` highest positions of a window, inside its context, is at
    most `max_answer_length` pieces long and begins where the window has the most context. null: SQuAD 2.0; the lowest
    score of [CLS] over the windows competes as the empty text. A question without any candidate is answered "empty".
    """
    start, end = (np.asarray(logits, dtype=np.float32) for logits in (start_logits, end_logits))
    if not len(features) == len(start) == len(end):
        raise ValueError(f"{len(features)} windows, but {len(start)} start and {len(end)} end logits")
    spans = _Spans.found(features, start, end, n_best_size, max_answer_length)
    null_rows = _lowest(features["example"], start[:, 0].astype(float) + end[:, 0]) if null else {}
    text_of = _Texts(features, tokenizer)
    n_best, odds = {}, {}
    for e, example in enumerate(examples):
        row = null_rows.get(e)
        empty = (float(start[row, 0]), float(end[row, 0])) if row is not None else (0.0, 0.0)
        candidates = text_of.candidates(example.context, spans.of(e), empty if null else None, n_best_size)
        n_best[example.id] = _with_probabilities(candidates)
        if null:
            best = next(c for c in candidates if c[0])
            odds[example.id] = (sum(empty) if row is not None else NO_NULL) - best[1] - best[2]
    return Answers(n_best, odds if null else None)


def _lowest(example: Sequence[int], scores: NDArray) -> dict[int, int]:
    """For each example the first of its windows with the lowest score."""
    found: dict[int, int] = {}
    for row, e in enumerate(example):
        if e not in found or scores[row] < scores[found[e]]:
            found[e] = row
    return found


@dataclass(frozen=True)
class _Spans:
    """Allowed spans, those of one example together, highest start + end first, equal ones in the official order."""

    row: NDArray
    first: NDArray  # position in the window
    last: NDArray
    start: NDArray  # logits
    end: NDArray
    bounds: NDArray  # of each example

    def of(self, e: int) -> Iterator[tuple[int, int, int, float, float]]:
        """Window, first and last position, start and end logit."""
        if e + 1 >= len(self.bounds):
            return iter(())
        part = slice(self.bounds[e], self.bounds[e + 1])
        columns = (self.row, self.first, self.last, self.start, self.end)
        return zip(*(column[part].tolist() for column in columns), strict=True)

    @classmethod
    def found(cls, features: Dataset, start: NDArray, end: NDArray, n_best_size: int, max_length: int) -> "_Spans":
        shift = np.array(features["context_start"], dtype=np.int64)
        example = np.array(features["example"], dtype=np.int64)
        begins, best_here = flat_lists(features, "max_context")
        sizes = np.diff(begins)
        blocks = []
        for low in range(0, len(start), BLOCK):
            rows = slice(low, low + BLOCK)
            first, last = (  # (b, n) context pieces
                np.argsort(-logits[rows], axis=1, kind="stable")[:, :n_best_size] - shift[rows, None]
                for logits in (start, end)
            )
            inside_first, inside_last = ((p >= 0) & (p < sizes[rows, None]) for p in (first, last))
            at = np.clip(begins[:-1][rows, None] + first, 0, max(len(best_here) - 1, 0))
            inside_first &= best_here[at] if len(best_here) else False
            length = last[:, None, :] - first[:, :, None] + 1
            allowed = inside_first[:, :, None] & inside_last[:, None, :] & (length >= 1) & (length <= max_length)
            row, i, j = np.nonzero(allowed)
            blocks.append((row + low, first[row, i], last[row, j]))
        row, first, last = (
            (np.concatenate(parts) for parts in zip(*blocks, strict=True)) if blocks else (np.empty(0, int),) * 3
        )
        first, last = first + shift[row], last + shift[row]
        starts, ends = start[row, first].astype(float), end[row, last].astype(float)
        order = np.lexsort((-(starts + ends), example[row]))
        bounds = np.searchsorted(example[row][order], np.arange(example.max(initial=-1) + 2))
        return cls(row[order], first[order], last[order], starts[order], ends[order], bounds)


class _Texts:
    """Texts of spans, and what a question's candidates come to."""

    def __init__(self, features: Dataset, tokenizer: Any):
        self.pieces = np.array(tokenizer.convert_ids_to_tokens(range(len(tokenizer))), dtype=object)
        self.id_begins, self.ids = flat_lists(features, "input_ids")
        self.word_begins, self.words = flat_lists(features, "words")
        self.shift = np.array(features["context_start"], dtype=np.int64)
        self.basic = basic_tokens(tokenizer)
        self.known: dict[str, str] = {}  # basic tokens of a word
        self.context, self.context_words = "", [""]

    def candidates(
        self,
        context: str,
        spans: Iterator[tuple[int, int, int, float, float]],
        null: tuple[float, float] | None,
        n_best_size: int,
    ) -> list[tuple[str, float, float]]:
        """Text, start and end logit of the first `n_best_size` different texts; null: the logits of the empty one."""
        if context != self.context:
            self.context, self.context_words = context, words(context)
        found: dict[str, tuple[str, float, float]] = {}
        waiting = null is not None
        for row, first, last, start, end in spans:
            if len(found) >= n_best_size:
                break
            if null is not None and waiting and sum(null) > start + end:
                found[""], waiting = ("", *null), False
                if len(found) >= n_best_size:
                    break
            text = self.text(row, first, last)
            if text not in found:
                found[text] = (text, start, end)
        kept = list(found.values())
        if null is not None and "" not in found:  # also where n_best_size left no room for it
            kept.append(("", *null))
        if not any(text for text, _, _ in kept):
            kept.insert(0, ("empty", 0.0, 0.0))
        return kept

    def text(self, row: int, first: int, last: int) -> str:
        """The part of the context that a window's span stands for."""
        begin = self.word_begins[row] - self.shift[row]
        shown = self.context_words[self.words[begin + first] : self.words[begin + last] + 1]
        for word in shown:
            if word not in self.known:
                self.known[word] = self.basic(word)
        tokenised = " ".join(filter(None, (self.known[word] for word in shown)))
        ids = self.ids[self.id_begins[row] + first : self.id_begins[row] + last + 1]
        said = " ".join(self.pieces[ids]).replace(" ##", "")
        return align(" ".join(said.split()), " ".join(shown), tokenised)


def basic_tokens(tokenizer: Any) -> Callable[[str], str]:
    """What the tokenizer does before it looks for pieces: a text's normalised words, joined by spaces."""
    backend = tokenizer.backend_tokenizer
    normalise, split = backend.normalizer.normalize_str, backend.pre_tokenizer.pre_tokenize_str
    return lambda text: " ".join(word for word, _ in split(normalise(text)))


def align(said: str, original: str, tokenised: str) -> str:
    """The part of `original` that reads `said` after basic tokenisation; `tokenised`: all of `original` after it.

    All of `original` where `said` is not in `tokenised`, or the two differ in more than case, accents and spaces.
    """
    begin = tokenised.find(said) if said else -1
    if begin < 0 or len(original) - original.count(" ") != len(tokenised) - tokenised.count(" "):
        return original
    first = begin - tokenised.count(" ", 0, begin)  # counted without spaces
    last = first + len(said) - said.count(" ") - 1
    places = [place for place, character in enumerate(original) if character != " "]
    return original[places[first] : places[last] + 1]


def _with_probabilities(candidates: list[tuple[str, float, float]]) -> list[dict[str, Any]]:
    scores = np.array([start + end for _, start, end in candidates])
    weights = np.exp(scores - scores.max())
    probabilities = (weights / weights.sum()).tolist()
    return [
        {"text": text, "probability": probability, "start_logit": start, "end_logit": end}
        for (text, start, end), probability in zip(candidates, probabilities, strict=True)
    ]
