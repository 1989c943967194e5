import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from compresskit.data.glue import TASKS
from compresskit.evaluation import glue, scores
from compresskit.evaluation.scores import row_counts, wilson


def one_hot(predictions, classes: int) -> np.ndarray:
    return np.eye(classes)[np.asarray(predictions)]


def answers(task: str, rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels of a model that is right more often than not."""
    rng = np.random.default_rng(seed)
    if TASKS[task].is_regression:
        labels = rng.uniform(0, 5, rows).round(1)
        return (labels + rng.normal(0, 2, rows))[:, None], labels
    labels = rng.integers(0, TASKS[task].num_labels, rows)
    return rng.normal(size=(rows, TASKS[task].num_labels)) + one_hot(labels, TASKS[task].num_labels), labels


# ---- metrics


def test_hand_case_of_accuracy_f1_and_their_mean():
    score = glue.score("mrpc", one_hot([1, 1, 0, 0, 1], 2), [1, 0, 0, 1, 1])  # 2 hits, 1 false alarm, 1 miss
    assert score.metrics["eval/accuracy"] == pytest.approx(3 / 5)
    assert score.metrics["eval/f1"] == pytest.approx(4 / 6)
    assert score.metrics["eval/accuracy_f1"] == pytest.approx((3 / 5 + 4 / 6) / 2)
    assert score.value == score.metrics["eval/accuracy"]
    assert score.rows == 5
    assert score.majority == pytest.approx(3 / 5)


def test_hand_case_of_matthews_correlation():
    score = glue.score("cola", one_hot([1, 1, 0, 0, 1, 1], 2), [1, 1, 0, 1, 0, 1])  # tp 3, fp 1, fn 1, tn 1
    assert score.value == pytest.approx((3 * 1 - 1 * 1) / np.sqrt(4 * 4 * 2 * 2))
    assert score.majority == 0.0


def test_hand_case_of_the_correlations():
    score = glue.score("stsb", [[1.0], [2.0], [10.0]], [1.0, 2.0, 3.0])
    assert score.metrics["eval/spearman"] == pytest.approx(1.0)
    assert score.metrics["eval/pearson"] == pytest.approx(9 / np.sqrt(2 * 438 / 9), rel=1e-12)
    assert score.value == pytest.approx((score.metrics["eval/spearman"] + score.metrics["eval/pearson"]) / 2)
    assert score.loss == pytest.approx(49 / 3)
    assert score.majority == 0.0


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_its_metrics_over_the_whole_set(task):
    logits, labels = answers(task, 500)
    score = glue.score(task, logits, labels)
    predictions = logits[:, 0] if TASKS[task].is_regression else logits.argmax(1)
    definitions = {
        "accuracy": lambda: np.mean(predictions == labels),
        "f1": lambda: sk.f1_score(labels, predictions),
        "matthews_correlation": lambda: np.corrcoef(labels, predictions)[0, 1],
        "pearson": lambda: np.corrcoef(labels, predictions)[0, 1],
        "spearman": lambda: np.corrcoef(stats.rankdata(labels), stats.rankdata(predictions))[0, 1],
    }
    for name in TASKS[task].metrics:
        assert score.metrics[f"eval/{name}"] == pytest.approx(definitions[name](), abs=1e-12)
    assert score.value == score.metrics[f"eval/{TASKS[task].main_metric}"]
    assert score.low < score.value < score.high
    assert score.value > score.majority


@pytest.mark.parametrize("task", ["cola", "mrpc", "stsb"])
@pytest.mark.filterwarnings("error")
def test_constant_predictions_score_zero_where_the_metric_is_undefined_without_a_warning(task):
    labels = np.array([0, 1, 1, 0, 1, 0])
    logits = np.zeros((6, 1)) if task == "stsb" else one_hot([0] * 6, 2)
    score = glue.score(task, logits, labels)
    for name in set(TASKS[task].metrics) - {"accuracy"}:
        assert score.metrics[f"eval/{name}"] == 0.0


@pytest.mark.filterwarnings("error")
def test_one_row_is_enough():
    assert glue.score("cola", [[0.0, 1.0]], [1]).value == 0.0
    assert glue.score("stsb", [[3.0]], [4.0]).value == 0.0
    assert glue.score("sst2", [[0.0, 1.0]], [1]).value == 1.0


def test_loss_is_the_mean_over_the_rows():
    logits, labels = answers("mnli", 50)
    expected = nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels)).item()
    assert glue.score("mnli", logits, labels).loss == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("task", "logits", "labels", "message"),
    [
        ("sst2", np.zeros((3, 2)), [0, 1], r"expected logits of shape \(2, 2\).*got \(3, 2\)"),
        ("mnli", np.zeros((2, 2)), [0, 1], r"expected logits of shape \(2, 3\)"),
        ("sst2", np.zeros((0, 2)), [], "at least one"),
        ("sst2", [[0.0, np.nan]], [0], "NaN or infinity: the model has diverged"),
        ("sst2", np.zeros((2, 2)), [0, -1], "label -1 of row 1 is not between 0 and 1; test files have no labels"),
        ("sst-2", np.zeros((2, 2)), [0, 1], "did you mean 'sst2'"),
    ],
)
def test_what_cannot_be_scored_is_refused(task, logits, labels, message):
    with pytest.raises(ValueError, match=message):
        glue.score(task, logits, labels)


# ---- intervals


@pytest.mark.parametrize(
    ("correct", "low", "high"), [(0, 0.0, 0.27753), (5, 0.23659, 0.76341), (9, 0.59585, 0.98212), (10, 0.72247, 1.0)]
)
def test_wilson_interval_has_the_published_values(correct, low, high):
    assert wilson(correct, 10) == (pytest.approx(low, abs=1e-5), pytest.approx(high, abs=1e-5))


@given(st.integers(1, 3000), st.data())
def test_wilson_interval_contains_the_share(rows, data):
    correct = data.draw(st.integers(0, rows))
    low, high = wilson(correct, rows)
    assert 0 <= low <= correct / rows <= high <= 1


def test_resampled_metrics_are_those_of_the_resampled_rows(monkeypatch):
    monkeypatch.setattr(scores, "RESAMPLES", 25)
    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 6, 40) / 2, rng.integers(0, 6, 40) / 2  # many ties
    found = glue._resampled_correlations(x, y)
    drawn = np.concatenate(list(row_counts(40))).astype(int)
    assert drawn.shape == (25, 40)
    assert (drawn.sum(1) == 40).all()
    for r, counts in enumerate(drawn):
        assert found["pearson"][r] == pytest.approx(stats.pearsonr(np.repeat(x, counts), np.repeat(y, counts))[0])
        assert found["spearman"][r] == pytest.approx(stats.spearmanr(np.repeat(x, counts), np.repeat(y, counts))[0])


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=30))
def test_metrics_of_a_confusion_matrix_are_scikit_learns(pairs):
    labels, predictions = np.array(pairs).T
    confusion = sk.confusion_matrix(labels, predictions, labels=[0, 1])[None].astype(float)
    for name, metric in glue.ON_CONFUSIONS.items():
        assert metric(confusion)[0] == pytest.approx(glue.METRICS[name](predictions, labels), abs=1e-12)


@pytest.mark.parametrize(("task", "metric"), [("cola", sk.matthews_corrcoef), ("mrpc", sk.f1_score)])
def test_the_interval_is_that_of_an_ordinary_bootstrap_over_rows(task, metric):
    logits, labels = answers(task, 300)
    predictions, rng = logits.argmax(1), np.random.default_rng(1)
    drawn = [rng.integers(300, size=300) for _ in range(400)]
    low, high = np.quantile([metric(labels[rows], predictions[rows]) for rows in drawn], [0.025, 0.975])
    name = "f1" if task == "mrpc" else "matthews_correlation"
    resampled = glue._bootstrap(TASKS[task], predictions, labels)[name]
    assert np.quantile(resampled, [0.025, 0.975]) == pytest.approx([low, high], abs=0.025)


@pytest.mark.parametrize("task", ["sst2", "cola", "mnli", "stsb"])
def test_the_resamples_of_two_models_are_of_the_same_rows(task, monkeypatch):
    monkeypatch.setattr(scores, "RESAMPLES", 20)
    logits, labels = answers(task, 60)
    found = glue.resampled(task, logits, labels)
    drawn = [np.repeat(np.arange(60), counts.astype(int)) for counts in np.concatenate(list(row_counts(60)))]
    assert found == pytest.approx([glue.score(task, logits[rows], labels[rows]).value for rows in drawn])


@pytest.mark.parametrize(("task", "method"), [("sst2", "Wilson"), ("cola", "bootstrap over rows, 1000 resamples")])
def test_the_score_states_the_method_of_its_interval_and_is_the_same_every_time(task, method):
    logits, labels = answers(task, 200)
    first, second = glue.score(task, logits, labels), glue.score(task, logits, labels)
    assert method in first.interval
    assert first == second


def test_ten_thousand_rows_take_seconds():
    cases = [(task, *answers(task, 10_000)) for task in ("cola", "mrpc", "stsb")]
    start = time.process_time()
    for case in cases:
        glue.score(*case)
    assert time.process_time() - start < 6  # measured: 0.02, 0.02 and 1.2 s


# ---- predictions of a model


class Echo(nn.Module):
    """Answers with its input; notes how it was called."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.frozen = nn.Dropout(0.5).eval()
        self.calls: list[dict] = []

    def forward(self, input_ids, **others):
        self.calls.append({"training": self.training, "inference": torch.is_inference_mode_enabled(), **others})
        return type("Output", (), {"logits": self.frozen(self.dropout(input_ids.bfloat16()))})


def batches(order, size=2, index=True):
    values = torch.tensor([[0.0, 2.0], [1.0, 0.0], [3.0, 1.0], [0.5, 4.0], [6.0, 2.0]])
    labels = torch.tensor([1, 0, 1, 1, 0])
    for part in torch.tensor(order).split(size):
        yield {"input_ids": values[part], "labels": labels[part]} | ({"index": part} if index else {})


def test_rows_come_back_in_the_order_of_the_data_set():
    logits, labels, loss = glue.predict(Echo(), batches([3, 0, 4, 1, 2]))
    assert logits.tolist() == [[0, 2], [1, 0], [3, 1], [0.5, 4], [6, 2]]
    assert logits.dtype == np.float32
    assert labels.tolist() == [1, 0, 1, 1, 0]
    assert loss == pytest.approx(nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels)).item())


