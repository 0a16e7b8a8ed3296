"""What counts as one draw that two batches can be compared by."""

import pytest

from benchmarks.batch_independence import n_draws_until_they_part


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [([], [], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 5, 9], 2), ([1], [1, 4], 2), ([7], [8], 1)],
)
def test_draws_count_up_to_the_first_that_differs(one: list[int], other: list[int], expected: int) -> None:
    assert n_draws_until_they_part(one, other) == n_draws_until_they_part(other, one) == expected
