"""Dropping tokens layer by layer: the rules one by one, against a plain form of them, and with everything else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compresskit.models import (
    CompactBertConfig,
    CompactBertForQuestionAnswering,
    CompactBertForSequenceClassification,
    CompactBertModel,
    checkpoints,
    elastic,
    lengths,
    sparse,
)

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 160,
}
NARROW, STACKED = "linear1_1(relu(linear1_1(x,wb1)),wb2)", "tanh(linear2_1(gelu(linear2_1(x,wb1)),wb2))"
FORMULAS = {"feed_forward": [NARROW, STACKED] * 2}


def seeded(model_class: type, seed: int = 0, **changes):
    torch.manual_seed(seed)
    model = model_class(CompactBertConfig(**{**SIZES, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def batch(rows: int, seq_len: int, real: list[int] | None = None, seed: int = 1) -> dict[str, Tensor]:
    ids = torch.randint(1, 60, (rows, seq_len), generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(seq_len) < torch.tensor(real or [seq_len] * rows)[:, None]
    return {"input_ids": ids, "attention_mask": mask.long(), "token_type_ids": (ids % 2)}


def by_definition(model: CompactBertModel, row: dict[str, Tensor], kept: list[int], keep_first: bool) -> Tensor:
    """One sequence without padding, token by token as section 1 of the method says.  Returns (S, H)."""
    hidden = model.embeddings(row["input_ids"], row["token_type_ids"], model.config.hidden_size)
    full, held = hidden[0].clone(), list(range(hidden.shape[1]))
    for layer, count in zip(model.encoder.layer, kept, strict=True):
        attended, inside = layer.attend(hidden, None, model.config, explicit=True)
        received = inside.probabilities.sum((1, 2))[0].tolist()
        order = sorted(range(len(held)), key=lambda i: -received[i])
        if keep_first:
            order = [held.index(0), *(i for i in order if held[i] != 0)]
        hidden = layer.feed(attended[:, order[:count]], model.config)
        held = [held[i] for i in order[:count]]
        full[held] = hidden[0]
    return full


@torch.no_grad()
@pytest.mark.parametrize("formulas", [{}, FORMULAS], ids=["plain", "formulas"])
@pytest.mark.parametrize("seq_len", [1, 2, 7, 130])  # up to 96 tokens with maps, above them without
@pytest.mark.parametrize("keep_first", [False, True])
def test_tokens_that_receive_most_attention_stay_and_the_others_keep_their_last_states(seq_len, keep_first, formulas):
    model = seeded(CompactBertModel, **formulas)
    model.pooler = model.pooler if keep_first else None
    kept = [max(1, seq_len * share // 10) for share in (10, 7, 7, 3)]
    row = batch(1, seq_len)
    got = model(**row, length_config=kept)
    torch.testing.assert_close(got.last_hidden_state[0], by_definition(model, row, kept, keep_first), atol=2e-5, rtol=0)
    assert [positions.shape[1] for positions in got.kept_positions] == kept
    if keep_first:
        assert all(0 in positions for positions in got.kept_positions)


@torch.no_grad()
@pytest.mark.parametrize("lengths_", [(100, 60, 60, 20), (0.9, 0.5, 0.5, 0.2)], ids=["numbers", "shares"])
@pytest.mark.parametrize("model_class", [CompactBertForQuestionAnswering, CompactBertModel])
def test_a_sequence_gives_the_same_whatever_stands_beside_and_behind_it(model_class, lengths_):
    model, real = seeded(model_class), [130, 97, 41, 5]
    together = batch(4, 130, real)
    encoder = model.base_model
    got = encoder(**together, length_config=lengths_).last_hidden_state
    for row, count in enumerate(real):
        alone = {name: tensor[row : row + 1, :count] for name, tensor in together.items()}
        right = encoder(**alone, length_config=lengths_)
        torch.testing.assert_close(got[row, :count], right.last_hidden_state[0], atol=2e-5, rtol=0)
        kept = [min(count, n) if isinstance(n, int) else -int(-n * count // 1) for n in lengths_]
        assert [positions.shape[1] for positions in right.kept_positions] == kept


@torch.no_grad()
def test_what_padding_attends_to_counts_only_when_asked():
    model = seeded(CompactBertModel)
    padded = batch(2, 40, [12, 12])
    row = {name: tensor[:1, :12] for name, tensor in padded.items()}
    kept = (7, 5, 3, 2)
    own, theirs = (model(**padded, length_config=kept, padded_queries=asked) for asked in (False, True))
    right = model(**row, length_config=kept)
    torch.testing.assert_close(own.last_hidden_state[:1, :12], right.last_hidden_state, atol=2e-5, rtol=0)
    assert not torch.equal(own.kept_positions[0], theirs.kept_positions[0])


@torch.no_grad()
@pytest.mark.parametrize("full", [(130, 130, 130, 130), (1.0, 1.0, 1.0, 1.0), (160, 150, 140, 131), ()])
def test_full_lengths_are_the_plain_model_bit_for_bit(full):
    model, given = seeded(CompactBertModel), batch(2, 130, [130, 60])
    torch.testing.assert_close(
        model(**given, length_config=full).last_hidden_state, model(**given).last_hidden_state, atol=0, rtol=0
    )


@torch.no_grad()
def test_a_layer_that_is_left_out_neither_runs_nor_drops():
    model, row = seeded(CompactBertModel), batch(2, 20, [20, 9])
    some = elastic.keep_layers(model, [1, 3])
    for kept in ((), (15, 4, 4, 2)):
        chosen = [kept[0], kept[2]] if kept else ()
        got = model(**row, length_config=kept, layer_config=[0, 2], output_hidden_states=True)
        right = some(**row, length_config=chosen, output_hidden_states=True)
        assert torch.equal(got.last_hidden_state, right.last_hidden_state)
        assert len(got.hidden_states) == 3
    none = model(**row, layer_config=[], output_hidden_states=True)
    assert torch.equal(none.last_hidden_state, none.hidden_states[0])


@torch.no_grad()
def test_subnets_drop_tokens_as_they_do_when_taken_out():
    model, row = seeded(CompactBertModel), batch(2, 30, [30, 11])
    subnet = model.config.changed(num_hidden_layers=3, hidden_size=24, qkv_size=24, intermediate_size=20)
    small = elastic.extract(model, subnet)
    got, right = model(**row, subnet=subnet, length_config=(20, 9, 3)), small(**row, length_config=(20, 9, 3))
    assert torch.equal(got.last_hidden_state, right.last_hidden_state)


@torch.no_grad()
@pytest.mark.parametrize("model_class", [CompactBertForQuestionAnswering, CompactBertForSequenceClassification])
@pytest.mark.parametrize("lengths_", [(100, 60, 60, 20), (0.9, 0.5, 0.5, 0.2), (130,) * 4], ids=["n", "share", "full"])
@pytest.mark.parametrize("formulas", [{}, FORMULAS], ids=["plain", "formulas"])
def test_sparse_weights_drop_the_same_tokens(model_class, lengths_, formulas):
    model = seeded(model_class, **formulas)
    for name, layer in model.bert.encoder.named_modules():
        if isinstance(layer, elastic.ElasticLinear):
            weight = layer.weight
            weight.mul_(torch.rand(weight.shape, generator=torch.Generator().manual_seed(len(name))) > 0.8)
    fast, given = sparse.to_sparse(model, min_sparsity=0.5), batch(3, 130, [130, 97, 20])
    real = given["attention_mask"].bool()
    for layers in (None, [0, 2]):
        dense, quick = (m(**given, length_config=lengths_, layer_config=layers) for m in (model, fast))
        for name in ("logits", "start_logits", "end_logits"):
            if name in dense:
                ours, theirs = (o[name][real] if o[name].shape == real.shape else o[name] for o in (quick, dense))
                torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
        for ours, theirs in zip(quick.kept_positions, dense.kept_positions, strict=True):
            assert torch.equal(ours.sort().values[:2], theirs.sort().values[:2])


@pytest.mark.parametrize("seq_len", [20, 130])
@pytest.mark.parametrize("shares", [False, True])
def test_gradients_are_those_of_the_definition(seq_len, shares):
    model = seeded(CompactBertModel).double()
    model.pooler = None
    row, kept = batch(1, seq_len), [seq_len, seq_len // 2, seq_len // 4, 2]
    given = [n / seq_len for n in kept] if shares else kept
    weights = torch.randn(seq_len, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    (model(**row, length_config=given).last_hidden_state[0] * weights).sum().backward()
    got = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    (by_definition(model, row, kept, False) * weights).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, msg=name)


@torch.no_grad()
def test_the_configs_own_lengths_are_used_where_a_call_names_none_and_are_saved(tmp_path):
    model, row = seeded(CompactBertModel), batch(2, 30)
    right, plain = model(**row, length_config=(20, 9, 3, 3)), model(**row)
    model.config.length_config = [20, 9, 3, 3]
    checkpoints.save(model, tmp_path / "model")
    again = checkpoints.load(CompactBertModel, tmp_path / "model")
    for one in (model, again):
        assert torch.equal(one(**row).last_hidden_state, right.last_hidden_state)
        assert torch.equal(one(**row, length_config=()).last_hidden_state, plain.last_hidden_state)
    assert again.config.changed(num_hidden_layers=2).length_config == [20, 9]
    assert elastic.keep_layers(again, [1, 3]).config.length_config == [20, 3]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((20, 9, 3), "length_config has 3 lengths for 4 layers; give one for each"),
        ((20, 9, 12, 3), "layer 2 cannot keep 12, for layer 1 keeps 9"),
        ((0.5, 0.4, 0.4, 0.6), "layer 3 cannot keep 0.6, for layer 2 keeps 0.4"),
        ((20, 9, 3, 0), "expected whole numbers of tokens, each at least 1, or shares"),
        ((20, 9, 0.5, 0.5), "expected whole numbers of tokens, each at least 1, or shares"),
        ((1.5, 0.5, 0.5, 0.5), "expected whole numbers of tokens, each at least 1, or shares"),
        ((True, True, True, True), "expected whole numbers of tokens, each at least 1, or shares"),
        ((161, 9, 3, 3), "161 tokens exceed max_position_embeddings 160"),
    ],
)
def test_lengths_that_cannot_be_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        seeded(CompactBertModel)(**batch(1, 30), length_config=given)
    with pytest.raises(Exception, match=message):
        CompactBertConfig(**SIZES, length_config=list(given))


@pytest.mark.parametrize("layers", [[2, 1], [0, 0], [4], [-1]])
def test_layers_that_are_not_there_are_refused(layers):
    with pytest.raises(ValueError, match=r"layer_config is .*; expected layers from 0 to 3 in rising order"):
        seeded(CompactBertModel)(**batch(1, 5), layer_config=layers)


def test_shares_become_numbers_by_rounding_up():
    assert lengths.tokens_kept([1.0, 0.8, 0.5, 0.001], 30) == [30, 24, 15, 1]
    assert lengths.tokens_kept([0.1], 30) == [3]  # 0.1 · 30 is a little more than 3 in floating point
    assert lengths.tokens_kept([40, 20], 30) == [30, 20]
