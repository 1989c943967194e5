"""Scores on the GLUE tasks: predictions of a model, the metrics of each task over the whole set, and their interval.

Shapes: N rows, C classes (1 for regression), R resamples.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats
from sklearn import metrics as sk
from torch import Tensor, nn

from compresskit.data.glue import GlueTask, task_named
from compresskit.evaluation.inference import device_of, evaluating
from compresskit.evaluation.scores import BOOTSTRAP, RESAMPLES, SEED, WILSON, Score, percentiles, row_counts, wilson


def predict(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], **forward: Any
) -> tuple[NDArray, NDArray, float]:
    """Logits (N, C) as float32, labels (N,), and the mean loss over all rows.

    batches: dicts with input_ids, …, labels; rows come back in the data set's order if they carry `index`, else in that
    of the batches. forward: further arguments of the model, such as `subnet`. The model's modes are left as found.
    """
    logits, labels, index = [], [], []
    device = device_of(model)
    with evaluating(model):
        for batch in batches:
            inputs = {name: tensor.to(device) for name, tensor in batch.items()}
            index.append(inputs.pop("index", torch.empty(0)).cpu())
            labels.append(inputs.pop("labels").cpu())
            logits.append(model(**inputs, **forward).logits.float().cpu())
    if not logits:
        raise ValueError("there is no batch to predict; the data set is empty")
    all_logits, all_labels, positions = torch.cat(logits).numpy(), torch.cat(labels).numpy(), torch.cat(index).numpy()
    if len(positions):
        order = np.argsort(positions)
        all_logits, all_labels = all_logits[order], all_labels[order]
    return all_logits, all_labels, mean_loss(all_logits, all_labels)


def mean_loss(logits: NDArray, labels: NDArray) -> float:
    """Cross-entropy, or with one class the squared error. logits: (N, C); labels: (N,), -1 in test files: then NaN."""
    if (labels < 0).any():
        return float("nan")
    if logits.shape[1] == 1:
        return float(np.mean((logits[:, 0].astype(np.float64) - labels) ** 2))
    return float(-special.log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels].mean())


def score(task: str, logits: ArrayLike, labels: ArrayLike) -> Score:
    """The task's metrics, the interval of its main metric and the score of the best constant guess.

    logits: (N, C), labels: (N,).  A metric that constant predictions leave undefined is 0. The interval of accuracy is
    Wilson's; that of every other metric is a bootstrap over rows.
    """
    described = task_named(task)
    logits, labels = np.asarray(logits), np.asarray(labels)
    _check(described, logits, labels)
    if described.is_regression:
        guesses, predictions = [np.zeros(len(labels))], logits[:, 0].astype(np.float64)
    else:
        guesses = [np.full(len(labels), label) for label in range(described.num_labels)]
        predictions = logits.argmax(1)

    values = _values(described, predictions, labels)
    main = described.main_metric
    if main == "accuracy":
        low, high = wilson(int((predictions == labels).sum()), len(labels))
    else:
        low, high = percentiles(_bootstrap(described, predictions, labels)[main], values[main])
    return Score(
        metrics={f"eval/{name}": value for name, value in values.items()} | {"eval/loss": mean_loss(logits, labels)},
        value=values[main],
        low=low,
        high=high,
        interval=WILSON if main == "accuracy" else BOOTSTRAP,
        rows=len(labels),
        majority=max(_values(described, guess, labels)[main] for guess in guesses),
    )


def batch_means(task: str, logits: ArrayLike, labels: ArrayLike, batch_size: int) -> dict[str, float]:
    """The task's metrics as EfficientBERT's code has them: means of those of each batch of rows, weighted by its size.

    Of all but accuracy this is not the metric of the whole set; for comparison with the original only.
    """
    described = task_named(task)
    logits, labels = np.asarray(logits), np.asarray(labels)
    _check(described, logits, labels)
    predictions = logits[:, 0].astype(np.float64) if described.is_regression else logits.argmax(1)
    total: dict[str, float] = {}
    for begin in range(0, len(labels), batch_size):
        part = slice(begin, begin + batch_size)
        for name, value in _values(described, predictions[part], labels[part]).items():
            total[name] = total.get(name, 0.0) + value * len(labels[part])
    return {name: value / len(labels) for name, value in total.items()}


def _check(task: GlueTask, logits: NDArray, labels: NDArray) -> None:
    if logits.shape != (len(labels), task.num_labels) or not len(labels):
        raise ValueError(
            f"{task.name}: expected logits of shape ({len(labels)}, {task.num_labels}), one row per label and at least "
            f"one; got {logits.shape}"
        )
    if not np.isfinite(logits).all():
        raise ValueError(f"{task.name}: logits contain NaN or infinity: the model has diverged or its file is damaged")
    highest = np.inf if task.is_regression else task.num_labels - 1
    wrong = np.flatnonzero((labels < 0) | (labels > highest))
    if len(wrong):
        raise ValueError(
            f"{task.name}: label {labels[wrong[0]]} of row {wrong[0]} is not between 0 and {highest}; test files "
            "have no labels, score the dev file"
        )


# --- the metrics on all rows


def _correlation(definition: Callable[[NDArray, NDArray], float], predictions: NDArray, labels: NDArray) -> float:
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:  # undefined; one row alone is constant too
        return 0.0
    return float(definition(labels, predictions))


METRICS: dict[str, Callable[[NDArray, NDArray], float]] = {  # of predictions and labels, (N,) each
    "accuracy": lambda predictions, labels: float(sk.accuracy_score(labels, predictions)),
    "f1": lambda predictions, labels: float(sk.f1_score(labels, predictions, zero_division=0)),
    "matthews_correlation": partial(_correlation, sk.matthews_corrcoef),
    "pearson": partial(_correlation, lambda labels, predictions: stats.pearsonr(labels, predictions).statistic),
    "spearman": partial(_correlation, lambda labels, predictions: stats.spearmanr(labels, predictions).statistic),
}


def _with_mean(task: GlueTask, values: dict[str, Any]) -> dict[str, Any]:
    """The published summary of two metrics is their mean: accuracy_f1, pearson_spearman."""
    if len(task.metrics) > 1:
        values["_".join(task.metrics)] = sum(values.values()) / len(values)
    return values


def _values(task: GlueTask, predictions: NDArray, labels: NDArray) -> dict[str, float]:
    return _with_mean(task, {name: METRICS[name](predictions, labels) for name in task.metrics})


# --- the same metrics on resampled rows, all resamples at once


def _bootstrap(task: GlueTask, predictions: NDArray, labels: NDArray) -> dict[str, NDArray]:
    """Each metric of R resamples of the rows, (R,)."""
    if task.is_regression:
        return _with_mean(task, _resampled_correlations(predictions, labels.astype(np.float64)))
    # A resample of the rows is a multinomial draw of the cells of the confusion matrix: no row needs to be touched.
    cells = sk.confusion_matrix(labels, predictions, labels=np.arange(task.num_labels))
    drawn = np.random.default_rng(SEED).multinomial(len(labels), cells.ravel() / len(labels), size=RESAMPLES)
    confusions = drawn.reshape(-1, *cells.shape).astype(np.float64)
    return _with_mean(task, {name: ON_CONFUSIONS[name](confusions) for name in task.metrics})


def resampled(task: str, logits: ArrayLike, labels: ArrayLike) -> NDArray:
    """The main metric of R resamples of the rows, (R,): the same rows whatever the model, so that two models' values
    can be subtracted resample by resample. logits: (N, C), labels: (N,).
    """
    described = task_named(task)
    logits, labels = np.asarray(logits), np.asarray(labels)
    _check(described, logits, labels)
    if described.is_regression:
        return _bootstrap(described, logits[:, 0].astype(np.float64), labels)[described.main_metric]
    classes = described.num_labels
    cells = np.eye(classes**2)[labels * classes + logits.argmax(1)]  # (N, C·C)
    confusions = np.concatenate([counts @ cells for counts in row_counts(len(labels))]).reshape(-1, classes, classes)
    values = _with_mean(described, {name: ON_CONFUSIONS[name](confusions) for name in described.metrics})
    return values[described.main_metric]


def _ratio(numerator: NDArray, denominator: NDArray) -> NDArray:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def _f1(confusions: NDArray) -> NDArray:
    hits = confusions[:, 1, 1]
    return _ratio(2 * hits, confusions[:, 1, :].sum(1) + confusions[:, :, 1].sum(1))


def _matthews(confusions: NDArray) -> NDArray:
    n = confusions.sum((1, 2))
    true, predicted = confusions.sum(2), confusions.sum(1)
    covariance = n * confusions.trace(axis1=1, axis2=2) - (true * predicted).sum(1)
    return _ratio(covariance, np.sqrt((n**2 - (true**2).sum(1)) * (n**2 - (predicted**2).sum(1))))


ON_CONFUSIONS: dict[str, Callable[[NDArray], NDArray]] = {  # (R, C, C), true class first, to (R,)
    "accuracy": lambda confusions: confusions.trace(axis1=1, axis2=2) / confusions.sum((1, 2)),
    "f1": _f1,
    "matthews_correlation": _matthews,
}


def _resampled_correlations(x: NDArray, y: NDArray) -> dict[str, NDArray]:
    blocks = [
        (_weighted_pearson(x, y, counts), _weighted_pearson(_ranks(x, counts), _ranks(y, counts), counts))
        for counts in row_counts(len(x))
    ]
    return dict(zip(("pearson", "spearman"), map(np.concatenate, zip(*blocks, strict=True)), strict=True))


def _weighted_pearson(x: NDArray, y: NDArray, counts: NDArray) -> NDArray:
    """Correlation of x and y, (N,) or (R, N), with row n taken counts[r, n] times.  Returns (R,)."""
    n = counts.sum(1, keepdims=True)
    dx, dy = (v - (counts * v).sum(1, keepdims=True) / n for v in (x, y))
    return _ratio((counts * dx * dy).sum(1), np.sqrt((counts * dx * dx).sum(1) * (counts * dy * dy).sum(1)))


def _ranks(x: NDArray, counts: NDArray) -> NDArray:
    """Ranks of x, (N,), in each resample, ties at their mean rank.  Returns (R, N)."""
    order = np.argsort(x, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(x[order]) > 0])  # of the runs of equal values
    sizes = np.add.reduceat(counts[:, order], starts, axis=1)
    means = np.cumsum(sizes, axis=1) - (sizes - 1) / 2
    ranks = np.empty_like(counts)
    ranks[:, order] = np.repeat(means, np.diff(np.r_[starts, len(x)]), axis=1)
    return ranks
