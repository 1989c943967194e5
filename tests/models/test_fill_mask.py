"""Fillers of masked positions, many rows at a time, against transformers' masked LM asked row by row."""

from __future__ import annotations

import itertools
from random import Random

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from compresskit.models import CompactBertConfig, CompactBertForMaskedLM
from compresskit.models.fill_mask import NEW_BATCH_TOKENS, MaskFiller, batches_of_similar_length, layer_at

VOCAB, MASK, M = 120, 4, 6


def config(layers: int = 3, act: str = "gelu") -> dict:
    return {
        "vocab_size": VOCAB, "hidden_size": 48, "num_hidden_layers": layers, "num_attention_heads": 4,
        "intermediate_size": 80, "max_position_embeddings": 64, "hidden_act": act, "initializer_range": 0.2,
    }  # fmt: skip


@pytest.fixture(scope="module")
def models():
    """A masked LM, and transformers' with the same weights, for a depth and an activation."""
    made = {}

    def get(layers: int = 3, act: str = "gelu") -> tuple[CompactBertForMaskedLM, BertForMaskedLM]:
        if (layers, act) not in made:
            torch.manual_seed(layers)
            ours = CompactBertForMaskedLM(CompactBertConfig(**config(layers, act))).eval()
            theirs = BertForMaskedLM(BertConfig(**config(layers, act))).eval()
            with torch.no_grad():
                for parameter in ours.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))  # biases and norms matter too
            theirs.load_state_dict(ours.state_dict())
            made[layers, act] = ours, theirs
        return made[layers, act]

    return get


def rows(number: int = 40, seed: int = 0) -> list[tuple[list[int], int, int]]:
    """Pairs [CLS] masked [SEP] original [SEP] of 1 to 20 pieces."""
    rng, made = Random(seed), []
    for _ in range(number):
        original = [rng.randrange(5, VOCAB) for _ in range(rng.randint(1, 20))]
        at = rng.randrange(len(original))
        masked = [*original[:at], MASK, *original[at + 1 :]]
        made.append(([2, *masked, 3, *original, 3], len(original) + 2, at + 1))
    return made


def scores_row_by_row(model: BertForMaskedLM, given: list) -> torch.Tensor:
    """All scores at the masked position, (N, V), of one unpadded row after the other, without a mask."""
    scores = []
    for ids, second, position in given:
        types = torch.tensor([[0] * second + [1] * (len(ids) - second)])
        with torch.no_grad():
            scores.append(model(torch.tensor([ids]), token_type_ids=types).logits[0, position])
    return torch.stack(scores)


def everything() -> torch.Tensor:
    return torch.ones(VOCAB, dtype=torch.bool)


def check(filler: MaskFiller, model: BertForMaskedLM, given: list, allowed: torch.Tensor | None = None) -> None:
    """The fillers are the best allowed ones: rank by rank of a score within 1e-5 of the right one."""
    right = scores_row_by_row(model, given)
    best = (right if allowed is None else right.masked_fill(~allowed, -torch.inf)).topk(M).values
    ids, scores = filler(given)
    torch.testing.assert_close(right.gather(1, ids), best, atol=1e-5, rtol=0)
    torch.testing.assert_close(scores, best, atol=1e-5, rtol=1e-5)
    assert all(len(set(row)) == M for row in ids.tolist())


