"""The clock of the time_to questions, by hand."""

import math

import pytest

from benchmarks.crossing import find_crossing


def evaluation(step: int, nats: float) -> dict[str, float]:
    return {"step": step, "validation_loss": 9.0, "validation_bits_per_byte": nats / math.log(2)}


LINES = [
    {"step": 1, "loss": 4.0, "seconds": 30.0},  # compiling belongs to the first step
    {"step": 2, "loss": 3.0, "seconds": 31.0},
    evaluation(2, 2.0),
    {"step": 3, "loss": 2.0, "seconds": 32.5},
    evaluation(3, 1.5),
    {"step": 4, "loss": 2.0, "seconds": 33.0},
    evaluation(4, 1.6),
]


def test_the_crossing_is_the_first_evaluation_that_is_good_enough() -> None:
    crossing = find_crossing(LINES, 1.61)
    assert (crossing.step, crossing.seconds) == (3, 32.5)


def test_a_run_that_never_gets_there_says_how_far_it_came() -> None:
    crossing = find_crossing(LINES, 1.4)
    assert (crossing.step, crossing.seconds) == (None, None)
    assert crossing.best_nats_per_byte == pytest.approx(1.5)
    assert crossing.training_seconds == 33.0
