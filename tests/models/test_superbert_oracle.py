"""SuperBERT, its subnets and its teacher against numbers recorded from AutoTinyBERT's original code."""

from __future__ import annotations

import re
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from compresskit.models import (
    CompactBertConfig,
    CompactBertForPreTraining,
    CompactBertForSequenceClassification,
    CompactBertModel,
)
from compresskit.models.checkpoints import Checkpoint
from compresskit.models.elastic import extract, head_rows
from compresskit.models.heads import labelled_loss
from compresskit.training.pretrain import dense_fit, last_layer, last_layer_losses, masked_lm
from tests.oracle_cases import EXACT, Case, oracle


def checkpoint(case: Case, prefix: str = "sd.") -> Checkpoint:
    return Checkpoint.of(case.config(), case.arrays(prefix))


def inputs(case: Case) -> dict[str, Tensor]:
    return {name: case[f"in.{name}"] for name in ("input_ids", "attention_mask", "token_type_ids")}


def as_released(case: Case) -> dict:
    """AutoTinyBERT's pre-training handed on its mask by position, where the token types are expected."""
    return {**inputs(case), "token_type_ids": None, "faithful": True}


def shape(model: nn.Module, arch: dict) -> CompactBertConfig:
    """AutoTinyBERT's description of a subnet as our config."""
    return model.config.changed(
        num_hidden_layers=arch["sample_layer_num"],
        hidden_size=arch["sample_hidden_size"],
        num_attention_heads=arch["sample_num_attention_heads"],
        qkv_size=arch["sample_qkv_sizes"],
        intermediate_size=arch["sample_intermediate_sizes"],
    )


def shapes(case: Case, model: nn.Module) -> list[CompactBertConfig]:
    return [shape(model, entry["arch"]) for entry in case.value("archs")]


def original_name(name: str) -> str:
    """Our parameter name as AutoTinyBERT spells it."""
    return re.sub(r"_embeddings\.weight$", "_embeddings.embedding.weight", name).replace(
        "encoder.layer.", "encoder.layers."
    )


def check_all(case: Case, prefix: str, ours: dict[str, Tensor]) -> None:
    """Compare every recorded array whose name begins with `prefix` with ours of the same name."""
    for recorded in case.names(re.escape(prefix) + "(.+)"):
        case.check(recorded[0], ours[recorded[1]])


