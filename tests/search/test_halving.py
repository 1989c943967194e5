"""Successive halving: who gets how much, and that ties and order decide nothing by chance."""

import pytest

from compresskit.models import CompactBertConfig
from compresskit.search.halving import successive_halving


def networks(count: int) -> list[CompactBertConfig]:
    return [CompactBertConfig(vocab_size=50, hidden_size=12 * (i + 1), num_attention_heads=2) for i in range(count)]


@pytest.mark.parametrize("count", [1, 2, 7, 8, 25])
@pytest.mark.parametrize("halvings", [0, 1, 3])
def test_the_better_half_gets_twice_as_much_until_the_best_have_all(count, halvings):
    configs, calls = networks(count), []

    def scores(of, share):
        calls.append((len(of), share))
        return [-config.hidden_size * share for config in of]

    trials = successive_halving(configs, scores, halvings)
    assert [trial.config for trial in trials] == configs
    expected, size = [], count
    for k in range(halvings, -1, -1):
        expected.append((size, 0.5**k))
        size = (size + 1) // 2
    assert calls == expected
    shares = [trial.share for trial in trials]
    assert shares == sorted(shares, reverse=True)  # the narrowest are the best here
    assert shares.count(1.0) == expected[-1][0]
    assert all(trial.score == -trial.config.hidden_size * trial.share for trial in trials)


def test_of_equal_scores_the_first_go_on():
    trials = successive_halving(networks(4), lambda of, share: [0.0] * len(of), 1)
    assert [trial.share for trial in trials] == [1.0, 1.0, 0.5, 0.5]


def test_a_late_bloomer_that_was_stopped_keeps_its_early_score():
    def scores(of, share):
        return [config.hidden_size if share < 1 else -config.hidden_size for config in of]

    trials = successive_halving(networks(3), scores, 1)
    assert [(trial.share, trial.score) for trial in trials] == [(0.5, 12), (1.0, -24), (1.0, -36)]
