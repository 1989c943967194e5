"""The loop: what it minimises, reports, keeps as best and refuses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compresskit.models import CompactBertConfig, CompactBertForSequenceClassification
from compresskit.training.finetune import supervised
from compresskit.training.loop import fit
from compresskit.training.optim import adamw, linear_schedule
from compresskit.training.state import Best, TrainingState


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("COMPRESSKIT_HEADLESS", "1")


class Numbers:
    """Batches whose content is their step, from 0."""

    def from_step(self, step: int, num_steps: int) -> Iterator[dict[str, Tensor]]:
        for number in range(step, num_steps):
            yield {"x": torch.full((2, 1), float(number))}


def one_weight(value: float = 0.0) -> nn.Module:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(value)
    return model


def run(model: nn.Module, num_steps: int, losses, **more):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    return fit(model, Numbers(), losses, optimizer, scheduler, num_steps, **more)


def towards_ten(model: nn.Module):
    """A loss whose gradient is -1 until the weight is 10."""
    return lambda batch, step: {"loss": (10 - model.weight).abs().sum(), "part": torch.tensor(float(step))}


def test_losses_get_batch_and_step_from_one_and_numbers_of_each_step_are_observed():
    model, given, seen = one_weight(), [], {}

    def losses(batch, step):
        given.append((step, batch["x"].unique().item()))
        return towards_ten(model)(batch, step)

    run(model, 3, losses, observe=lambda step, numbers: seen.update({step: dict(numbers)}))
    assert given == [(1, 0.0), (2, 1.0), (3, 2.0)]
    assert seen[1] == {"train/loss": 10.0, "train/part": 1.0, "train/grad_norm": 1.0, "train/learning_rate": 0.25}
    assert seen[2]["train/learning_rate"] == 0.125  # that of the step, not of the next
    assert seen[3]["train/loss"] == pytest.approx(10 - 0.25 - 0.125)
    assert model.weight.item() == pytest.approx(0.25 + 0.125 + 0.25 / 3)


def test_gradients_are_clipped_to_norm_one_and_reported_unclipped():
    model, seen = one_weight(), []
    losses = lambda batch, step: {"loss": -1000 * model.weight.sum()}  # noqa: E731
    run(model, 1, losses, observe=lambda step, numbers: seen.append(numbers["train/grad_norm"]))
    assert seen == [1000.0]
    assert model.weight.item() == pytest.approx(0.25)


def test_without_an_evaluation_the_last_weights_stand_in_evaluation_mode():
    model = one_weight()
    best = run(model, 4, towards_ten(model))
    assert (best.score, best.weights) == (None, {})
    assert model.weight.item() == pytest.approx(0.25 * (1 + 1 / 2 + 1 / 3 + 1 / 4))
    assert not model.training


def test_the_best_weights_are_put_back_the_earliest_of_equals():
    model, weights, scores = one_weight(), {}, iter([0.5, 0.75, 0.75, 0.5])
    modes = []

    def evaluate() -> float:
        model.eval()
        return next(scores)

    def losses(batch, step):
        modes.append(model.training)
        return towards_ten(model)(batch, step)

    seen = {}

    def observe(step, numbers):
        weights[step] = model.weight.item()
        if "select/score" in numbers:
            seen[step] = numbers["select/score"]

    best = run(model, 7, losses, evaluate=evaluate, eval_every=2, observe=observe)
    assert seen == {2: 0.5, 4: 0.75, 6: 0.75, 7: 0.5}  # and at the end, though 7 is no multiple
    assert (best.step, best.score) == (4, 0.75)
    assert model.weight.item() == weights[4]
    assert all(modes)  # an evaluation does not leave the model in its mode
    assert not model.training


def test_an_evaluation_may_decline():
    model, answers = one_weight(), iter([None, 0.1, None])
    seen = []
    best = run(
        model, 3, towards_ten(model), evaluate=lambda: next(answers), eval_every=1,
        observe=lambda step, numbers: seen.append("select/score" in numbers),
    )  # fmt: skip
    assert (best.step, seen) == (2, [False, True, False])


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ([math.nan, 0.1, 0.05], 2),
        ([0.1, math.nan, 0.05], 1),
        ([0.1, 0.2, math.nan], 2),
        ([math.nan, math.nan, math.nan], 1),
    ],
    ids=str,
)
def test_a_score_that_is_no_number_is_never_better(scores, kept):
    best, model = Best(), one_weight()
    for step, score in enumerate(scores, start=1):
        best.offer(score, step, model)
    assert best.step == kept


@pytest.mark.parametrize(
    ("scores", "patience", "stops_at", "best_at"),
    [
        ([0.5, 0.4, 0.6, 0.6, 0.5, 0.9], 2, 5, 3),
        ([0.5, 0.4, 0.6, 0.6, 0.5, 0.9], 3, 6, 6),
        ([0.5, 0.4, 0.3, 0.2, 0.1, 0.0], 0, 6, 1),
        ([0.5, None, None, 0.6, math.nan, 0.9], 1, 5, 4),  # to decline is no worse score
        ([0.5, 0.4, 0.3, 0.2, 0.1, 0.0], 1, 2, 1),
    ],
    ids=str,
)
def test_training_stops_after_so_many_scores_in_a_row_that_are_no_better(scores, patience, stops_at, best_at, capsys):
    model, answers, weights = one_weight(), iter(scores), {}
    best = run(
        model, 6, towards_ten(model), evaluate=lambda: next(answers), eval_every=1, patience=patience, label="finetune",
        observe=lambda step, numbers: weights.update({step: model.weight.item()}),
    )  # fmt: skip
    assert (list(weights)[-1], best.step) == (stops_at, best_at)
    assert model.weight.item() == weights[best_at]
    said = [line for line in capsys.readouterr().out.splitlines() if "stopped" in line]
    assert len(said) == (stops_at < 6)
    if said:
        assert said[0].startswith(
            f"finetune: stopped after {stops_at} of 6 steps; {patience} scores in a row were no better than "
            f"{best.score:.4g} at step {best_at}; "
        )


class Clock:
    """Stands still but for what is added to it."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr("compresskit.training.progress.time.perf_counter", lambda: self.now)