@pytest.mark.parametrize("act", ["gelu", "relu"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_fillers_and_scores_are_those_of_transformers_asked_row_by_row(models, layers, act):
    ours, theirs = models(layers, act)
    check(MaskFiller(ours, everything(), M), theirs, rows())


@pytest.mark.parametrize("batch_tokens", [1, 60, 300, 100_000])
def test_how_rows_are_put_together_changes_nothing(models, batch_tokens):
    ours, theirs = models()
    given = rows()
    Random(3).shuffle(given)
    check(MaskFiller(ours, everything(), M, batch_tokens=batch_tokens), theirs, given)


def test_without_onednn_the_fillers_are_the_same(models, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    ours, theirs = models()
    check(MaskFiller(ours, everything(), M), theirs, rows())


def test_heads_and_widths_may_differ_by_layer():
    torch.manual_seed(0)
    shape = {"num_attention_heads": [4, 2, 3], "qkv_size": [40, 48, 24], "intermediate_size": [80, 16, 60]}
    model = CompactBertForMaskedLM(CompactBertConfig(**{**config(), **shape})).eval()
    given = rows(12)
    with torch.no_grad():
        right = [
            model(
                torch.tensor([ids]), token_type_ids=(torch.arange(len(ids)) >= second).long()[None]
            ).logits[0, at].topk(M).values
            for ids, second, at in given
        ]  # fmt: skip
    torch.testing.assert_close(MaskFiller(model, everything(), M)(given)[1], torch.stack(right), atol=1e-5, rtol=1e-5)


def test_entries_that_are_not_allowed_are_never_chosen(models):
    ours, theirs = models()
    allowed = everything()
    allowed[::2] = False
    filler = MaskFiller(ours, allowed, M)
    check(filler, theirs, rows(), allowed)
    assert (filler(rows())[0] % 2 == 1).all()


def test_bfloat16_shares_nearly_all_fillers(models):
    ours, theirs = models()
    given = rows(100)
    right = scores_row_by_row(theirs, given).topk(M).indices.tolist()
    found = MaskFiller(ours, everything(), M, dtype=torch.bfloat16)(given)[0].tolist()
    shared = sum(len(set(a) & set(b)) for a, b in zip(right, found, strict=True)) / (M * len(given))
    assert 0.95 <= shared < 1


def test_the_model_is_left_as_it_was(models):
    ours, _ = models()
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    ours.train()
    MaskFiller(ours, everything(), M, dtype=torch.bfloat16)(rows(3))
    assert ours.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.state_dict().items())
    ours.eval()


def test_a_model_with_formulas_fills_as_itself_asked_row_by_row():
    torch.manual_seed(0)
    formulas = ["tanh(linear2_1(gelu(linear2_1(x,wb1)),wb2))", "linear1_2(mul(linear1_2(x,wb1),x),wb2)"]
    model = CompactBertForMaskedLM(CompactBertConfig(**config(2), feed_forward=formulas)).eval()
    check(MaskFiller(model, everything(), M), model, rows())


def test_no_rows_give_no_fillers(models):
    ids, scores = MaskFiller(models()[0], everything(), M)([])
    assert ids.shape == scores.shape == (0, M)


@pytest.mark.parametrize(("number", "allowed"), [(0, VOCAB), (4, 3), (2, VOCAB + 1)])
def test_more_fillers_than_entries_are_refused(models, number, allowed):
    with pytest.raises(ValueError, match=rf"{number} fillers from {allowed} allowed entries"):
        MaskFiller(models()[0], torch.arange(max(VOCAB, allowed)) < allowed, number)


def test_a_layer_at_one_position_is_the_whole_layer_there():
    torch.manual_seed(1)
    model = CompactBertForMaskedLM(CompactBertConfig(**config())).double().eval()
    hidden = torch.randn(5, 9, 48, dtype=torch.float64)
    mask = torch.arange(9) < torch.tensor([9, 1, 4, 8, 9])[:, None]
    positions = torch.tensor([8, 0, 2, 7, 0])
    layer = model.bert.encoder.layer[1]
    additive = (1 - mask[:, None, None].double()) * torch.finfo(torch.float64).min
    with torch.no_grad():
        whole = layer(hidden, additive, model.config, True)[0]
        torch.testing.assert_close(layer_at(layer, hidden, mask, positions), whole[torch.arange(5), positions])
        whole = layer(hidden, None, model.config, True)[0]
        torch.testing.assert_close(layer_at(layer, hidden, None, positions), whole[torch.arange(5), positions])


@pytest.mark.parametrize("seed", range(20))
def test_batches_hold_every_row_once_and_pad_less_than_a_forward_pass_costs(seed):
    rng = Random(seed)
    lengths = [rng.randint(3, rng.choice([20, 500])) for _ in range(rng.randint(1, 200))]
    budget = rng.choice([16, 128, 1024])
    batches = batches_of_similar_length(lengths, budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        sizes = [lengths[row] for row in batch]
        assert sizes == sorted(sizes)
        assert len(batch) * sizes[-1] <= budget or len(batch) == 1
        for n, (shorter, longer) in enumerate(itertools.pairwise(sizes), start=1):
            assert n * (longer - shorter) <= NEW_BATCH_TOKENS