def check_gradients(case: Case, prefix: str, loss: Tensor, parameters: dict[str, Tensor]) -> None:
    recorded = case.names(re.escape(prefix) + "(.+)")
    of = [parameters[name[1]] for name in recorded]
    for name, gradient in zip(
        recorded, torch.autograd.grad(loss, of, allow_unused=True, materialize_grads=True), strict=True
    ):
        case.check(name[0], gradient)


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("autotinybert", "superbert_mlm"), ids=str)
def test_masked_lm_of_subnets_is_that_of_the_original_code_also_as_released(case):
    model = checkpoint(case).model(CompactBertForPreTraining)
    parameters = {original_name(name): parameter for name, parameter in model.named_parameters()}
    labels = case["in.masked_lm_labels"]
    labels[labels == -1] = -100
    batch = {**inputs(case), "labels": labels}
    for i, subnet in enumerate(shapes(case, model)):
        run = {"labels": labels, "subnet": subnet, "output_hidden_states": True, "output_attention_scores": True}
        output = model(**inputs(case), **run)
        released = model(**as_released(case), **run)
        ours = {
            "mlm_logits": output.prediction_logits,
            "nsp_logits": output.seq_relationship_logits,
            "pooled": model.bert(**inputs(case), subnet=subnet).pooler_output,
            "as_released.mlm_logits": released.prediction_logits,
        }
        ours |= {f"attn_score.{layer}": scores for layer, scores in enumerate(output.attention_scores)}
        ours |= {f"hidden.{layer}": states for layer, states in enumerate(output.hidden_states)}
        check_all(case, f"out.{i}.", ours)
        for name, faithful in (("mlm_loss", False), ("as_released_mlm_loss", True)):
            learn = masked_lm(model, labelled_loss, lambda step, subnet=subnet: [subnet], faithful=faithful)
            (piece,) = learn(batch, 1)
            case.check_value("archs", i, name, got=piece["loss"].item())
            if not faithful:
                check_gradients(case, f"grad.{i}.", piece["loss"], parameters)
        numbers = sum(parameter.numel() for parameter in extract(model.bert, subnet).parameters())
        case.check_value("archs", i, "sampled_params_backbone", got=numbers)


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("autotinybert", "superbert_kd"), ids=str)
def test_distillation_of_subnets_is_that_of_the_original_code_also_as_released(case):
    source = checkpoint(case)
    model = source.model(CompactBertModel)
    teacher_width = case["in.teacher_rep"].shape[-1]
    project, kept = dense_fit(model.config.hidden_size, teacher_width, 0.02, source.training_only)
    assert kept
    parameters = {f"bert.{original_name(name)}": parameter for name, parameter in model.named_parameters()}
    parameters |= {f"bert.dense_fit.{name}": parameter for name, parameter in project.named_parameters()}
    # a teacher that says what was recorded, however it is called
    said = SimpleNamespace(attention_scores=(case["in.teacher_att"],), last_hidden_state=case["in.teacher_rep"])
    teacher = Mock(config=model.config, base_model=Mock(parameters=model.parameters, return_value=said))

    for i, subnet in enumerate(shapes(case, model)):
        output = model(**inputs(case), subnet=subnet, output_hidden_states=True, output_attention_scores=True)
        ours = {"rep_fit": project(output.last_hidden_state), "last_attn_score": output.attention_scores[-1]}
        ours |= {f"hidden.{layer}": states for layer, states in enumerate(output.hidden_states)}
        check_all(case, f"out.{i}.", ours)
        attention, hidden = last_layer_losses(output, said, project, case["in.attention_mask"], faithful=True)
        case.check_value("archs", i, "att_loss", got=attention.item())
        case.check_value("archs", i, "rep_loss", got=hidden.item())
        case.check_value("archs", i, "loss", got=(attention + hidden).item())
        check_gradients(case, f"grad.{i}.", attention + hidden, parameters)
        learn = last_layer(model, teacher, project, lambda step, subnet=subnet: [subnet], faithful=True)
        (piece,) = learn(inputs(case), 1)
        case.check_value("archs", i, "as_released_att_loss", got=piece["attention_loss"].item())
        case.check_value("archs", i, "as_released_rep_loss", got=piece["hidden_loss"].item())
        rows = head_rows(model.config, subnet, 0)
        every = torch.arange(model.config.per_layer("qkv_size")[0])
        rows = every[:rows].tolist() if isinstance(rows, int) else rows.cut(every).tolist()
        case.check_value("archs", i, "qkv_row_index", got=rows)


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("autotinybert", "superbert_classifier"), ids=str)
def test_a_subnets_classification_is_that_of_the_original_code(case):
    model = checkpoint(case).model(CompactBertForSequenceClassification)
    output = model(**inputs(case), subnet=shape(model, case.value("arch")))
    check_all(case, "out.", {"logits": output.logits})


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("autotinybert", "teacher_bert"), ids=str)
def test_the_teachers_last_layer_is_that_of_the_original_code_by_name_and_as_called(case):
    model = checkpoint(case).model(CompactBertModel)
    for call, given in {"by_name": inputs(case), "as_called": as_released(case)}.items():
        output = model(**given, output_attention_scores=True)
        check_all(case, f"out.{call}.", {"att": output.attention_scores[-1], "rep": output.last_hidden_state})


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("autotinybert", "extract_mlm") + oracle("autotinybert", "extract_kd"), ids=str)
def test_an_extracted_subnet_has_the_weights_and_outputs_of_the_original_extractor(case):
    model = checkpoint(case, "super_sd.").model(CompactBertModel)
    super_names = [name.removeprefix("bert.") for name in case.arrays("super_sd.") if name.startswith("bert.")]
    for i, subnet in enumerate(shapes(case, model)):
        small = extract(model, subnet)
        weights = {original_name(name): tensor for name, tensor in small.state_dict().items()}
        for recorded in case.names(rf"out\.{i}\.sd\.(.+)"):
            case.check(recorded[0], weights[recorded[1]], tolerance=case.tolerance("tolerance_state_dict"))
        case.check_value("archs", i, "keys", got=list(weights))
        beyond = [
            f"encoder.layers.{layer}." for layer in range(subnet.num_hidden_layers, model.config.num_hidden_layers)
        ]
        left = {name for name in super_names if not name.startswith(tuple(beyond))} - weights.keys()
        case.check_value(
            "archs", i, "missing_when_loaded_in_super_class", got=sorted(left, reverse=True)
        )  # weight, bias

        output, in_place = small(**inputs(case)), model(**inputs(case), subnet=subnet)
        case.check(f"out.{i}.sequence", output.last_hidden_state)
        case.check(f"out.{i}.pooled", output.pooler_output)
        difference = (output.last_hidden_state - in_place.last_hidden_state).abs().max().item()
        case.check_value("archs", i, "max_abs_diff_sub_vs_super_forward", got=difference, tolerance=EXACT)
