import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.functional.text import squad as torchmetrics_squad

from compresskit.evaluation import squad


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  quick, Brown FOX!", "quick brown fox"),
        ("an apple a day", "apple day"),
        ("A", ""),
        ("it's (the) one", "its one"),
        ("Émile's", "émiles"),
        ("theatre than another", "theatre than another"),
        ("", ""),
    ],
)
def test_normalisation_is_the_official_one(text, normal):
    assert squad.normalize(text) == normal


@pytest.mark.parametrize(
    ("prediction", "gold", "f1", "exact"),
    [
        ("the Red House", "red house , the", 1.0, 1.0),
        ("a b c", "", 0.0, 0.0),
        ("Hello, World!", "hello world", 1.0, 1.0),
        ("Steve Smith's", "Steve Smith", 0.5, 0.0),
        ("the", "a", 1.0, 1.0),
        ("red red blue", "red blue blue green", 2 * 2 / 7, 0.0),
        ("one two", "three", 0.0, 0.0),
    ],
)
def test_f1_and_exact_match_of_hand_cases(prediction, gold, f1, exact):
    assert squad.f1(prediction, gold) == pytest.approx(f1)
    assert squad.exact_match(prediction, gold) == exact


def test_the_score_takes_each_questions_best_answer_and_the_mean_over_questions():
    answers = {"q1": ["in 1984", "1984"], "q2": ["the king"], "q3": [], "q4": ["...", "red house"]}
    score = squad.score({"q1": "1984", "q2": "king of France", "q3": "", "q4": "house"}, answers)
    assert score.metrics["eval/exact_match"] == pytest.approx(2 / 4)
    assert score.metrics["eval/f1"] == pytest.approx((1 + 1 / 2 + 1 + 2 / 3) / 4)
    assert score.value == score.metrics["eval/f1"]
    assert score.majority == 1 / 4  # the empty text is right where there is no answer
    assert score.rows == 4
    assert score.loss is None
    assert score.low <= score.value <= score.high


def test_the_interval_is_that_of_a_mean():
    rng = np.random.default_rng(0)
    right = rng.random(2000) < 0.7
    score = squad.score({str(i): "x" if r else "y" for i, r in enumerate(right)}, {str(i): ["x"] for i in range(2000)})
    half = 1.96 * np.sqrt(0.7 * 0.3 / 2000)
    assert score.value == right.mean()
    assert (score.value - score.low, score.high - score.value) == (pytest.approx(half, rel=0.1),) * 2


def test_missing_and_surplus_predictions_are_refused():
    with pytest.raises(ValueError, match="2 questions without prediction, the first is 'q1'"):
        squad.score({}, {"q2": ["x"], "q1": ["y"]})
    with pytest.raises(ValueError, match="1 predictions without question, the first is 'other'"):
        squad.score({"q": "x", "other": ""}, {"q": ["x"]})
    with pytest.raises(ValueError, match="no question to score"):
        squad.score({}, {})


def test_the_best_thresholds_are_those_of_trying_all():
    rng = np.random.default_rng(0)
    names = [f"q{i}" for i in range(60)]
    golds = {name: [] if rng.random() < 0.5 else [f"word {name}"] for name in names}
    spans = {name: rng.choice([f"word {name}", "word", "other"]) for name in names}
    odds = {name: round(rng.normal(1.0 - 2 * bool(golds[name])), 1) for name in names}  # with equal ones
    found = squad.best_thresholds(spans, odds, golds)
    for metric in ("exact_match", "f1"):

        def at(threshold, metric=metric):
            answers = {name: spans[name] if odds[name] <= threshold else "" for name in names}
            return squad.score(answers, golds).metrics[f"eval/{metric}"]

        assert found[metric]["value"] == pytest.approx(max(map(at, np.arange(-6, 6, 0.05))))
        assert found[metric]["value"] == pytest.approx(at(found[metric]["threshold"]))


def test_saying_nothing_is_a_threshold_too():
    found = squad.best_thresholds({"a": "x", "b": "y"}, {"a": 0.5, "b": 2.0}, {"a": [], "b": []})
    assert found["f1"]["value"] == 1
    assert found["f1"]["threshold"] < 0.5


def wrong_in_many_ways():
    """Predictions that are right, half right, wrong, empty, or right for the second answer only; and the gold ones."""
    rng = np.random.default_rng(0)
    words = "the a king of France, Paris. in 1984 -- it's (red) house".split()  # noqa: SIM905

    def some(low, high):
        return " ".join(rng.choice(words, rng.integers(low, high)))

    golds = {f"q{i}": [some(1, 6) for _ in range(rng.integers(1, 4))] for i in range(200)}
    said = {name: [texts[-1], texts[0] + " house", some(1, 5), "", texts[0].upper()][i % 5]
            for i, (name, texts) in enumerate(golds.items())}  # fmt: skip
    return said, golds


