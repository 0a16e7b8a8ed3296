"""How well does the default training predict Shakespeare it never saw? The question of the tales, on another text."""

from __future__ import annotations

from benchmarks.crossing import text_path
from benchmarks.quality_tales import in_the_same_time
from benchmarks.report import BenchmarkConfig, Report, run_benchmark


def answer(config: BenchmarkConfig) -> Report:
    """tinyshakespeare, split as every text is: the recipe was made for the tales."""
    return in_the_same_time(text_path(config.text), "tinyshakespeare", config, sample_prompt=None)


if __name__ == "__main__":
    run_benchmark("quality_shakespeare", __doc__, answer)
