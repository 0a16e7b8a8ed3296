"""How soon does a CPU reach 1.4697 nats per character on tinyshakespeare, nanoGPT's best, which took it an A100?"""

from __future__ import annotations

from benchmarks.crossing import text_path, train_until
from benchmarks.measuring import Comparison, Target
from benchmarks.report import BenchmarkConfig, Report, run_benchmark

PUBLISHED = 1.4697
"""The validation loss in nanoGPT's README, of its configuration for a GPU (10.7M parameters)."""
LIMIT_SECONDS = 600.0
RECIPE = ("--preset", "mini", "--steps", "500", "--evaluate-every-steps", "50")
"""The default recipe, over so few steps that its rate falls to zero soon after the goal."""


def answer(config: BenchmarkConfig) -> Report:
    """Train until the published figure is reached."""
    text = text_path(config.text)
    recipe, goal = ((*RECIPE, "--steps", "20"), 9.0) if config.quick else (RECIPE, PUBLISHED)
    seconds: list[float] = []
    notes = [
        "scored over the whole split, every character behind at least half a window (64 tokens, some 180 characters); "
        "nanoGPT's figure is a mean over random windows of 256 characters of the same split"
    ]
    for turn in range(config.turns(1)):
        crossing = train_until("time-to-best", text, goal, *recipe, "--seed", str(1337 + turn))
        print(crossing, flush=True)
        if crossing.seconds is None:
            notes.append(
                f"turn {turn + 1}: never reached, best {crossing.best_nats_per_byte:.4f} nats per byte in "
                f"{crossing.training_seconds:.0f} s of training; counted as twice the limit"
            )
        seconds.append(crossing.seconds if crossing.seconds is not None else 2 * LIMIT_SECONDS)
    return Report(
        "How soon does a CPU reach nanoGPT's best on tinyshakespeare?",
        [
            Comparison(
                f"time to {PUBLISHED} nats per character", "s", "10 minutes", seconds, [LIMIT_SECONDS],
                Target("at most", 1),
            )
        ],
        notes,
        facts={"recipe": " ".join(recipe)},
    )  # fmt: skip


if __name__ == "__main__":
    run_benchmark("time_to_best", __doc__, answer)
