import pandas as pd
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForPreTraining, BertForSequenceClassification

from compresskit.evaluation.flops import flops
from compresskit.evaluation.sparsity import expected_speedup, report
from compresskit.pruning.masks import MagnitudePruner, prunable

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


def test_kinds_and_layers_have_their_own_denominators_and_add_up():
    model = bert(sparsity=0.75)
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight.zero_()
    found = report(model)
    sums = ["size", "zeros", "nonzeros", "dense_bytes", "sparse_bytes"]
    assert found.kinds[sums].sum().to_dict() == found.totals.loc["checkpoint_sparsity", sums].to_dict()
    assert found.layers[sums].sum().to_dict() == found.totals.loc["sparsity", sums].to_dict()
    assert list(found.kinds.index[:6]) == ["query", "key", "value", "attention_output", "intermediate", "output"]
    assert found.kinds.loc["output", ["size", "zeros"]].tolist() == [480, 180 + 240]
    assert found.kinds.at["bias", "size"] == ENCODER - PRUNABLE - 2 * 4 * 12
    assert found.layers.index.tolist() == [0, 1]
    assert found.layers["size"].tolist() == [PRUNABLE // 2] * 2
    assert found.layers["sparsity"].tolist() == [0.75, (0.75 * (PRUNABLE // 2 - 240) + 240) / (PRUNABLE // 2)]


def test_the_expected_speedup_counts_products_with_nonzeros_and_leaves_attention_dense():
    model = bert(sparsity=0.75)
    speed = expected_speedup(report(model), CONFIG, seq_len=8)
    attention = 2 * 4 * 8**2 * 12
    assert speed.loc["prunable", ["flops", "sparse_flops", "expected_speedup"]].tolist() == [
        2 * 8 * PRUNABLE,
        2 * 8 * PRUNABLE // 4,
        4.0,
    ]
    assert speed.at["encoder", "flops"] == 2 * 8 * PRUNABLE + attention == flops(CONFIG, 8, "encoder")
    assert speed.at["encoder", "sparse_flops"] == 2 * 8 * PRUNABLE // 4 + attention
    assert speed.at["encoder", "expected_speedup"] == pytest.approx(
        (16 * PRUNABLE + attention) / (4 * PRUNABLE + attention)
    )


def test_bert_base_at_95_percent_has_the_published_shares_of_the_whole():
    """With fit_dense, as SparseBERT's script counts, 0.733 of everything is zero and 28.8 M of the model are left."""
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in BertForSequenceClassification(BertConfig()).named_parameters()}
    weights = {name: torch.ones(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    for name in prunable(weights):
        weights[name].flatten()[: int(0.95 * weights[name].numel())] = 0
    fit_dense = {"fit_dense.weight": torch.ones(768, 768), "fit_dense.bias": torch.zeros(768)}
    found = report({**weights, **fit_dense})
    assert len(prunable(weights)) == 72
    assert found.totals.at["sparsity", "size"] == 84_934_656
    assert found.sparsity == pytest.approx(0.95, abs=1e-6)
    assert round(found.totals.at["checkpoint_sparsity", "sparsity"], 3) == 0.733
    assert round(found.model_sparsity, 3) == 0.737
    assert round(found.totals.at["model_sparsity", "nonzeros"] / 1e6, 1) == 28.8
    speed = expected_speedup(found, BertConfig(), 128)
    assert speed.at["prunable", "expected_speedup"] == pytest.approx(20, rel=1e-4)
    assert speed.at["encoder", "expected_speedup"] == pytest.approx(13.2, abs=0.1)
