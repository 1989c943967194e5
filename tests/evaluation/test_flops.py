import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
)

from compresskit.evaluation.flops import flops, macs
from compresskit.models import (
    CompactBertConfig,
    CompactBertForMaskedLM,
    CompactBertForQuestionAnswering,
    CompactBertForSequenceClassification,
    CompactBertModel,
    lengths,
)

BERT = {
    "pooler": BertModel,
    "sequence_classification": BertForSequenceClassification,
    "question_answering": BertForQuestionAnswering,
    "masked_lm": BertForMaskedLM,
    "next_sentence": BertForNextSentencePrediction,
    "pretraining": BertForPreTraining,
}
COMPACT = {
    "pooler": CompactBertModel,
    "sequence_classification": CompactBertForSequenceClassification,
    "question_answering": CompactBertForQuestionAnswering,
    "masked_lm": CompactBertForMaskedLM,
}


def bert_config(hidden: int, layers: int, heads: int, wide: int, **others) -> BertConfig:
    return BertConfig(
        vocab_size=50,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=wide,
        max_position_embeddings=64,
        **others,
    )


def counted(model_class, config, seq_len: int, batch_size: int = 1) -> int:
    model = model_class._from_config(config, attn_implementation="eager").eval()
    ids = torch.ones(batch_size, seq_len, dtype=torch.long)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=ids, attention_mask=ids)
    return counter.get_total_flops()


@pytest.mark.parametrize("head", BERT)
@pytest.mark.parametrize(
    ("hidden", "layers", "heads", "wide", "seq_len"), [(12, 1, 3, 7, 1), (24, 3, 2, 40, 17), (16, 2, 16, 64, 33)]
)
def test_the_formula_equals_the_counter_on_transformers_bert(head, hidden, layers, heads, wide, seq_len):
    config = bert_config(hidden, layers, heads, wide, num_labels=3 if head == "sequence_classification" else 2)
    assert flops(config, seq_len, head) == counted(BERT[head], config, seq_len)


@pytest.mark.parametrize("head", COMPACT)
def test_the_formula_equals_the_counter_with_other_sizes_in_every_layer(head):
    config = CompactBertConfig(
        vocab_size=50,
        hidden_size=20,
        num_hidden_layers=3,
        num_attention_heads=[2, 3, 1],
        qkv_size=[8, 15, 4],
        intermediate_size=[9, 31, 2],
        max_position_embeddings=32,
        num_labels=5,
    )
    assert flops(config, 19, head) == counted(COMPACT[head], config, 19)


@pytest.mark.parametrize("head", COMPACT)
def test_the_formula_equals_the_counter_with_formulas_and_a_trigram_embedding(head):
    config = CompactBertConfig(
        vocab_size=50,
        hidden_size=20,
        num_hidden_layers=2,
        num_attention_heads=2,
        qkv_size=16,
        intermediate_size=[17, 20],
        feed_forward=["linear3_2(gelu(linear3_2(max(x,tanh(x)),wb1)),wb2)", "linear1_1(mul(linear1_1(x,wb1),x),wb2)"],
        embedding="trigram",
        embedding_size=6,
        max_position_embeddings=32,
    )
    assert flops(config, 19, head) == counted(COMPACT[head], config, 19)


def test_the_number_is_per_example():
    config = bert_config(24, 2, 2, 40)
    assert counted(BertModel, config, 16, batch_size=4) == 4 * flops(config, 16, "pooler")


def test_bert_base_at_128_tokens_has_the_known_number():
    assert flops(BertConfig(), 128, "pooler") / 1e9 == pytest.approx(22.35, abs=0.005)


def test_the_encoder_alone_leaves_out_the_pooler():
    config = BertConfig()
    assert flops(config, 10, "pooler") - flops(config, 10, "encoder") == 2 * 768 * 768


@pytest.mark.parametrize(
    ("change", "head", "seq_len", "message"),
    [
        ({}, "span", 8, "unknown head 'span'; known heads: encoder, pooler"),
        ({}, "pooler", 0, "at least 1, not 0"),
    ],
)
def test_what_no_formula_covers_is_refused(change, head, seq_len, message):
    config = BertConfig()
    for name, value in change.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=message):
        flops(config, seq_len, head)


@pytest.mark.parametrize("length_config", [[20, 11, 11, 2], [0.9, 0.5, 0.3, 0.3], [24] * 4])
@pytest.mark.parametrize("head", ["question_answering", "sequence_classification"])
def test_dropped_tokens_are_not_counted(head, length_config):
    config = CompactBertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=20, qkv_size=8,
        max_position_embeddings=64, length_config=length_config,
    )  # fmt: skip
    kept = lengths.tokens_kept(length_config, 24)
    held = [before for before, after in itertools.pairwise([24, *kept]) if after < before]
    sums = sum(2 * 2 * n**2 for n in held)  # of the columns of 2 heads' maps: products to the counter, none to us
    assert flops(config, 24, head) == counted(COMPACT[head], config, 24) - sums
    plain = config.changed(length_config=None)
    assert flops(plain, 24, head, length_config) == flops(config, 24, head)
    assert macs(plain, 24, head, length_config) == macs(config, 24, head) <= macs(plain, 24, head)
