import pytest
from hypothesis import given
from hypothesis import strategies as st

from compresskit.pruning.schedule import Schedule, cubic_sparsity, pruning_window


def test_hand_values_of_the_cubic():
    assert cubic_sparsity(0, 0, 4, 0.8) == 0.0
    assert cubic_sparsity(1, 0, 4, 0.8) == pytest.approx(0.8 * (1 - 27 / 64))
    assert cubic_sparsity(2, 0, 4, 0.8) == pytest.approx(0.7)
    assert cubic_sparsity(12, 10, 14, 0.8) == pytest.approx(0.7)
    assert cubic_sparsity(4, 0, 4, 0.8) == 0.8


@given(st.integers(0, 50), st.integers(1, 200), st.floats(0, 1))
def test_zero_before_rising_never_falling_and_the_target_from_the_end_on(begin, length, final):
    end = begin + length
    values = [cubic_sparsity(step, begin, end, final) for step in range(end + 3)]
    assert values[: begin + 1] == [0.0] * (begin + 1)
    assert values == sorted(values)
    assert values[end:] == [final] * 3


@pytest.mark.parametrize("end", [3, 5])
def test_a_schedule_without_steps_is_refused(end):
    with pytest.raises(ValueError, match=f"ends at step {end}, which is not after its begin at step 5"):
        cubic_sparsity(6, 5, end, 0.5)


@pytest.mark.parametrize(
    ("schedule", "updates"),
    [
        (Schedule(2, 22, 5), [7, 12, 17, 22]),
        (Schedule(2, 22, 6), [8, 14, 20, 22]),
        (Schedule(2, 22, 5, faithful=True), [7, 12, 17]),
        (Schedule(2, 22, 6, faithful=True), [8, 14, 20]),
        (Schedule(0, 3, 9), [3]),
        (Schedule(0, 3, 9, faithful=True), []),
    ],
    ids=str,
)
def test_masks_change_at_multiples_of_the_frequency_and_by_default_at_the_end(schedule, updates):
    found = [schedule.due(step) for step in range(1, 30)]
    assert list(dict.fromkeys(step for step in found if step > schedule.begin)) == updates
    assert schedule.last == (updates[-1] if updates else schedule.begin)
    assert all(due <= step for step, due in enumerate(found, start=1))


def test_faithful_counts_in_whole_updates():
    original = Schedule(5, 25, 3, faithful=True)
    for k in range(1, 7):
        assert original.sparsity(5 + 3 * k, 0.1, 0.5) == 0.5 + (0.1 - 0.5) * (1 - k / 6) ** 3
    assert original.sparsity(original.last, 0.1, 0.5) == 0.5
    assert Schedule(5, 25, 3).sparsity(23, 0.1, 0.5) == pytest.approx(0.5 - 0.4 * 0.1**3)
    assert Schedule(5, 25, 3).sparsity(25, 0.7, 0.5) == 0.7
    assert original.sparsity(8, 0.7, 0.5) < 0.7


@pytest.mark.parametrize(
    ("num_steps", "begin_share", "pruning_share", "expected"),
    [
        (100, 0, 0.7, (0, 70)),
        (100, 0.1, 0.7, (10, 80)),
        (100, 0.3, 0.7, (30, 100)),
        (100, 0.2, 0, (20, 21)),
        (1, 0.9, 0.1, (0, 1)),
        (2, 0.5, 0.5, (1, 2)),
        (10, 0.99, 0, (9, 10)),
    ],
)
def test_shares_of_a_run_become_steps_and_a_short_run_has_a_step_to_prune_at(
    num_steps, begin_share, pruning_share, expected
):
    assert pruning_window(num_steps, begin_share, pruning_share) == expected
