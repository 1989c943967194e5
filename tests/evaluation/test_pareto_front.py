import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compresskit.evaluation.pareto import front


def by_definition(points: list[tuple[float, float]]) -> list[bool]:
    def beats(a, b):
        return a[0] <= b[0] and a[1] >= b[1] and a != b

    return [not any(beats(other, point) for other in points) for point in points]


def test_hand_case_with_duplicates_and_ties_in_one_coordinate():
    points = [(1, 5), (2, 7), (2, 6), (3, 7), (2, 7), (4, 9), (0.5, 1)]
    assert front(points).tolist() == [True, True, False, False, True, True, True]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=25))
def test_the_front_is_that_of_the_definition(points):
    assert front(points).tolist() == by_definition(points)


@given(st.lists(st.tuples(st.floats(allow_nan=False), st.floats(allow_nan=False)), max_size=12))
def test_also_for_extreme_and_infinite_numbers(points):
    assert front(points).tolist() == by_definition(points)


@given(st.permutations(range(8)))
def test_the_order_of_the_points_does_not_matter(order):
    points = np.random.default_rng(0).integers(0, 4, (8, 2))
    assert front(points[order]).tolist() == front(points)[order].tolist()


def test_a_missing_value_is_refused():
    with pytest.raises(ValueError, match="point 1 has no cost or no score"):
        front([(1, 2), (float("nan"), 3)])