def test_examples_per_second_count_steps_and_neither_evaluation_nor_saving(monkeypatch, capsys):
    clock, model, seen = Clock(monkeypatch), one_weight(), {}

    def losses(batch, step):
        clock.now += 0.5
        return towards_ten(model)(batch, step)

    def evaluate() -> float:
        clock.now += 1000
        return 1.0

    class Slow(TrainingState):
        def save(self, step, parts):
            clock.now += 5000

    state = Slow(Path("unused"), every_seconds=0)
    monkeypatch.setattr(state, "restore", lambda parts: 0)
    run(
        model, 4, losses, label="distill", evaluate=evaluate, eval_every=2, state=state, planned_steps=21,
        observe=lambda step, numbers: seen.update({step: dict(numbers)}),
    )  # fmt: skip
    assert [step for step in seen if "train/examples_per_second" in seen[step]] == [4]
    assert seen[4]["train/examples_per_second"] == pytest.approx(2 / 0.5)  # rows of a batch
    assert "distill: stopped after 4 of 21 steps; 4 examples/s\n" in capsys.readouterr().out


def test_a_run_that_is_cut_short_without_ever_being_scored_says_so(capsys):
    model = one_weight()
    run(model, 4, towards_ten(model), label="layers", planned_steps=9)
    assert "layers: stopped after 4 of 9 steps; " in capsys.readouterr().out


def test_a_run_that_is_not_cut_short_says_nothing_of_it(capsys):
    model = one_weight()
    run(model, 4, towards_ten(model), planned_steps=4)
    assert "stopped" not in capsys.readouterr().out


def test_the_best_weights_are_a_copy():
    best, model = Best(), one_weight(1.0)
    best.offer(0.5, 1, model)
    with torch.no_grad():
        model.weight.fill_(2.0)
    assert best.weights["weight"].item() == 1.0


