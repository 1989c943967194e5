"""Our encoder and heads against transformers' BERT with the same weights: outputs, losses, gradients."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compresskit import models
from compresskit.models import CompactBertConfig, CompactBertModel
from compresskit.models.heads import labelled_loss

SIZES = [  # hidden, layers, heads, feed-forward, vocabulary, batch, sequence
    (64, 2, 4, 128, 99, 4, 17),
    (64, 2, 4, 128, 99, 1, 1),
    (21, 3, 7, 5, 13, 3, 31),
    (7, 1, 1, 9, 11, 5, 2),
    (1, 1, 1, 1, 3, 2, 3),
    (312, 2, 12, 600, 50, 2, 33),
]
HEADS = {  # class name without "Bert", labels of the config, and how to draw labels
    "Model": (2, lambda b, s, v, g: {}),
    "ForMaskedLM": (2, lambda b, s, v, g: {"labels": ignored(torch.randint(v, (b, s), generator=g), g)}),
    "ForPreTraining": (
        2,
        lambda b, s, v, g: {
            "labels": ignored(torch.randint(v, (b, s), generator=g), g),
            "next_sentence_label": torch.randint(2, (b,), generator=g),
        },
    ),
    "ForNextSentencePrediction": (2, lambda b, s, v, g: {"labels": torch.randint(2, (b,), generator=g)}),
    "ForSequenceClassification": (3, lambda b, s, v, g: {"labels": torch.randint(3, (b,), generator=g)}),
    "ForSequenceClassification-regression": (1, lambda b, s, v, g: {"labels": torch.rand(b, generator=g) * 5}),
    "ForQuestionAnswering": (  # one position beyond the sequence: no label
        2,
        lambda b, s, v, g: {
            "start_positions": torch.randint(s, (b,), generator=g),
            "end_positions": torch.cat(
                [torch.randint(s, (b - 1,), generator=g), torch.tensor([s + 3 if b > 1 else 0])]
            ),
        },
    ),
}


def ignored(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Most labels turned to -100, the first one kept."""
    labels[torch.rand(labels.shape, generator=generator) > 0.3] = -100
    labels[0, 0] = 1
    return labels


def pair(head: str, size: tuple, dtype: torch.dtype, dropout: float = 0.1) -> tuple[nn.Module, nn.Module]:
    """Ours and theirs with equal weights of standard deviation 0.2, LayerNorms and biases random too."""
    hidden, layers, heads, wide, vocab, _, _ = size
    fields = {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": wide,
        "vocab_size": vocab, "max_position_embeddings": 64, "num_labels": HEADS[head][0],
        "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout,
    }  # fmt: skip
    name = head.split("-")[0]
    theirs = getattr(transformers, f"Bert{name}")(transformers.BertConfig(**fields, attn_implementation="eager"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter_name, parameter in theirs.named_parameters():
            mean = 1.0 if parameter_name.endswith("LayerNorm.weight") else 0.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + mean)
    ours = getattr(models, f"CompactBert{name}")(CompactBertConfig(**fields))
    ours.load_state_dict(theirs.state_dict())
    return ours.to(dtype), theirs.to(dtype)


def batch(size: tuple, seed: int = 1) -> dict[str, Tensor]:
    """Random ids and types; ragged masks, and the last row without any real token."""
    *_, vocab, rows, length = size
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, length + 1, (rows, 1), generator=generator)
    lengths[0] = length
    if rows > 1:
        lengths[-1] = 0
    return {
        "input_ids": torch.randint(vocab, (rows, length), generator=generator),
        "attention_mask": (torch.arange(length) < lengths).long(),
        "token_type_ids": torch.randint(2, (rows, length), generator=generator),
    }


def labels(head: str, size: tuple) -> dict[str, Tensor]:
    *_, vocab, rows, length = size
    return HEADS[head][1](rows, length, vocab, torch.Generator().manual_seed(2))


def named_tensors(output: dict) -> dict[str, Tensor]:
    """Every tensor of an output: hidden states and attentions by layer."""
    found = {}
    for name, value in output.items():
        parts = enumerate(value) if isinstance(value, tuple) else [("", value)]
        found |= {f"{name}{index}": tensor for index, tensor in parts}
    return found


