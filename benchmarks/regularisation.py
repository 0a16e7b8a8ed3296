"""What keeps the default run from learning its text by heart? Each part is taken out in turn, on the English tales."""

from __future__ import annotations

from benchmarks.ablations import Part, with_and_without
from benchmarks.report import BenchmarkConfig, Report, run_benchmark

PARTS = (
    Part("decay of embeddings and head", ("--embedding-weight-decay", "0")),
    Part("bigram embeddings, decaying", ("--bigram-rows", "0")),
)


def answer(config: BenchmarkConfig) -> Report:
    """What decays, and the table that needs the decay."""
    return with_and_without(PARTS, "Does what keeps the default run from learning by heart pay?", config)


if __name__ == "__main__":
    run_benchmark("regularisation", __doc__, answer)
