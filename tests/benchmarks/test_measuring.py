"""Turns, ratios and targets, by hand."""

import pytest

from benchmarks.measuring import OURS, Comparison, Target, alternate, compare


def test_contenders_take_turns_in_a_fixed_order() -> None:
    order: list[str] = []

    def contender(name: str) -> float:
        order.append(name)
        return float(len(order))

    values = alternate({"a": lambda: contender("a"), "b": lambda: contender("b")}, rounds=3)
    assert order == ["a", "b", "a", "b", "a", "b"]
    assert values == {"a": [1, 3, 5], "b": [2, 4, 6]}


def test_a_ratio_compares_the_two_of_one_turn() -> None:
    # The machine was three times slower in the second turn; the ratio does not see it.
    comparison = Comparison("training", "s", "peer", ours=[1.0, 3.0, 1.0], theirs=[2.0, 6.0, 4.0])
    assert comparison.ratios == [0.5, 0.5, 0.25]
    assert comparison.ratio == 0.5


def test_a_peer_with_one_value_is_compared_with_every_turn() -> None:
    assert Comparison("quality", "bits", "counting", [1.0, 1.5, 3.0], [2.0]).ratios == [0.5, 0.75, 1.5]


@pytest.mark.parametrize(
    ("target", "ratio", "is_met"),
    [
        (Target("at least", 2), 2.0, True),
        (Target("at least", 2), 1.99, False),
        (Target("at most", 0.125), 0.125, True),
        (Target("at most", 0.125), 0.126, False),
    ],
)
def test_a_target_is_met_up_to_its_bound(target: Target, ratio: float, is_met: bool) -> None:
    assert Comparison("x", "s", "peer", [ratio], [1.0], target).is_met is is_met


def test_without_a_target_nothing_is_met_or_missed() -> None:
    assert Comparison("x", "s", "peer", [1.0], [1.0]).is_met is None


@pytest.mark.parametrize(("ours", "theirs"), [([], []), ([1.0, 2.0], []), ([1.0, 2.0, 3.0], [1.0, 2.0])])
def test_turns_that_do_not_pair_are_refused(ours: list[float], theirs: list[float]) -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        Comparison("x", "s", "peer", ours, theirs)


def test_compare_pairs_this_project_with_every_peer_named() -> None:
    values = {OURS: [1.0], "slow": [4.0], "fast": [0.5], "not asked for": [9.0]}
    comparisons = compare("x", "s", values, {"slow": Target("at most", 1), "fast": None})
    assert {c.peer: c.ratio for c in comparisons} == {"slow": 0.25, "fast": 2.0}


def test_the_printed_line_tells_ratio_spread_and_target() -> None:
    line = str(Comparison("decode", "tokens/s", "peer", [9.0, 8.0, 10.0], [2.0, 2.0, 2.0], Target("at least", 5)))
    assert "ratio 4.5 (4 to 5)" in line
    assert "target ≥ 5 ×: missed" in line
