"""Does what keeps the default run from learning its text by heart pay over all of its eight epochs?"""

from __future__ import annotations

from benchmarks.ablations import Part, take_out_in_turn
from benchmarks.report import BenchmarkConfig, Report, run_benchmark

STEPS = 830
"""Of 2,048 tokens: the default run on two cores without bf16."""
PARTS = (
    Part("dropout 0.1", ("--dropout", "0")),
    Part("weight decay 1", ("--weight-decay", "0.1")),
)


def answer(config: BenchmarkConfig) -> Report:
    """The default run, and the same with one part less."""
    return take_out_in_turn(PARTS, STEPS, config)


if __name__ == "__main__":
    run_benchmark("regularisation", __doc__, answer)
