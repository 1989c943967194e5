"""DistilBERT and the question-answering releases of the length-adaptive works load into the encoder."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from compresskit.models import (
    CompactBertForMaskedLM,
    CompactBertForQuestionAnswering,
    CompactBertForSequenceClassification,
    CompactBertModel,
    checkpoints,
    export,
)

SHAPE = {"vocab_size": 60, "dim": 24, "n_layers": 3, "n_heads": 4, "hidden_dim": 40, "max_position_embeddings": 40}
IDS = torch.randint(1, 60, (2, 30), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(30) < torch.tensor([[30], [13]])).long()
HEADS = {
    "DistilBertModel": (CompactBertModel, ["last_hidden_state"]),
    "DistilBertForMaskedLM": (CompactBertForMaskedLM, ["logits"]),
    "DistilBertForQuestionAnswering": (CompactBertForQuestionAnswering, ["start_logits", "end_logits"]),
    "DistilBertForSequenceClassification": (CompactBertForSequenceClassification, ["logits"]),
}


def distilbert(name: str, folder, **changes):
    torch.manual_seed(0)
    model = getattr(transformers, name)(transformers.DistilBertConfig(**{**SHAPE, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    return model


@torch.no_grad()
@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("name", HEADS)
def test_distilbert_gives_transformers_numbers_whatever_the_token_types(name, activation, tmp_path):
    ours, outputs = HEADS[name]
    right = distilbert(name, tmp_path, activation=activation, num_labels=3 if "Sequence" in name else 2)
    model = checkpoints.load(ours, tmp_path)
    expected = right(input_ids=IDS, attention_mask=MASK)
    for types in (None, torch.zeros_like(IDS), IDS % 2):
        got = model(IDS, MASK, types)
        for output in outputs:
            theirs, mine = expected[output], got[output]
            if theirs.shape[:2] == MASK.shape:
                theirs, mine = theirs[MASK.bool()], mine[MASK.bool()]
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)
    assert model.config.hidden_dropout_prob == 0.1


@torch.no_grad()
def test_distilbert_takes_length_configs_saves_as_ours_and_is_no_plain_bert(tmp_path):
    distilbert("DistilBertForSequenceClassification", tmp_path / "theirs")
    model = checkpoints.load(CompactBertForSequenceClassification, tmp_path / "theirs")
    assert model.config.classifier_dropout == 0.2
    checkpoints.save(model, tmp_path / "ours")
    again = checkpoints.load(CompactBertForSequenceClassification, tmp_path / "ours")
    for lengths in ((), (20, 8, 3)):
        first, second = (m(IDS, MASK, length_config=lengths).logits for m in (model, again))
        assert torch.equal(first, second)
    assert not torch.allclose(first, model(IDS, MASK).logits, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="plain BERT has no pooler_act 'relu'"):
        export.to_bert(model)
    again.config.pooler_act, again.config.length_config = "tanh", [20, 8, 3]
    with pytest.raises(ValueError, match=r"plain BERT has no length_config \[20, 8, 3\]"):
        export.bert_config(again.config)


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("pooler", [False, True])
def test_a_question_answering_release_loads_with_and_without_pooler_and_projection(projection, pooler, tmp_path):
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
        max_position_embeddings=40,
    )  # fmt: skip
    torch.manual_seed(0)
    right = transformers.BertForQuestionAnswering(config).eval()
    weights = {**right.state_dict(), "bert.embeddings.position_ids": torch.arange(40)[None]}
    if pooler:
        weights |= {"bert.pooler.dense.weight": torch.ones(24, 24), "bert.pooler.dense.bias": torch.ones(24)}
    if projection:
        weights |= {"fit_dense.weight": torch.ones(30, 24), "fit_dense.bias": torch.ones(30)}
    fields = config.to_dict()
    if projection:  # a student's, whose config comes from TinyBERT's code
        fields.pop("model_type")
    (tmp_path / "config.json").write_text(json.dumps(fields))
    torch.save(weights, tmp_path / "pytorch_model.bin")
    found = checkpoints.read(tmp_path)
    model = found.model(CompactBertForQuestionAnswering)
    with torch.no_grad():
        got, expected = model(IDS, MASK), right(input_ids=IDS, attention_mask=MASK)
    torch.testing.assert_close(got.start_logits[MASK.bool()], expected.start_logits[MASK.bool()], atol=1e-5, rtol=0)
    assert set(found.training_only) == ({"fit_dense.weight", "fit_dense.bias"} if projection else set())
