"""The peer of the augmentation benchmark asks the same model the same question."""

from __future__ import annotations

import torch

from benchmarks import augmentation
from compresskit.models import CompactBertConfig, CompactBertForMaskedLM


def test_the_peer_finds_the_best_scores_of_the_whole_model_word_by_word():
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    model = CompactBertForMaskedLM(CompactBertConfig(**shape, initializer_range=0.2)).eval()
    rows = augmentation.masked_words()[:: augmentation.TIMED]
    found = augmentation.OneAtATime(model)(rows)
    assert found.shape == (len(rows), augmentation.CANDIDATES)
    for (ids, second, position), candidates in zip(rows, found, strict=True):
        types = (torch.arange(len(ids)) >= second).long()[None]
        with torch.no_grad():
            scores = model(torch.tensor([ids]), token_type_ids=types).logits[0, position]
        best = scores.topk(augmentation.CANDIDATES).values
        torch.testing.assert_close(scores[candidates], best, atol=1e-5, rtol=0)


def test_the_words_are_masked_in_one_of_two_equal_halves():
    for ids, second, position in augmentation.masked_words():
        masked, original = ids[1 : second - 1], ids[second:-1]
        assert [ids[0], ids[second - 1], ids[-1]] == [101, 102, 102]
        assert [i for i, (a, b) in enumerate(zip(masked, original, strict=True)) if a != b] == [position - 1]
        assert ids[position] == 103
