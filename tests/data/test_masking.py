"""BERT's masking, by counting."""

import pytest
import torch

from compresskit.data.masking import mask_tokens


def text(rows: int, length: int, tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(5, len(tokenizer), (rows, length), generator=torch.Generator().manual_seed(9))
    ids[:, 0], ids[:, -1] = tokenizer.cls_token_id, tokenizer.sep_token_id
    return ids, torch.ones_like(ids)


def test_fifteen_percent_are_chosen_and_of_these_eighty_ten_ten(tokenizer, seeded):
    ids, attention = text(400, 100, tokenizer)
    masked, labels = mask_tokens(ids, attention, tokenizer, seeded(0))
    chosen = labels != -100
    assert (chosen.sum(dim=1) == 15).all()
    assert chosen[:, 1:-1].any(dim=0).all()  # any position
    count = int(chosen.sum())  # 6,000: the standard error is 0.005 of the chosen
    assert ((masked == tokenizer.mask_token_id) & chosen).sum() / count == pytest.approx(0.8, abs=0.02)
    kept = (masked == ids) & chosen
    assert kept.sum() / count == pytest.approx(0.1 + 0.1 / (len(tokenizer) - 5), abs=0.02)
    assert torch.equal(labels[chosen], ids[chosen])
    assert torch.equal(masked[~chosen], ids[~chosen])


def test_replacements_are_any_ordinary_entry_and_never_a_special_token(tokenizer, seeded):
    ids, attention = text(400, 100, tokenizer)
    masked, labels = mask_tokens(ids, attention, tokenizer, seeded(0), probability=1.0)
    replaced = masked[(labels != -100) & (masked != ids) & (masked != tokenizer.mask_token_id)]
    assert set(replaced.tolist()) == set(range(5, len(tokenizer)))


def test_special_tokens_and_padding_are_never_chosen(tokenizer, seeded):
    ids, attention = text(50, 40, tokenizer)
    ids[:, 30:] = tokenizer.pad_token_id
    attention[:, 30:] = 0
    ids[:, 10] = tokenizer.sep_token_id
    masked, labels = mask_tokens(ids, attention, tokenizer, seeded(1), probability=1.0)
    chosen = labels != -100
    assert chosen[:, 1:10].all()
    assert chosen[:, 11:30].all()
    assert not chosen[:, [0, 10]].any()
    assert not chosen[:, 30:].any()
    assert torch.equal(masked[:, 30:], ids[:, 30:])


def test_a_short_row_has_a_label_and_one_without_words_has_none(tokenizer, seeded):
    cls, sep, pad = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
    ids = torch.tensor([[cls, 7, sep, pad]] * 50 + [[cls, sep, pad, pad]])
    masked, labels = mask_tokens(ids, (ids != pad).long(), tokenizer, seeded(2))
    assert (labels[:50] != -100).sum(dim=1).tolist() == [1] * 50
    assert (labels[50] == -100).all()
    assert torch.equal(masked[50], ids[50])


def test_masking_is_fresh_in_each_call_and_repeats_with_the_seed(tokenizer, seeded):
    ids, attention = text(8, 50, tokenizer)
    generator = seeded(3)
    first, second = (mask_tokens(ids, attention, tokenizer, generator)[1] for _ in range(2))
    again = mask_tokens(ids, attention, tokenizer, seeded(3))[1]
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_probability_zero_masks_nothing(tokenizer, seeded):
    ids, attention = text(4, 20, tokenizer)
    masked, labels = mask_tokens(ids, attention, tokenizer, seeded(4), probability=0.0)
    assert torch.equal(masked, ids)
    assert (labels == -100).all()
    one = mask_tokens(ids, attention, tokenizer, seeded(4), probability=0.0, at_least_one=True)[1]
    assert (one != -100).sum(dim=1).tolist() == [1] * 4
    with pytest.raises(ValueError, match=r"probability 1.5 is not between 0 and 1"):
        mask_tokens(ids, attention, tokenizer, seeded(4), probability=1.5)
