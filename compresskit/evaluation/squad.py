"""Scores on SQuAD: logits of a question-answering model, exact match and F1 as in the official scripts.

Shapes: N features (windows over the contexts), S tokens of the longest one.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compresskit.evaluation.inference import device_of, evaluating
from compresskit.evaluation.scores import BOOTSTRAP, Score, percentiles, row_counts

PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")


def predict(model: nn.Module, batches: Iterable[Mapping[str, Tensor]], **forward: Any) -> tuple[NDArray, NDArray]:
    """Start and end logits, each (N, S) float32, minus infinity where a feature has no token.

    batches: dicts with input_ids and attention_mask; features come back in their own order if the batches carry
    `index`, else in that of the batches. forward: further arguments of the model. Its modes are left as found.
    """
    found: list[tuple[NDArray, NDArray]] = []
    index: list[NDArray] = []
    device = device_of(model)
    with evaluating(model):
        for batch in batches:
            inputs = {name: tensor.to(device) for name, tensor in batch.items()}
            index.append(inputs.pop("index", torch.empty(0)).cpu().numpy())
            inputs = {name: tensor for name, tensor in inputs.items() if not name.endswith("_positions")}
            out, empty = model(**inputs, **forward), inputs["attention_mask"] == 0
            start, end = (
                logits.float().masked_fill(empty, -torch.inf).cpu().numpy()
                for logits in (out.start_logits, out.end_logits)
            )
            found.append((start, end))
    if not found:
        raise ValueError("there is no batch to predict; the data set is empty")
    width, positions = max(start.shape[1] for start, _ in found), np.concatenate(index)
    order = np.argsort(positions) if len(positions) else slice(None)
    starts, ends = (
        np.concatenate([np.pad(a, ((0, 0), (0, width - a.shape[1])), constant_values=-np.inf) for a in arrays])[order]
        for arrays in zip(*found, strict=True)
    )
    if np.isnan(starts).any() or np.isnan(ends).any():
        raise ValueError("logits contain NaN: the model has diverged or its file is damaged")
    return starts, ends


def normalize(answer: str) -> str:
    """Lower case, without ASCII punctuation and the articles a, an, the, single spaces."""
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(PUNCTUATION)).split())


def exact_match(prediction: str, gold: str) -> float:
    """1 if both are the same after normalisation, else 0."""
    return float(normalize(prediction) == normalize(gold))


def f1(prediction: str, gold: str) -> float:
    """F1 over the shared words, counted with repetition. Where either has no word left: 1 if neither has, else 0."""
    predicted, expected = normalize(prediction).split(), normalize(gold).split()
    if not predicted or not expected:
        return float(predicted == expected)
    shared = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * shared / (len(predicted) + len(expected))


METRICS: dict[str, Callable[[str, str], float]] = {"exact_match": exact_match, "f1": f1}


def _golds(answers: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The texts that count as right; the empty one where none has a word."""
    return {name: [text for text in texts if normalize(text)] or [""] for name, texts in answers.items()}


def _best_over_golds(
    metric: Callable[[str, str], float], predictions: Mapping[str, str], golds: Mapping[str, list[str]]
) -> NDArray:
    return np.array([max(metric(predictions[name], gold) for gold in golds[name]) for name in golds])


def best_thresholds(
    spans: Mapping[str, str], null_odds: Mapping[str, float], answers: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, float]]:
    """For each metric the `value` at the best `threshold`, chosen on the rows it scores as the official script does.

    spans: best text that is not empty; null_odds: how far the empty answer scores above it; answers: gold texts; each
    by question id. A question is answered where its odds do not exceed the threshold.
    """
    golds = _golds(answers)
    odds = np.array([null_odds[name] for name in golds])
    order = np.argsort(odds, kind="stable")
    last = np.append(np.diff(odds[order]) > 0, True)  # of equal odds all are answered, or none
    thresholds = np.append(odds.min() - 1, odds[order][last])
    found = {}
    for metric, function in METRICS.items():
        silent = _best_over_golds(function, dict.fromkeys(golds, ""), golds)
        gains = (_best_over_golds(function, spans, golds) - silent)[order].cumsum()[last]
        means = (silent.sum() + np.append(0.0, gains)) / len(golds)
        best = int(means.argmax())
        found[metric] = {"value": float(means[best]), "threshold": float(thresholds[best])}
    return found


