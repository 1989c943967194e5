"""Layer mappings, and both steps of distillation against TinyBERT's formulas from weights and hidden states."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import Tensor, nn

from compresskit.models import CompactBertConfig, CompactBertForSequenceClassification
from compresskit.training import distill, prune

BATCH = {
    "input_ids": torch.tensor([[2, 7, 11, 3, 0, 0], [2, 9, 9, 14, 5, 3], [2, 4, 4, 3, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]),
    "token_type_ids": torch.tensor([[0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0]]),
    "labels": torch.tensor([0, 1, 2]),
}


def task_model(seed: int, layers: int, hidden: int, heads: int = 2, num_labels: int = 3, **fields):
    torch.manual_seed(seed)
    config = CompactBertConfig(
        vocab_size=20, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=12,
        max_position_embeddings=8, num_labels=num_labels, hidden_dropout_prob=0, attention_probs_dropout_prob=0,
        **fields,
    )  # fmt: skip
    model = CompactBertForSequenceClassification(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


# ---- mappings


def test_the_uniform_mapping_takes_every_rth_layer():
    assert distill.uniform_mapping(4, 12) == [0, 3, 6, 9, 12]
    assert distill.uniform_mapping(3, 6) == [0, 2, 4, 6]
    assert distill.uniform_mapping(5, 5) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("student", "teacher"), [(4, 6), (5, 12), (7, 6)])
def test_a_teacher_that_is_no_multiple_asks_for_an_explicit_mapping(student, teacher):
    with pytest.raises(
        ValueError, match=f"{teacher} teacher layers are no multiple of {student} .*; give layer_mapping"
    ):
        distill.uniform_mapping(student, teacher)


@pytest.mark.parametrize("mapping", [[0, 2, 3, 5, 6], [0, 6, 6, 1, 2], range(5)], ids=str)
def test_explicit_mappings_may_skip_and_repeat(mapping):
    distill.check_mapping(mapping, 4, 6)


@pytest.mark.parametrize(
    "mapping",
    [[], [0, 1, 2, 3], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 7], [0, 0, 2, 3, 4], [1, 2, 3, 4, 5], [0, -1, 2, 3, 4]],
    ids=str,
)
def test_a_mapping_with_other_or_wrong_layers_is_refused(mapping):
    with pytest.raises(
        ValueError, match=r"expected 5 numbers: 0 for the embedding, then one from 1 to 6 per student layer"
    ):
        distill.check_mapping(mapping, 4, 6)


def test_only_unequal_widths_need_a_projection():
    assert distill.projection(8, 8, 3) is None
    assert distill.projection(6, 8, 3).weight.shape == (8, 6)
    assert distill.projection(8, 8, 3, always=True).weight.shape == (8, 8)
    assert [p.weight.shape for p in distill.projection(6, 8, 3, per_layer=True)] == [(8, 6)] * 3


@pytest.mark.parametrize("per_layer", [False, True])
def test_a_released_projection_is_taken_where_it_has_the_shape_and_else_missed_aloud(per_layer, caplog):
    made = distill.projection(6, 8, 3, per_layer=per_layer)
    prefix = "fit_denses." if per_layer else "fit_dense."
    released = {prefix + name: torch.full_like(tensor, 0.5) for name, tensor in made.state_dict().items()}
    assert distill.released_form(made).keys() == released.keys()
    taken = distill.projection(6, 8, 3, per_layer=per_layer, released=released)
    assert all((tensor == 0.5).all() for tensor in taken.state_dict().values())
    assert not caplog.records
    distill.projection(6, 8, 3, per_layer=not per_layer, released=released)
    assert f"({prefix}" in caplog.text
    assert "starts at random; see the parameter projection" in caplog.text
    for others in ({"width": 5, "states": 3}, {"width": 6, "states": 4} if per_layer else {"width": 7, "states": 3}):
        other = distill.projection(others["width"], 8, others["states"], per_layer=per_layer, released=released)
        assert not any((tensor == 0.5).all() for tensor in other.state_dict().values())


# ---- the first step


def scores(model: nn.Module, states: tuple[Tensor, ...], layer: int) -> Tensor:
    """Q·Kᵀ/√D from the layer's weights, masked keys lowered by 10⁴; layers from 1."""
    attention, heads = model.bert.encoder.layer[layer - 1].attention.self, model.config.num_attention_heads
    q, k = (
        (states[layer - 1] @ m.weight.T + m.bias).unflatten(-1, (heads, -1)) for m in (attention.query, attention.key)
    )
    raw = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    return raw + (1 - BATCH["attention_mask"])[:, None, None, :] * -10_000.0