def compare(ours: dict, theirs: dict, tolerance: float) -> None:
    got, expected = named_tensors(ours), named_tensors(theirs)
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].isfinite().all(), name
        torch.testing.assert_close(
            got[name], tensor, rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("explicit", [False, True], ids=["sdpa", "explicit"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("head", HEADS)
def test_in_float64_states_heads_and_losses_are_transformers_to_1e_10(head, size, explicit):
    ours, theirs = (model.eval() for model in pair(head, size, torch.float64))
    given = batch(size) | {k: v.double() if v.is_floating_point() else v for k, v in labels(head, size).items()}
    with torch.no_grad():
        expected = theirs(**given, output_hidden_states=True, output_attentions=explicit)
        got = ours(**given, output_hidden_states=True, output_attentions=explicit)
    compare(got, expected, 1e-10)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_in_float64_any_size_gives_transformers_hidden_states(data):
    heads, head_size = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 9))
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    size = (heads * head_size, draw(1, 3), heads, draw(1, 40), draw(2, 30), draw(1, 4), draw(1, 20))
    ours, theirs = (model.eval() for model in pair("Model", size, torch.float64))
    given = batch(size)
    with torch.no_grad():
        expected = theirs(**given, output_hidden_states=True)
        compare(ours(**given, output_hidden_states=True), expected, 1e-10)


@pytest.fixture(params=["highest", "medium"])
def precision(request):
    """The two ways of computing float32 products: torch's default, and oneDNN."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize("head", HEADS)
def test_in_float32_two_layers_of_64_are_transformers_to_1e_5(head):
    size = SIZES[0]
    ours, theirs = (model.eval() for model in pair(head, size, torch.float32))
    given = batch(size) | labels(head, size)
    with torch.no_grad():
        for explicit in (False, True):
            asked = {"output_hidden_states": True, "output_attentions": explicit}
            compare(ours(**given, **asked), theirs(**given, **asked), 1e-5)


@pytest.mark.parametrize("size", [(384, 6, 12, 1536, 200, 3, 48), (768, 3, 12, 3072, 100, 2, 24)], ids=str)
def test_in_float32_large_models_are_no_further_from_float64_than_twice_transformers(size):
    ours, theirs = (model.eval() for model in pair("Model", size, torch.float32))
    given = batch(size)
    with torch.no_grad():
        found = {
            "theirs": theirs(**given, output_hidden_states=True),
            "sdpa": ours(**given, output_hidden_states=True),
            "explicit": ours(**given, output_hidden_states=True, output_attentions=True),
        }
        exact = theirs.double()(**given, output_hidden_states=True)

    def error(name: str, layer: int) -> float:
        return float((found[name].hidden_states[layer] - exact.hidden_states[layer]).norm())

    for layer in range(size[1] + 1):
        allowed = 2 * error("theirs", layer)
        assert allowed > 0
        assert error("sdpa", layer) <= allowed
        assert error("explicit", layer) <= allowed


def test_without_mask_and_types_all_tokens_are_real_and_of_type_0():
    ours, theirs = (model.eval() for model in pair("Model", SIZES[0], torch.float64))
    ids = batch(SIZES[0])["input_ids"]
    with torch.no_grad():
        compare(ours(ids), theirs(ids), 1e-10)
        compare(ours(ids), ours(ids, torch.ones_like(ids), torch.zeros_like(ids)), 1e-14)


def test_probabilities_are_the_softmax_of_the_scores_where_a_row_has_real_tokens():
    ours, _ = (model.eval() for model in pair("Model", SIZES[0], torch.float64))
    given = batch(SIZES[0])
    with torch.no_grad():
        output = ours(**given, output_attentions=True, output_attention_scores=True)
    for probabilities, scores in zip(output.attentions, output.attention_scores, strict=True):
        assert scores.shape == (4, 4, 17, 17)
        torch.testing.assert_close(scores[:-1].softmax(-1), probabilities[:-1], rtol=0, atol=1e-12)
        torch.testing.assert_close(probabilities[-1], torch.full_like(probabilities[-1], 1 / 17))  # nothing to prefer
        assert (scores[-1] < -9000).all()


def test_scores_of_chosen_layers_are_theirs_and_the_other_layers_keep_none():
    ours, _ = (model.eval() for model in pair("Model", SIZES[0], torch.float64))
    given = {name: tensor[:-1] for name, tensor in batch(SIZES[0]).items()}  # the last row has no real token
    whole, some = ours(**given, output_attention_scores=True), ours(**given, output_attention_scores=[1])
    assert [scores is None for scores in some.attention_scores] == [i != 1 for i in range(len(whole.attention_scores))]
    torch.testing.assert_close(some.attention_scores[1], whole.attention_scores[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(some.last_hidden_state, whole.last_hidden_state, rtol=0, atol=1e-12)


@pytest.mark.parametrize("masked_row", [False, True], ids=["all rows real", "one row masked"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("head", HEADS)
def test_in_train_mode_at_dropout_0_the_gradients_are_transformers(head, attention, masked_row):
    size = SIZES[0]
    ours, theirs = (model.train() for model in pair(head, size, torch.float64, dropout=0.0))
    ours.config._attn_implementation = attention
    given = batch(size)
    if not masked_row:
        given["attention_mask"][-1, :5] = 1
    for model in (ours, theirs):
        if head == "Model":
            output = model(**given)
            loss = output.last_hidden_state.square().mean() + output.pooler_output.square().mean()
        else:
            wanted = {k: v.double() if v.is_floating_point() else v for k, v in labels(head, size).items()}
            loss = model(**given, **wanted).loss
        loss.backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert (parameter.grad is None) == (expected[name] is None), name
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=1e-10, msg=name)


def test_dropout_acts_in_train_mode_only_and_at_every_place_where_bert_has_it():
    size = (48, 1, 4, 96, 50, 2, 9)
    for field in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
        rates = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"), 0.0)
        config = CompactBertConfig(
            hidden_size=48, num_hidden_layers=1, num_attention_heads=4, intermediate_size=96, vocab_size=50,
            **{**rates, field: 0.5},
        )  # fmt: skip
        model = models.CompactBertForSequenceClassification(config).train()
        given = batch(size)
        assert not torch.equal(model(**given).logits, model(**given).logits), field
        assert torch.equal(model.eval()(**given).logits, model(**given).logits), field


def test_the_loss_on_labelled_positions_is_that_of_the_full_decoder_with_its_gradients():
    size = SIZES[0]
    full, _ = pair("ForMaskedLM", size, torch.float64, dropout=0.0)
    short = copy.deepcopy(full)
    given, wanted = batch(size), labels("ForMaskedLM", size)["labels"]
    full_loss = full(**given, labels=wanted).loss
    short_loss = labelled_loss(short.cls.predictions, short.bert(**given).last_hidden_state, wanted)
    full_loss.backward()
    short_loss.backward()
    torch.testing.assert_close(short_loss, full_loss, rtol=0, atol=1e-12)
    for (name, a), b in zip(full.named_parameters(), short.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=0, atol=1e-12, msg=name)


def test_decoder_and_word_vectors_are_one_parameter():
    model = models.CompactBertForPreTraining(CompactBertConfig(vocab_size=20, hidden_size=8, num_attention_heads=2))
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert model.cls.predictions.decoder.bias is model.cls.predictions.bias


def test_outputs_come_as_a_tuple_where_asked_for():
    model = CompactBertModel(CompactBertConfig(vocab_size=20, hidden_size=8, num_attention_heads=2)).eval()
    ids = torch.arange(6).view(2, 3)
    last, pooled = model(ids, return_dict=False)
    assert torch.equal(last, model(ids).last_hidden_state)
    assert torch.equal(pooled, model(ids).pooler_output)


def test_a_sequence_beyond_the_position_table_is_refused():
    model = CompactBertModel(
        CompactBertConfig(vocab_size=20, hidden_size=8, num_attention_heads=2, max_position_embeddings=5)
    )
    with pytest.raises(ValueError, match="6 tokens exceed max_position_embeddings 5; cut the input"):
        model(torch.ones(1, 6, dtype=torch.long))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_and_autocast_stay_finite_with_a_fully_masked_row(dtype):
    ours, _ = (model.eval() for model in pair("Model", SIZES[0], torch.float32))
    given = batch(SIZES[0])
    with torch.no_grad():
        exact = ours(**given).last_hidden_state
        with torch.autocast("cpu", dtype=dtype):
            mixed = ours(**given).last_hidden_state
        half = ours.to(dtype)(**given).last_hidden_state.float()
    for found in (mixed, half):
        assert found.isfinite().all()
        assert (found - exact)[:-1].norm() / exact[:-1].norm() < 0.02  # bfloat16 keeps 8 bits