def score(predictions: Mapping[str, str], answers: Mapping[str, Sequence[str]]) -> Score:
    """Exact match and F1 (the main metric), each question's best over its gold answers, averaged over the questions.

    predictions: text by question id; answers: gold texts by question id, none for an unanswerable question, to which
    the empty text is the right answer.
    """
    for what, names in (
        ("questions without prediction", answers.keys() - predictions.keys()),
        ("predictions without question", predictions.keys() - answers.keys()),
    ):
        if names:
            raise ValueError(f"{len(names)} {what}, the first is {min(names)!r}; predict the file that is scored")
    if not answers:
        raise ValueError("there is no question to score")
    golds = _golds(answers)
    exact, overlap = (_best_over_golds(metric, predictions, golds) for metric in METRICS.values())
    means = np.concatenate([counts @ overlap for counts in row_counts(len(overlap))]) / len(overlap)
    low, high = percentiles(means, float(overlap.mean()))
    return Score(
        metrics={"eval/exact_match": float(exact.mean()), "eval/f1": float(overlap.mean())},
        value=float(overlap.mean()),
        low=low,
        high=high,
        interval=BOOTSTRAP,
        rows=len(overlap),
        majority=float(np.mean([gold == [""] for gold in golds.values()])),
    )


def by_answerability(predictions: Mapping[str, str], answers: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """`eval/has_answer_exact_match`, `eval/no_answer_f1`, …: means over the questions with and without an answer."""
    found = {}
    for name, golds in {
        "has_answer": {name: texts for name, texts in answers.items() if texts},
        "no_answer": {name: [""] for name, texts in answers.items() if not texts},
    }.items():
        for metric, function in METRICS.items() if golds else ():
            found[f"eval/{name}_{metric}"] = float(_best_over_golds(function, predictions, _golds(golds)).mean())
    return found


def official_scores(
    predictions: Mapping[str, str],
    answers: Mapping[str, Sequence[str]],
    null_odds: Mapping[str, float] | None = None,
    null_threshold: float = 1.0,
) -> dict[str, float]:
    """What the official script reports, in its words and in percent: exact, f1, total, HasAns_*, NoAns_*, best_*.

    null_odds: how sure a model is that there is no answer, by question id, 0 for all if not given; where they exceed
    `null_threshold` the empty text is scored. The best threshold is sought as there: question by question, also between
    equal odds, of which one may then count as answered and the other not; `best_thresholds` answers all or none.
    """
    if predictions.keys() != answers.keys():
        raise ValueError("predictions and answers are not of the same questions; predict the file that is scored")
    names = list(answers)
    odds = np.array([(null_odds or {}).get(name, 0.0) for name in names])
    answerable = np.array([bool(answers[name]) for name in names])
    said = np.array([bool(predictions[name]) for name in names])
    order = np.argsort(odds, kind="stable")
    golds = _golds(answers)
    found: dict[str, float] = {}
    best: dict[str, float] = {}
    for key, metric in (("exact", exact_match), ("f1", f1)):
        plain = _best_over_golds(metric, predictions, golds)
        values = 100 * np.where(odds > null_threshold, ~answerable, plain)
        found[key] = float(values.mean())
        for kind, rows in (("HasAns", answerable), ("NoAns", ~answerable)):
            if rows.any():
                found[f"{kind}_{key}"] = float(values[rows].mean())
                found[f"{kind}_total"] = int(rows.sum())
        gains = np.where(answerable, plain, -said.astype(float))[order]
        totals = np.append(0.0, gains.cumsum()) + (~answerable).sum()
        place = int(totals.argmax())
        best[f"best_{key}"] = float(100 * totals[place] / len(names))
        best[f"best_{key}_thresh"] = float(odds[order[place - 1]]) if place else 0.0
    return found | {"total": len(names)} | best