def by_formula(student, teacher, mapping: list[int], project, padded: bool = False) -> tuple[Tensor, Tensor]:
    """Attention and hidden-state loss, term by term, as means over real tokens, or over padding too."""
    real = BATCH["attention_mask"].bool()
    pairs = (real[:, None, :, None] & real[:, None, None, :]).expand(-1, student.config.num_attention_heads, -1, -1)
    own, theirs = (m.bert(**distill.inputs(BATCH), output_hidden_states=True).hidden_states for m in (student, teacher))
    attention = hidden = torch.zeros((), dtype=torch.float64)
    for i, t in enumerate(mapping):
        mapped = own[i] if project is None else own[i] @ project.weight.T + project.bias
        squares = (mapped - theirs[t]).square()
        hidden = hidden + (squares if padded else squares[real]).mean()
        if i:
            z = [torch.where(s > -100, s, 0.0) for s in (scores(student, own, i), scores(teacher, theirs, t))]
            squares = (z[0] - z[1]).square()
            attention = attention + (squares if padded else squares[pairs]).mean()
    return attention, hidden


@pytest.mark.parametrize("padded", [False, True], ids=["real tokens", "padding too"])
@pytest.mark.parametrize(("student_width", "mapping"), [(8, [0, 2, 4]), (6, [0, 2, 4]), (6, [0, 3, 1])], ids=str)
def test_the_intermediate_loss_and_its_gradients_are_tinyberts(student_width, mapping, padded):
    teacher, student = task_model(0, 4, 8), task_model(1, 2, student_width)
    project = distill.projection(student_width, 8, 3)
    project = project and project.double()
    values = distill.intermediate(student, teacher, mapping, project, padded)(BATCH, 1)
    attention, hidden = by_formula(student, teacher, mapping, project, padded)
    torch.testing.assert_close(values["attention_loss"], attention.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(values["hidden_loss"], hidden.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(values["loss"], attention + hidden, rtol=0, atol=1e-12)

    learning = [*student.parameters(), *(project.parameters() if project else ())]
    found, expected = (
        torch.autograd.grad(loss, learning, allow_unused=True) for loss in (values["loss"], attention + hidden)
    )
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    untouched = {name for (name, _), grad in zip(student.named_parameters(), found, strict=False) if grad is None}
    assert untouched == {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"}


def test_the_teacher_is_in_evaluation_mode_and_gets_no_gradient():
    teacher = task_model(0, 4, 8).train()
    losses = distill.intermediate(task_model(1, 2, 8), teacher, [0, 2, 4], None)
    assert not teacher.training
    losses(BATCH, 1)["loss"].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize(
    ("student", "mapping", "project", "message"),
    [
        (
            {"layers": 2, "hidden": 6},
            [0, 2, 4],
            None,
            "hidden_size is 6 in the student and 8 in the teacher; a projection",
        ),
        (
            {"layers": 2, "hidden": 8, "heads": 4},
            [0, 2, 4],
            None,
            "student layer 1 has 4 attention heads, teacher layer 2 has 2",
        ),
        (
            {"layers": 2, "hidden": 8, "heads": 1},
            [0, 2, 4],
            None,
            "student layer 1 has 1 attention heads, teacher layer 2 has 2",
        ),
        ({"layers": 2, "hidden": 8}, [0, 2], None, "expected 3 numbers"),
    ],
    ids=str,
)
def test_models_that_cannot_be_compared_are_refused_before_any_step(student, mapping, project, message):
    with pytest.raises(ValueError, match=message):
        distill.intermediate(task_model(1, **student), task_model(0, 4, 8), mapping, project)


def test_mean_losses_are_those_over_rows_of_the_student_in_evaluation_mode():
    teacher, student = task_model(0, 4, 8), task_model(1, 2, 8)
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.9
    parts = [{name: tensor[rows] for name, tensor in BATCH.items()} for rows in (slice(0, 1), slice(1, 3))]
    losses = distill.intermediate(student, teacher, [0, 2, 4], None)
    student.train()
    means = distill.mean_losses(student, losses, parts)
    assert student.training
    student.eval()
    for name, value in means.items():
        first, second = (losses(part, 0)[name].item() for part in parts)
        assert value == pytest.approx((first + 2 * second) / 3, rel=1e-12)


# ---- the second step


def test_the_prediction_loss_is_the_teachers_softened_answer():
    teacher, student = task_model(0, 4, 8), task_model(1, 2, 6)
    values = distill.prediction(student, teacher, temperature=2.0)(BATCH, 1)
    t, s = ((m(**distill.inputs(BATCH)).logits / 2.0).softmax(-1) for m in (teacher, student))
    torch.testing.assert_close(values["loss"], -(t * s.log()).sum() / 9, rtol=0, atol=1e-12)
    values["loss"].backward()
    assert student.classifier.weight.grad.any()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_regression_learns_from_the_gold_scores_alone():
    teacher, student = task_model(0, 4, 8, num_labels=1), task_model(1, 2, 6, num_labels=1)
    gold = torch.tensor([0.5, 3.0, 4.5])
    loss = distill.prediction(student, teacher)({**BATCH, "labels": gold}, 1)["loss"]
    expected = (student(**distill.inputs(BATCH)).logits[:, 0] - gold).square().mean()
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)


def test_other_labels_of_the_teacher_are_refused():
    with pytest.raises(
        ValueError, match="the student has 3 labels and the teacher 2; fine-tune the teacher on this task"
    ):
        distill.prediction(task_model(1, 2, 6), task_model(0, 4, 8, num_labels=2))


# ---- pruning while distilling


@pytest.mark.parametrize("num_labels", [3, 1], ids=["classification", "regression"])
def test_pruning_while_distilling_has_all_three_losses_with_weight_one(num_labels):
    teacher, student = task_model(0, 3, 8, num_labels=num_labels), task_model(1, 3, 8, num_labels=num_labels)
    batch = BATCH if num_labels == 3 else {**BATCH, "labels": torch.tensor([0.5, 3.0, 4.5])}
    values = prune.all_layers(student, teacher, temperature=0.7)(batch, 1)
    attention, hidden = by_formula(student, teacher, [0, 1, 2, 3], None)
    answer = distill.prediction(student, teacher, 0.7)(batch, 1)["loss"]
    parts = {
        "attention_loss": attention,
        "hidden_loss": hidden,
        "prediction_loss": answer,
        "loss": attention + hidden + answer,
    }
    assert values.keys() == parts.keys()
    for name, expected in parts.items():
        torch.testing.assert_close(values[name].detach(), expected.detach(), rtol=0, atol=1e-12, msg=name)
    assert values["loss"].requires_grad


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"layers": 2, "hidden": 8}, "num_hidden_layers is 3 in the pruned model and 2 in the teacher"),
        ({"layers": 3, "hidden": 6}, "hidden_size is 8 in the pruned model and 6 in the teacher"),
        ({"layers": 3, "hidden": 8, "heads": 4}, "student layer 1 has 2 attention heads, teacher layer 1 has 4"),
        ({"layers": 3, "hidden": 8, "num_labels": 2}, "the student has 3 labels and the teacher 2"),
    ],
    ids=str,
)
def test_pruning_needs_a_teacher_of_the_same_shape(teacher, message):
    with pytest.raises(ValueError, match=message):
        prune.all_layers(task_model(1, 3, 8), task_model(0, **teacher))