def test_without_index_rows_stay_in_the_order_of_the_batches():
    assert glue.predict(Echo(), batches([3, 0, 4], index=False))[1].tolist() == [1, 1, 0]


def test_the_model_runs_in_evaluation_and_inference_mode_without_labels_and_gets_its_modes_back():
    model = Echo()
    model.train()
    model.frozen.eval()
    glue.predict(model, batches([0, 1]), subnet="small")
    assert model.calls == [{"training": False, "inference": True, "subnet": "small"}]
    assert (model.training, model.dropout.training, model.frozen.training) == (True, True, False)
    with pytest.raises(RuntimeError, match="broken"):
        glue.predict(model, (_ for _ in [0] if (_ for _ in ()).throw(RuntimeError("broken"))))
    assert model.training


def test_predictions_of_a_bert_are_those_of_one_batch():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForSequenceClassification(BertConfig(vocab_size=30, **shape, hidden_dropout_prob=0.5)).train()
    ids, labels = torch.randint(1, 30, (5, 8)), torch.tensor([0, 1, 1, 0, 1])
    parts = [{"input_ids": ids[i], "labels": labels[i], "index": i} for i in torch.tensor([4, 1, 0, 3, 2]).split(2)]
    logits, _, _ = glue.predict(model, parts)
    torch.testing.assert_close(torch.tensor(logits), model.eval()(ids).logits.detach())


def test_a_test_file_without_labels_has_no_loss():
    assert np.isnan(glue.mean_loss(np.zeros((2, 2)), np.array([-1, -1])))


def test_no_batch_is_an_error():
    with pytest.raises(ValueError, match="the data set is empty"):
        glue.predict(Echo(), [])