def test_scores_of_answers_wrong_in_many_ways_are_those_of_torchmetrics():
    said, golds = wrong_in_many_ways()
    golds = {name: [text for text in texts if squad.normalize(text)] or ["king"] for name, texts in golds.items()}
    theirs = torchmetrics_squad(
        [{"prediction_text": text, "id": name} for name, text in said.items()],
        [{"answers": {"text": texts, "answer_start": [0] * len(texts)}, "id": name} for name, texts in golds.items()],
    )
    ours = squad.score(said, golds)
    official = squad.official_scores(said, golds)
    for mine, key in (("exact_match", "exact"), ("f1", "f1")):
        assert 20 < official[key] < 80
        assert official[key] == pytest.approx(float(theirs[mine]), abs=1e-4)
        assert ours.metrics[f"eval/{mine}"] * 100 == pytest.approx(official[key])
        assert official[f"best_{key}"] == pytest.approx(official[key])  # 1.1: every question has an answer


def test_questions_with_and_without_answer_are_also_scored_apart():
    said = {"a": "x", "b": "wrong", "c": "", "d": "y"}
    golds = {"a": ["x"], "b": ["x y"], "c": [], "d": []}
    found = squad.official_scores(said, golds)
    assert (found["exact"], found["HasAns_exact"], found["NoAns_exact"], found["NoAns_f1"]) == (50, 50, 50, 50)
    assert (found["total"], found["HasAns_total"], found["NoAns_total"]) == (4, 2, 2)
    assert squad.by_answerability(said, golds) == {
        "eval/has_answer_exact_match": 0.5,
        "eval/has_answer_f1": 0.5,
        "eval/no_answer_exact_match": 0.5,
        "eval/no_answer_f1": 0.5,
    }
    assert "NoAns_f1" not in squad.official_scores({"a": "x"}, {"a": ["x"]})
    assert list(squad.by_answerability({"a": "x"}, {"a": ["x"]})) == [
        "eval/has_answer_exact_match",
        "eval/has_answer_f1",
    ]


def test_null_odds_silence_answers_and_give_the_best_threshold():
    said = {"a": "x", "b": "y", "c": "z"}
    golds = {"a": ["x"], "b": [], "c": ["z"]}
    found = squad.official_scores(said, golds, {"a": -3.0, "b": 2.0, "c": 0.5})
    assert found["exact"] == pytest.approx(100)  # b lies above 1
    assert (found["best_exact"], found["best_exact_thresh"]) == (pytest.approx(100), 0.5)
    assert squad.official_scores(said, golds, {"a": -3.0, "b": 2.0, "c": 0.5}, null_threshold=3)[
        "exact"
    ] == pytest.approx(200 / 3)
    with pytest.raises(ValueError, match="not of the same questions"):
        squad.official_scores(said, {"a": ["x"]})


class Positions(nn.Module):
    """Start logits: the token ids; end logits: their negatives."""

    def forward(self, input_ids, attention_mask):
        self.seen = self.training, torch.is_inference_mode_enabled()
        return type("Output", (), {"start_logits": input_ids.float(), "end_logits": -input_ids.float()})


def test_logits_come_in_the_order_of_the_features_with_minus_infinity_where_there_is_no_token():
    model = Positions().train()
    batches = [
        {
            "input_ids": torch.tensor([[7, 8, 0], [4, 5, 6]]),
            "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
            "start_positions": torch.tensor([0, 1]),
            "index": torch.tensor([2, 0]),
        },
        {"input_ids": torch.tensor([[9]]), "attention_mask": torch.tensor([[1]]), "index": torch.tensor([1])},
    ]
    start, end = squad.predict(model, batches)
    assert start.tolist() == [[4, 5, 6], [9, -np.inf, -np.inf], [7, 8, -np.inf]]
    assert end.tolist() == [[-4, -5, -6], [-9, -np.inf, -np.inf], [-7, -8, -np.inf]]
    assert start.dtype == np.float32
    assert model.seen == (False, True)
    assert model.training


def test_without_index_features_stay_in_the_order_of_the_batches():
    batch = {"input_ids": torch.tensor([[3], [1]]), "attention_mask": torch.ones(2, 1)}
    assert squad.predict(Positions(), [batch])[0].tolist() == [[3], [1]]
    with pytest.raises(ValueError, match="the data set is empty"):
        squad.predict(Positions(), [])
