"""The length search on made costs and scores."""

from __future__ import annotations

from random import Random

import pytest

from compresskit.search import length_study
from compresskit.search.lengths import (
    CROSSOVER,
    INITIAL,
    MUTATION,
    Entry,
    Evolution,
    area,
    constant_ratio,
    convex_hull,
    first_ratios,
    frontier,
    share_left,
)


def cost(lengths):
    return float(sum(lengths))


def scores(many):
    return [sum((i + 1) * kept for i, kept in enumerate(lengths)) ** 0.5 for lengths in many]


def rounds(seed=0, iterations=3, **settings):
    evolution = Evolution(32, 4, cost, scores)
    evolution.start(5)
    run = evolution.run(iterations, lambda n: Random(f"{seed} {n}"), mutations=6, crossovers=4, **settings)
    return evolution, list(run)


def test_constant_ratios_are_those_of_the_specification():
    assert constant_ratio(384, 6, 0.2) == (308, 247, 198, 159, 128, 103)
    assert constant_ratio(3, 4, 0.5) == (2, 2, 2, 2)
    with pytest.raises(ValueError, match="cannot drop 1"):
        constant_ratio(384, 6, 1)


@pytest.mark.parametrize(("layers", "seq_len"), [(3, 48), (6, 128), (12, 384)])
def test_the_first_ratios_spread_the_share_of_tokens_evenly_for_any_depth_and_length(layers, seq_len):
    ratios = first_ratios(4, 0.2, layers, seq_len)
    lowest = share_left(0.2, layers, seq_len)
    shares = [share_left(ratio, layers, seq_len) for ratio in ratios]
    wanted = [lowest + (1 - lowest) * k / 5 for k in range(1, 5)]
    assert shares == pytest.approx(wanted, abs=1.5 / seq_len)
    assert ratios == sorted(ratios, reverse=True)


def test_of_equal_costs_the_front_keeps_the_best_and_the_released_one_keeps_both():
    entries = {(1,): Entry(1, 1), (2,): Entry(2, 2), (3,): Entry(2, 3), (4,): Entry(3, 2.5), (5,): Entry(4, 2)}
    assert frontier(entries) == [(1,), (3,), (5,)]
    assert frontier(entries, faithful=True) == [(1,), (2,), (3,), (5,)]
    assert area([(1,), (3,), (5,)], entries, 1, 4) == pytest.approx((1 * 1 + 2 * 3) / 3)
    assert frontier({}) == []
    assert frontier({(1,): Entry(1, 1)}) == [(1,)]


def test_the_hull_drops_what_lies_below_a_line_between_two_others():
    points = {(1,): (0, 0), (2,): (1, 1), (3,): (2, 1.5), (4,): (3, 4), (5,): (4, 4.5), (6,): (5, 4.2)}
    entries = {lengths: Entry(*point) for lengths, point in points.items()}
    assert convex_hull(sorted(points), entries) == [(1,), (4,), (5,)]


def test_a_search_is_a_function_of_its_seed_and_its_area_never_shrinks():
    evolution, found = rounds()
    again, same = rounds()
    other, _ = rounds(seed=1)
    assert evolution.store == again.store
    assert found == same
    assert set(evolution.store) != set(other.store)
    areas = [generation.area for generation in found]
    assert areas == sorted(areas)
    assert areas[-1] > areas[0]
    assert [generation.number for generation in found] == [0, 1, 2, 3]
    assert {entry.method for entry in evolution.store.values()} == {INITIAL, MUTATION, CROSSOVER}


def test_everything_in_the_store_keeps_the_rules_and_is_scored_once():
    asked = []
    evolution = Evolution(32, 4, cost, lambda many: asked.extend(many) or scores(many))
    evolution.start(5)
    for _ in evolution.run(3, lambda n: Random(n), mutations=6, crossovers=4):
        pass
    assert len(asked) == len(set(asked)) == len(evolution.store)
    for lengths, entry in evolution.store.items():
        assert lengths[0] <= 32
        assert list(lengths) == sorted(lengths, reverse=True)
        assert lengths[-1] >= 2
        assert evolution.lower <= entry.cost == cost(lengths) <= evolution.upper


def test_a_space_that_is_too_small_ends_with_a_notice_instead_of_never():
    evolution = Evolution(4, 1, cost, scores, max_drop=0.5)
    evolution.start(2)
    found = list(evolution.run(9, lambda n: Random(n), mutations=5, crossovers=5, max_attempts=50))
    assert len(evolution.store) == 3
    assert found[-1].number < 9
    assert found[-1].notice.endswith("nothing new is left, the search ends")
    assert "in 50 attempts" in found[1].notice


def test_what_was_loaded_is_not_scored_again():
    evolution = Evolution(32, 4, cost, lambda many: pytest.fail("scored") if (32,) * 4 in many else scores(many))
    evolution.load({(32,) * 4: (128.0, 99.0)})
    evolution.start(3)
    assert evolution.store[(32,) * 4].score == 99
    with pytest.raises(ValueError, match="0 layers that keep 2 of 32 tokens"):
        Evolution(32, 0, cost, scores)


# Optuna


def study(folder, kind, trials=24, **settings):
    journal, score = folder / "optuna.journal", settings.pop("score", scores)
    batches = length_study.search(kind, journal, 32, 4, cost, score, trials=trials, **settings)
    return [lengths for batch in batches for lengths in batch]


def test_tpe_finds_a_better_configuration_within_the_budget_than_its_start(tmp_path):
    found = study(tmp_path, "tpe", trials=40, budget=100.0, max_drop=0.4)
    assert found[0] == (32,) * 4  # nothing dropped
    assert found[2] == (19, 11, 7, 4)  # all that may be dropped
    first, later = (max(scores([g for g in part if cost(g) <= 100])) for part in (found[:10], found[10:]))
    assert later > first


def test_nsga2_hands_out_configurations_over_the_whole_range(tmp_path):
    found = study(tmp_path, "nsga2")
    costs = sorted(map(cost, found))
    assert costs[0] < 90
    assert costs[-1] == 128
    assert all(list(lengths) == sorted(lengths, reverse=True) for lengths in found)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("kind", ["tpe", "nsga2"])
def test_a_study_goes_on_to_the_same_trials_whatever_line_of_its_file_a_kill_ended_in(tmp_path, kind):
    whole = study(tmp_path / "whole", kind, trials=8)
    written = (tmp_path / "whole/optuna.journal").read_bytes()
    for cut in range(0, len(written), len(written) // 40):
        (tmp_path / f"{cut}").mkdir()
        (tmp_path / f"{cut}/optuna.journal").write_bytes(written[:cut])
        assert study(tmp_path / f"{cut}", kind, trials=8) == whole


@pytest.mark.parametrize("kind", ["tpe", "nsga2"])
def test_a_stopped_study_goes_on_to_the_same_trials(tmp_path, kind):
    straight = study(tmp_path / "a", kind)
    for stop_after in (1, 3, 4):
        left = iter(range(stop_after))

        def stopping(many, left=left):
            if next(left, None) is None:
                raise Stopped
            return scores(many)

        with pytest.raises(Stopped):
            study(tmp_path / "b", kind, score=stopping)
    assert study(tmp_path / "b", kind) == straight


def test_a_study_that_cannot_be_is_refused(tmp_path):
    with pytest.raises(ValueError, match="0 trials"):
        study(tmp_path, "tpe", trials=0)
