import pandas as pd
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForPreTraining, BertForSequenceClassification

from compresskit.evaluation.sparsity import report
from compresskit.pruning.masks import MagnitudePruner

CONFIG = BertConfig(
    vocab_size=40,
    hidden_size=12,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=20,
    max_position_embeddings=16,
)
PRUNABLE = 2 * (4 * 12 * 12 + 2 * 12 * 20)
ENCODER = PRUNABLE + 2 * (4 * 12 + 20 + 12 + 4 * 12)


def bert(model_class=BertForSequenceClassification, sparsity: float = 0.75) -> nn.Module:
    """Pruned, and with no other zero anywhere."""
    torch.manual_seed(0)
    model = model_class(CONFIG)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.rand(p.shape) + 0.1)
    MagnitudePruner(model, sparsity, 0, 1).step(1)
    return model


def test_each_share_has_its_own_denominator():
    model = bert()
    found, size = report(model), sum(p.numel() for p in model.parameters())
    zeros = PRUNABLE * 3 // 4
    assert found.sparsity == pytest.approx(0.75)
    assert found.encoder_sparsity == pytest.approx(zeros / ENCODER)
    assert found.model_sparsity == pytest.approx(zeros / size)
    assert found.totals["size"].to_dict() == {
        "sparsity": PRUNABLE,
        "encoder_sparsity": ENCODER,
        "model_sparsity": size,
        "checkpoint_sparsity": size,
    }
    assert (found.totals["zeros"] == zeros).all()
    assert (found.totals["nonzeros"] == found.totals["size"] - zeros).all()


def test_what_only_training_needs_counts_in_the_checkpoint_alone():
    model = bert()
    state = model.state_dict() | {"fit_dense.weight": torch.zeros(6, 12), "fit_denses.0.bias": torch.ones(8)}
    found = report(state)
    assert found.model_sparsity == report(model).model_sparsity
    assert found.totals.at["checkpoint_sparsity", "size"] == found.totals.at["model_sparsity", "size"] + 80
    assert found.totals.at["checkpoint_sparsity", "zeros"] == found.totals.at["model_sparsity", "zeros"] + 72


def test_the_table_has_kind_layer_and_shape_of_every_parameter():
    model = bert()
    matrices = report(model).matrices.set_index("name")
    assert set(matrices.index) == {name for name, _ in model.named_parameters()}
    one = matrices.loc["bert.encoder.layer.1.output.dense.weight"]
    assert (one["kind"], one["layer"], one["rows"], one["cols"], one["size"]) == ("output", 1, 12, 20, 240)
    assert (one["zeros"], one["sparsity"]) == (180, 0.75)
    assert matrices["kind"].value_counts().to_dict() == {
        "query": 2,
        "key": 2,
        "value": 2,
        "attention_output": 2,
        "intermediate": 2,
        "output": 2,
        "bias": 12,
        "layer_norm": 10,
        "embedding": 3,
        "pooler": 2,
        "head": 2,
    }
    assert pd.isna(matrices.loc["classifier.weight", "layer"])
    assert (matrices.loc["classifier.bias", "rows"], matrices.loc["classifier.bias", "cols"]) == (2, 1)


def test_bytes_follow_the_formula_and_never_exceed_the_dense_ones():
    matrices = report(bert(sparsity=0.75)).matrices.set_index("name")
    pruned = matrices.loc["bert.encoder.layer.0.intermediate.dense.weight"]  # 20 x 12, 60 left
    assert pruned["dense_bytes"] == 240 * 4
    assert pruned["sparse_bytes"] == 60 * (4 + 2) + 21 * 4
    untouched = matrices.loc["bert.embeddings.word_embeddings.weight"]
    assert untouched["sparse_bytes"] == untouched["dense_bytes"] == 480 * 4
    half = report({"encoder.layer.0.output.dense.weight": torch.eye(100, dtype=torch.float16)}).matrices.iloc[0]
    assert (half["dense_bytes"], half["sparse_bytes"]) == (20_000, 100 * (2 + 2) + 101 * 4)


def test_columns_beyond_16_bits_stay_dense():
    wide = report({"weight": torch.zeros(2, 65_537)}).matrices.iloc[0]
    assert wide["sparse_bytes"] == wide["dense_bytes"]
    assert report({"weight": torch.zeros(2, 65_536)}).matrices.iloc[0]["sparse_bytes"] == 12


def test_tied_weights_count_once_in_a_module_and_in_its_state_dict():
    model = bert(BertForPreTraining)
    of_module, of_state = report(model), report(model.state_dict())
    assert "cls.predictions.decoder.weight" in model.state_dict()
    assert of_module.totals.at["model_sparsity", "size"] == sum(p.numel() for p in model.parameters())
    assert of_state.totals.at["model_sparsity", "size"] == of_module.totals.at["model_sparsity", "size"]


def test_a_state_dict_counts_no_position_ids():
    found = report({"weight": torch.ones(2, 3), "position_ids": torch.zeros(1, 9, dtype=torch.long)})
    assert found.matrices["name"].tolist() == ["weight"]


def test_a_model_without_prunable_matrices_has_no_sparsity_but_the_rest():
    found = report(nn.Linear(2, 3))
    assert found.sparsity != found.sparsity
    assert found.totals.at["model_sparsity", "size"] == 9


def test_nothing_to_count_is_an_error():
    with pytest.raises(ValueError, match="no parameters to count"):
        report({})