def test_the_models_of_these_tests_are_berts():
    ours = task_model(0, 2, 8)
    theirs = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=20,
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=12,
            max_position_embeddings=8,
            num_labels=3,
        )
    ).double()
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(**BATCH).logits, theirs.eval()(**BATCH).logits, rtol=0, atol=1e-12)


def test_layers_and_answers_together_weigh_as_their_ratios_say():
    teacher, student = task_model(0, 4, 8), task_model(1, 2, 6)
    torch.manual_seed(2)
    project = nn.Linear(6, 8).double()
    layers = distill.intermediate(student, teacher, [0, 2, 4], project)(BATCH, 1)
    answers = distill.prediction(student, teacher, 2.0)(BATCH, 1)["loss"]
    ratios = {"hidden_ratio": 0.25, "prediction_ratio": 3.0, "temperature": 2.0}
    found = distill.together(student, teacher, [0, 2, 4], project, **ratios)(BATCH, 1)
    torch.testing.assert_close(found["loss"], 0.25 * layers["loss"] + 3 * answers)
    torch.testing.assert_close(found["attention_loss"], layers["attention_loss"])
    torch.testing.assert_close(found["prediction_loss"], answers.detach())
    with pytest.raises(ValueError, match="the student has 3 labels and the teacher 2"):
        distill.together(student, task_model(0, 4, 8, num_labels=2), [0, 2, 4], project)


def test_the_network_of_a_step_learns_and_the_rest_of_the_student_does_not():
    teacher, student = task_model(0, 4, 8), task_model(1, 2, 8)
    narrow = student.config.changed(intermediate_size=5)
    losses = distill.together(student, teacher, [0, 2, 4], None, network=lambda step: narrow if step == 2 else None)
    whole, part = (losses(BATCH, step)["loss"] for step in (1, 2))
    assert not torch.isclose(whole, part)
    part.backward()
    gradient = student.bert.encoder.layer[0].intermediate.dense.weight.grad
    assert (gradient[:5] != 0).any()
    assert (gradient[5:] == 0).all()


def test_layers_are_compared_in_full_precision_while_products_are_rounded():
    teacher, student = (model.float() for model in (task_model(0, 4, 8), task_model(1, 2, 8)))
    losses = distill.intermediate(student, teacher, [0, 2, 4], None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = losses(BATCH, 1)
    exact = losses(BATCH, 1)
    assert {value.dtype for value in rounded.values()} == {torch.float32}
    torch.testing.assert_close(rounded["loss"], exact["loss"], rtol=0.05, atol=0)
