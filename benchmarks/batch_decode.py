"""What do 64 samples at once gain over one, and over Hugging Face?"""

from __future__ import annotations

import functools
from collections.abc import Callable

from benchmarks import decoding
from benchmarks.measuring import OURS, Target, alternate, compare, in_own_process
from benchmarks.report import BenchmarkConfig, Report, run_benchmark

PROMPT_TOKENS = 16
BATCH_SIZE = 64


def answer(config: BenchmarkConfig) -> Report:
    """Tokens per second over all samples, from a short prompt."""
    new_tokens = 8 if config.quick else 200
    alone, hugging_face = f"{OURS}, one sample", f"Hugging Face generate, {BATCH_SIZE} samples"
    contenders: dict[str, Callable[[], float]] = {
        OURS: functools.partial(in_own_process, decoding.ours, PROMPT_TOKENS, new_tokens, BATCH_SIZE),
        alone: functools.partial(in_own_process, decoding.ours, PROMPT_TOKENS, new_tokens, 1),
        hugging_face: functools.partial(in_own_process, decoding.hugging_face, PROMPT_TOKENS, new_tokens, BATCH_SIZE),
    }
    values = alternate(contenders, config.turns(3))
    targets = {alone: Target("at least", 5), hugging_face: Target("at least", 2)}
    comparisons = compare(f"decode mini, {BATCH_SIZE} samples at once", "tokens/s", values, targets)
    return Report("What do 64 samples at once gain over one, and over Hugging Face?", comparisons)


if __name__ == "__main__":
    run_benchmark("batch_decode", __doc__, answer)
