import pytest
from hypothesis import given
from hypothesis import strategies as st

from compresskit.pruning.schedule import cubic_sparsity


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
