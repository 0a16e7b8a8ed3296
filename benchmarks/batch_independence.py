"""How often does a sample depend on the batch in which it is drawn? Batches of 64 against batches of 7, on a CPU.

The random numbers of a sample are its own, but the logits of a batch of 64 differ from those of a batch of 7 in their
last bits. A draw changes where its random number lies between two tokens closer than that.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.report import BenchmarkConfig, Report, run_benchmark

if TYPE_CHECKING:
    from generation.text_generator import TextGenerator

BATCH_SIZES = (64, 7)
SETTINGS: dict[str, dict[str, Any]] = {
    "all tokens, temperature 1": {"temperature": 1.0},
    "top-k 50, temperature 0.8": {"temperature": 0.8, "top_k": 50},
}


def n_draws_until_they_part(one: Sequence[int], other: Sequence[int]) -> int:
    """How many draws of two token sequences can be compared: up to the first that differs, which is counted too."""
    for number, (token, peer) in enumerate(itertools.zip_longest(one, other), start=1):
        if token != peer:
            return number
    return len(one)


def compare_batches(
    generator: TextGenerator, settings: dict[str, Any], n_samples: int, n_tokens: int
) -> dict[str, int]:
    """Samples and comparable draws, and in how many of them the two batch sizes differ."""
    from generation.config import SamplingConfig

    drawn = [
        generator.generate(
            "", SamplingConfig(num_samples=n_samples, batch_size=size, max_new_tokens=n_tokens, **settings)
        )
        for size in BATCH_SIZES
    ]
    pairs = [(one.token_ids, other.token_ids) for one, other in zip(*drawn, strict=True)]
    return {
        "samples": n_samples,
        "draws": sum(n_draws_until_they_part(one, other) for one, other in pairs),
        "different": sum(one != other for one, other in pairs),
    }


def answer(config: BenchmarkConfig) -> Report:
    """The newest run's model, in fp32 on a CPU; quick: fresh weights."""
    from benchmarks.mini import mini_generator
    from generation.config import CHECKPOINTS
    from generation.text_generator import TextGenerator
    from model.checkpoint_choice import newest_run_checkpoint

    n_samples, n_tokens = (8, 4) if config.quick else (64 * config.turns(4), 200)
    if config.quick:
        generator, _ = mini_generator()
    else:
        generator = TextGenerator.load(newest_run_checkpoint(CHECKPOINTS), "cpu", "fp32")
    found = {name: compare_batches(generator, settings, n_samples, n_tokens) for name, settings in SETTINGS.items()}
    notes = [
        f"{name}: {counts['different']} of {counts['samples']} samples differ between batches of {BATCH_SIZES[0]} and "
        f"{BATCH_SIZES[1]}: {counts['different']} of {counts['draws']:,} draws"
        for name, counts in found.items()
    ]
    facts = {"checkpoint_sha256": generator.checkpoint_sha256, "settings": found}
    return Report("How often does a sample depend on its batch?", [], notes, facts)


if __name__ == "__main__":
    run_benchmark("batch_independence", __doc__, answer)
