"""How soon does this project reach what nanoGPT's CPU configuration reaches on tinyshakespeare?"""

from __future__ import annotations

import math
import statistics
import tempfile
from pathlib import Path

from benchmarks import nanogpt
from benchmarks.crossing import text_path, train_until
from benchmarks.measuring import Comparison, Target
from benchmarks.report import BenchmarkConfig, Report, run_benchmark

NANOGPT_STEPS = 2000
RECIPE = ("--preset", "mini", "--steps", "240", "--evaluate-every-steps", "10", "--batch-tokens", "2048")
"""How this project trains for it; `auto` chooses everything that is not named."""


def train_nanogpt(checkout: nanogpt.Checkout, text: str, steps: int) -> tuple[float, float]:
    """Seconds of training, its evaluations left out, and nats per character on the last tenth of the text.

    It is scored over the whole split with half a window of context, as this project scores itself.
    """
    whole = Path(text).read_text(encoding="utf-8")
    cut = int(len(whole) * 0.9)
    with tempfile.TemporaryDirectory() as folder:
        peer = checkout.copy_to(Path(folder) / "nanoGPT")
        data = nanogpt.write_character_data(peer, "text", [whole[:cut]], [whole[cut:]])
        run = nanogpt.train(peer, "text", steps)
        model = nanogpt.load_model(peer, run.checkpoint)
        score = nanogpt.bits_per_byte(model, data, model.config.block_size // 2) * math.log(2)
    # The times that it prints for the first and the last step hold its two evaluations.
    typical = statistics.median(run.step_seconds)
    return sum(min(seconds, 5 * typical) for seconds in run.step_seconds), score


def answer(config: BenchmarkConfig) -> Report:
    """In turns: nanoGPT's 2,000 steps, then this project until it predicts as well."""
    checkout = nanogpt.open_checkout(config.nanogpt)
    text = text_path(config.text)
    ours: list[float] = []
    theirs: list[float] = []
    notes = []
    for turn in range(config.turns(3)):
        seconds, score = train_nanogpt(checkout, text, 20 if config.quick else NANOGPT_STEPS)
        crossing = train_until("time-to-nanogpt", text, score, *RECIPE, "--seed", str(1337 + turn))
        print(f"nanoGPT {score:.4f} nats per byte after {seconds:.1f} s; {crossing}", flush=True)
        notes.append(f"turn {turn + 1}: nanoGPT reached {score:.4f} nats per byte")
        if crossing.seconds is None:
            notes.append(f"turn {turn + 1}: never reached, best {crossing.best_nats_per_byte:.4f}; counted as twice")
        theirs.append(seconds)
        ours.append(crossing.seconds if crossing.seconds is not None else 2 * max(seconds, crossing.training_seconds))
    return Report(
        "How soon does this project reach what nanoGPT's CPU configuration reaches on tinyshakespeare?",
        [Comparison("time to nanoGPT's CPU result", "s", "nanoGPT", ours, theirs, Target("at most", 1 / 8))],
        notes,
        facts={"recipe": " ".join(RECIPE), "nanoGPT commit": checkout.commit},
    )


if __name__ == "__main__":
    run_benchmark("time_to_nanogpt", __doc__, answer)
