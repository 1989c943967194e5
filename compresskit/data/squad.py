"""SQuAD 1.1 and 2.0: questions from the official JSON, windows over long paragraphs, spans back to answer texts."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value, concatenate_datasets

from compresskit.data.glue import selection_size

MIN_ARTICLES = 20  # below it one article is too large a part


@dataclass(frozen=True)
class SquadExample:
    """A question; `answers` are (text, first character in `context`), none where the paragraph has no answer."""

    id: str
    title: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]


def read(path: str | Path) -> list[SquadExample]:
    """The questions of an official file. Errors are one sentence with the place inside the file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a SQuAD file such as train-v1.1.json")
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path} line {line}: byte {error.object[error.start]:#04x} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} line {error.lineno} column {error.colno}: broken JSON ({error.msg})") from None

    examples: dict[str, SquadExample] = {}
    for a, article in enumerate(_field(content, "data", list, f"{path}")):
        for p, paragraph in enumerate(_field(article, "paragraphs", list, f"{path} article {a}")):
            where = f"{path} article {a} paragraph {p}"
            context = _field(paragraph, "context", str, where)
            for q, entry in enumerate(_field(paragraph, "qas", list, where)):
                example = _example(entry, context, str(article.get("title", "")), f"{where} question {q}")
                if example.id in examples:
                    raise ValueError(f"{where} question {q}: id {example.id!r} was used before")
                examples[example.id] = example
    if not examples:
        raise ValueError(f"{path} has no questions")
    return list(examples.values())


def _field(record: Any, name: str, kind: type, where: str) -> Any:
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        found = "missing" if value is None else type(value).__name__
        raise ValueError(f"{where}: field {name!r} is {found}, expected {kind.__name__}")
    return value


def _example(entry: Any, context: str, title: str, where: str) -> SquadExample:
    answers = []
    if not (isinstance(entry, dict) and entry.get("is_impossible")):
        for answer in _field(entry, "answers", list, where):
            text, start = _field(answer, "text", str, where), _field(answer, "answer_start", int, where)
            if start < 0 or context[start : start + len(text)] != text:
                found = repr(context[start : start + len(text)]) if start >= 0 else "nothing"
                raise ValueError(f"{where}: at answer_start {start} the context reads {found}, not {text!r}")
            answers.append((text, start))
    return SquadExample(
        _field(entry, "id", str, where), title, _field(entry, "question", str, where), context, tuple(answers)
    )


def encode(
    examples: Sequence[SquadExample],
    tokenizer: Any,
    max_seq_len: int = 384,
    doc_stride: int = 128,
    max_query_length: int = 64,
) -> Dataset:
    """Windows [CLS] question [SEP] part of the context [SEP], a row each; window k starts at piece k · `doc_stride`.

    For the model: `input_ids`, `token_type_ids`, `start_positions`, `end_positions` (of the first answer; 0, 0 where it
    is not fully inside). For `predictions`: `example` (position in `examples`), `context_start` (position of the first
    context piece), `char_starts` and `char_ends` (of the word each context piece belongs to: answers are whole words),
    `max_context` (true in the window that shows a piece with most context on its poorer side).
    """
    room = max_seq_len - max_query_length - 3
    if room < 1 or not 1 <= doc_stride <= room:
        raise ValueError(
            f"max_seq_len {max_seq_len} leaves {room} pieces of context beside a question of max_query_length "
            f"{max_query_length}; doc_stride {doc_stride} must lie between 1 and that"
        )
    whole = List(Value("int32"))
    features = Features(
        {
            "input_ids": whole,
            "token_type_ids": List(Value("int8")),
            "start_positions": Value("int64"),
            "end_positions": Value("int64"),
            "example": Value("int64"),
            "context_start": Value("int64"),
            "char_starts": whole,
            "char_ends": whole,
            "max_context": List(Value("bool")),
        }
    )
    parts = []  # 1000 questions at a time: the rows as Python objects would take some GB
    for begin in range(0, len(examples), 1000):
        part = range(begin, min(begin + 1000, len(examples)))
        rows = list(_windows(examples, part, tokenizer, max_seq_len, doc_stride, max_query_length))
        parts.append(Dataset.from_dict({name: [row[name] for row in rows] for name in features}, features=features))
    return concatenate_datasets(parts)


def _windows(
    examples: Sequence[SquadExample],
    part: range,
    tokenizer: Any,
    max_seq_len: int,
    doc_stride: int,
    max_query_length: int,
) -> Iterator[dict[str, Any]]:
    """The rows of the examples at the positions `part`."""
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    settings = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
    questions = tokenizer([examples[e].question for e in part], **settings)["input_ids"]
    contexts = {context: c for c, context in enumerate(dict.fromkeys(examples[e].context for e in part))}
    encoded = tokenizer(list(contexts), return_offsets_mapping=True, **settings)
    for e, question in zip(part, questions, strict=True):
        question = question[:max_query_length]
        c = contexts[examples[e].context]
        pieces = encoded["input_ids"][c]
        offsets = np.array(encoded["offset_mapping"][c], dtype=np.int32).reshape(-1, 2)
        first, last = _answer_pieces(examples[e], offsets)
        word_starts, word_ends = _word_bounds(encoded.word_ids(c), offsets)
        windows = _cut(len(pieces), max_seq_len - len(question) - 3, doc_stride)
        best = _best_window(windows, len(pieces))
        shift = len(question) + 2
        for k, (start, stop) in enumerate(windows):
            inside = start <= first <= last < stop
            yield {
                "input_ids": np.array([cls, *question, sep, *pieces[start:stop], sep], dtype=np.int32),
                "token_type_ids": np.repeat(np.array([0, 1], dtype=np.int8), [shift, stop - start + 1]),
                "start_positions": first - start + shift if inside else 0,
                "end_positions": last - start + shift if inside else 0,
                "example": e,
                "context_start": shift,
                "char_starts": word_starts[start:stop],
                "char_ends": word_ends[start:stop],
                "max_context": best[start:stop] == k,
            }


def _answer_pieces(example: SquadExample, offsets: np.ndarray) -> tuple[int, int]:
    """First and last piece that share a character with the first answer; (−1, −1) without an answer."""
    if not example.answers:
        return -1, -1
    text, begin = example.answers[0]
    touched = np.flatnonzero((offsets[:, 1] > begin) & (offsets[:, 0] < begin + len(text)))
    return (int(touched[0]), int(touched[-1])) if len(touched) else (-1, -1)


def _word_bounds(words: list[int], offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each piece the first character of its word and the one after its last."""
    word = np.array(words, dtype=np.int64)
    starts = offsets[np.searchsorted(word, word, side="left"), 0]
    return starts, offsets[np.searchsorted(word, word, side="right") - 1, 1]


def _cut(num_pieces: int, length: int, stride: int) -> list[tuple[int, int]]:
    """Begin and end of the windows over `num_pieces` pieces; the last one reaches the end."""
    windows = [(0, min(length, num_pieces))]
    while windows[-1][1] < num_pieces:
        start = windows[-1][0] + stride
        windows.append((start, min(start + length, num_pieces)))
    return windows


def _best_window(windows: list[tuple[int, int]], num_pieces: int) -> np.ndarray:
    """For each piece the window with most context on its poorer side (ties: the longer, then the first)."""
    scores = np.full((len(windows), num_pieces), -np.inf)
    for k, (start, stop) in enumerate(windows):
        left = np.arange(stop - start)
        scores[k, start:stop] = np.minimum(left, left[::-1]) + 0.01 * (stop - start)
    return scores.argmax(axis=0)


def selection_split(examples: Sequence[SquadExample], seed: int) -> tuple[list[SquadExample], list[SquadExample]]:
    """Cut train in two: questions to train on, and questions to choose checkpoints with. No paragraph is in both.

    Articles drawn by `seed` go over whole until they hold `glue.selection_size` of the questions (5 %, at least 200, at
    most half); paragraphs do where there are fewer than 20 articles. Both parts keep the order of the file. ValueError
    where there is one paragraph only.
    """
    article: dict[str, str] = {}  # of each paragraph: the first that holds it
    for example in examples:
        article.setdefault(example.context, example.title)
    whole_articles = len(set(article.values())) >= MIN_ARTICLES
    groups = [article[example.context] if whole_articles else example.context for example in examples]
    sizes = Counter(groups)
    if len(sizes) < 2:
        raise ValueError(f"{len(examples)} questions about one paragraph cannot be divided into training and selection")
    names = list(sizes)
    drawn = [names[g] for g in np.random.default_rng(seed).permutation(len(names))]
    held = np.cumsum([sizes[name] for name in drawn])
    enough = 1 + int(np.searchsorted(held, selection_size(len(examples))))
    chosen = set(drawn[: min(enough, len(drawn) - 1)])
    train, selection = (
        [example for example, group in zip(examples, groups, strict=True) if (group in chosen) == inside]
        for inside in (False, True)
    )
    return train, selection


@dataclass(frozen=True)
class BestSpan:
    """The best answer text that is no empty one, and how far the lowest [CLS] score of the windows lies above it."""

    text: str  # "" only where no span is allowed at all; null_odds is then 0
    null_odds: float


def predictions(spans: Mapping[str, BestSpan], null_threshold: float | None = None) -> dict[str, str]:
    """The answer text of each question. null_threshold: for SQuAD 2.0, "" where the null odds exceed it."""
    return {
        name: "" if null_threshold is not None and span.null_odds > null_threshold else span.text
        for name, span in spans.items()
    }


def best_spans(
    examples: Sequence[SquadExample],
    features: Dataset,
    start_logits: Sequence[np.ndarray] | np.ndarray,
    end_logits: Sequence[np.ndarray] | np.ndarray,
    n_best_size: int = 20,
    max_answer_length: int = 30,
) -> dict[str, BestSpan]:
    """The best span of each question by its id, from the logits of its windows, (S,) each, one per row of `features`.

    It starts and ends at one of the `n_best_size` highest positions of a window, inside the context, is at most
    `max_answer_length` pieces long and starts where the window has the most context; the highest start + end wins.
    """
    if not len(features) == len(start_logits) == len(end_logits):
        raise ValueError(f"{len(features)} windows, but {len(start_logits)} start and {len(end_logits)} end logits")
    best = dict.fromkeys(range(len(examples)), (-np.inf, ""))
    null = dict.fromkeys(range(len(examples)), np.inf)
    for row, start_row, end_row in zip(features, start_logits, end_logits, strict=True):
        row, e = dict(row), row["example"]
        start_scores, end_scores = (np.asarray(scores, dtype=np.float64) for scores in (start_row, end_row))
        null[e] = min(null[e], start_scores[0] + end_scores[0])
        span = _best_span(row, start_scores, end_scores, n_best_size, max_answer_length)
        if span is not None and span[0] > best[e][0]:
            score, first, last = span
            text = examples[e].context[row["char_starts"][first] : row["char_ends"][last]]
            best[e] = (score, text)
    return {
        example.id: BestSpan(best[e][1], float(null[e] - best[e][0]) if best[e][0] > -np.inf else 0.0)
        for e, example in enumerate(examples)
    }


def _best_span(
    row: dict[str, Any], start_scores: np.ndarray, end_scores: np.ndarray, n_best_size: int, max_answer_length: int
) -> tuple[float, int, int] | None:
    """Score, first and last context piece of a window's best allowed span."""
    starts, ends = (
        np.argsort(-scores, kind="stable")[:n_best_size] - row["context_start"] for scores in (start_scores, end_scores)
    )
    pieces = len(row["char_starts"])
    starts = starts[(starts >= 0) & (starts < pieces)]
    starts = starts[np.array(row["max_context"], dtype=bool)[starts]]
    ends = ends[(ends >= 0) & (ends < pieces)]
    length = ends[None, :] - starts[:, None] + 1
    allowed = (length >= 1) & (length <= max_answer_length)
    if not allowed.any():
        return None
    shift = row["context_start"]
    sums = start_scores[starts + shift][:, None] + end_scores[ends + shift][None, :]
    s, e = np.unravel_index(np.where(allowed, sums, -np.inf).argmax(), sums.shape)
    return float(sums[s, e]), int(starts[s]), int(ends[e])