def test_what_acts_after_a_step_acts_before_evaluation_and_report():
    model, order = one_weight(), []

    def after_step(step: int) -> None:
        order.append(f"after {step}")
        with torch.no_grad():
            model.weight.zero_()

    def evaluate() -> float:
        order.append("evaluate")
        return float(model.weight.item() == 0)

    best = run(
        model, 2, towards_ten(model), after_step=after_step, evaluate=evaluate, eval_every=1,
        observe=lambda step, numbers: order.append("observe"),
    )  # fmt: skip
    assert order == ["after 1", "evaluate", "observe", "after 2", "evaluate", "observe"]
    assert best.score == 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_a_loss_that_is_no_number_stops_the_run_with_a_remedy_before_the_weights_are_touched(value):
    model = one_weight()
    losses = lambda batch, step: {"loss": model.weight.sum() + (value if step == 3 else 0)}  # noqa: E731
    weights = []
    with pytest.raises(FloatingPointError, match=rf"the loss is {value} at step 3 of finetune; lower learning_rate"):
        run(model, 9, losses, label="finetune", observe=lambda step, numbers: weights.append(model.weight.item()))
    assert model.weight.item() == weights[-1]


def test_a_gradient_that_is_no_number_stops_the_run_too():
    model = one_weight()
    losses = lambda batch, step: {"loss": model.weight.sum().abs().sqrt()}  # noqa: E731  # 0 has an infinite slope
    with pytest.raises(FloatingPointError, match=r"the gradient is (nan|inf) at step 1 of train; lower learning_rate"):
        run(model, 2, losses)
    assert model.weight.item() == 0.0


def test_fine_tuning_learns_the_labels_of_a_small_task():
    torch.manual_seed(0)
    config = CompactBertConfig(
        vocab_size=12, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=2,
        max_position_embeddings=8,
    )  # fmt: skip
    model = CompactBertForSequenceClassification(config)

    class Rows:
        """Is word 7 in the sentence?"""

        def from_step(self, step, num_steps):
            for number in range(step, num_steps):
                ids = torch.randint(1, 7, (16, 6), generator=torch.Generator().manual_seed(number))
                ids[::2, number % 6] = 7
                mask = torch.ones_like(ids)
                labels = (ids == 7).any(1).long()
                yield {"input_ids": ids, "attention_mask": mask, "token_type_ids": 0 * ids, "labels": labels}

    optimizer = adamw([model], 1e-2)
    fit(model, Rows(), supervised(model), optimizer, linear_schedule(optimizer, 60), 60)
    held_out = next(Rows().from_step(1000, 1001))
    labels = held_out.pop("labels")
    assert (model(**held_out).logits.argmax(-1) == labels).float().mean() > 0.9


def test_under_autocast_products_are_rounded_and_weights_and_losses_are_not():
    model, kinds = one_weight(1.0), []

    def pieces(batch, step):
        for part in (1.0, 2.0):
            output = model(torch.full((1, 1), 1 + 2**-10))  # bfloat16 has no such number
            kinds.append((output.dtype, torch.is_autocast_enabled("cpu")))
            yield {"loss": part * output.float().sum()}

    for dtype, slope in ((torch.bfloat16, 3.0), (None, 3 * (1 + 2**-10))):
        seen = {}
        run(model, 1, pieces, autocast=dtype, max_grad_norm=math.inf,
            observe=lambda step, numbers, seen=seen: seen.update(numbers))  # fmt: skip
        assert seen["train/grad_norm"] == pytest.approx(slope, rel=1e-6)
        assert model.weight.dtype == torch.float32
    assert kinds == [(torch.bfloat16, True)] * 2 + [(torch.float32, False)] * 2
    assert not torch.is_autocast_enabled("cpu")


def test_in_float16_a_step_that_overflows_is_left_out_and_the_next_has_a_smaller_scale():
    model, weights, norms = one_weight(1.0), [], []
    x = torch.full((1, 1), 2.0)  # times 65536 or 32768 no number in float16, times 16384 one

    def observe(step, numbers):
        weights.append(model.weight.item())
        norms.append(numbers["train/grad_norm"])

    run(model, 4, lambda batch, step: {"loss": model(x).sum()}, autocast=torch.float16, observe=observe)
    assert [math.isfinite(norm) for norm in norms] == [False, False, True, True]
    assert weights[:2] == [1.0, 1.0]
    assert norms[2:] == [2.0, 2.0]  # without the scale
    assert weights[2] == pytest.approx(1 - 0.25 / 3)  # clipped to 1


def test_a_gradient_that_overflows_at_any_scale_stops_the_run():
    model = one_weight(1.0)
    losses = lambda batch, step: {"loss": (model.weight - model.weight.detach()).sqrt().sum()}  # noqa: E731
    with pytest.raises(FloatingPointError, match="the gradient is"):
        run(model, 40, losses, autocast=torch.float16)
