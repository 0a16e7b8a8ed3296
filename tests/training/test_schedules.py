"""The learning rate at the borders of every schedule, by hand."""

import math

import pytest

from training.config import TrainConfig
from training.schedules import learning_rate_factor

SCHEDULES = ["cosine", "linear", "wsd", "constant"]


def factors(n_steps: int, **options: object) -> list[float]:
    config = TrainConfig(**options)  # type: ignore[arg-type]
    return [learning_rate_factor(step, n_steps, config) for step in range(n_steps)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_climbs_in_equal_parts_from_above_zero_to_the_peak(schedule: str) -> None:
    assert factors(100, schedule=schedule, warmup_fraction=0.04)[:4] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_last_step_has_exactly_the_final_rate(schedule: str, final: float) -> None:
    assert factors(100, schedule=schedule, final_learning_rate=final)[-1] == pytest.approx(final, abs=1e-15)


def test_linear_is_a_straight_line_from_the_last_peak_step_to_the_last_step() -> None:
    after = factors(11, schedule="linear", warmup_fraction=0.0, final_learning_rate=0.5)
    assert after == pytest.approx([1 - 0.05 * step for step in range(11)])


def test_cosine_is_half_a_wave() -> None:
    after = factors(9, schedule="cosine", warmup_fraction=0.0)
    assert after == pytest.approx([(1 + math.cos(math.pi * step / 8)) / 2 for step in range(9)])


def test_wsd_stays_at_the_peak_and_then_falls_in_a_straight_line() -> None:
    after = factors(100, schedule="wsd", warmup_fraction=0.1, decay_fraction=0.2)
    assert after[9:80] == [1.0] * 71
    assert after[80:] == pytest.approx([1 - k / 20 for k in range(1, 21)])


def test_constant_stays_at_the_peak_whatever_the_final_rate() -> None:
    assert factors(50, schedule="constant", warmup_fraction=0.1, final_learning_rate=0.0)[4:] == [1.0] * 46


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("decay", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("n_steps", [1, 2, 3, 10, 1000])
def test_any_run_length_gives_rates_in_range_that_reach_the_peak(
    schedule: str, warmup: float, decay: float, n_steps: int
) -> None:
    after = factors(n_steps, schedule=schedule, warmup_fraction=warmup, decay_fraction=decay)
    assert all(0.0 <= factor <= 1.0 for factor in after)
    assert after[0] > 0
    assert max(after) == 1.0
    peak = after.index(1.0)
    assert after[:peak] == sorted(after[:peak])
    assert after[peak:] == sorted(after[peak:], reverse=True)
