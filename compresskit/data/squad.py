"""SQuAD 1.1 and 2.0: questions from the official JSON, and which of them choose a checkpoint."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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


def read(path: str | Path, *, strict: bool = True) -> list[SquadExample]:
    """The questions of an official file. Errors are one sentence with the place inside the file.

    strict: an answer that does not stand at its answer_start is an error; else it is taken as it is, and the question
    is left out when `squad_features.encode` makes rows to train on, as in the official featuriser.
    """
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
                example = _example(entry, context, str(article.get("title", "")), f"{where} question {q}", strict)
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


def _example(entry: Any, context: str, title: str, where: str, strict: bool) -> SquadExample:
    answers = []
    if not (isinstance(entry, dict) and entry.get("is_impossible")):
        for answer in _field(entry, "answers", list, where):
            text, start = _field(answer, "text", str, where), _field(answer, "answer_start", int, where)
            if strict and (start < 0 or context[start : start + len(text)] != text):
                found = repr(context[start : start + len(text)]) if start >= 0 else "nothing"
                raise ValueError(f"{where}: at answer_start {start} the context reads {found}, not {text!r}")
            answers.append((text, start))
    return SquadExample(
        _field(entry, "id", str, where), title, _field(entry, "question", str, where), context, tuple(answers)
    )


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
