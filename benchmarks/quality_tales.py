"""How well does the default training predict tales it never saw? Against nanoGPT in the same time, and counting."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import PROJECT
from benchmarks.measuring import Comparison, Target
from benchmarks.report import BenchmarkConfig, Report, run_benchmark
from command_line import UserError

RUN_NAME = "benchmark-quality-tales"
BEST_PATH = PROJECT / "checkpoints" / RUN_NAME / "best.pt"
QUICK_SECONDS = 30.0


@dataclass(frozen=True)
class Trained:
    """What one training reached, and how long it took from the start of the process to its exit."""

    bits_per_byte: float
    wall_seconds: float
    steps: int


def train_ours(source: str, seed: int, seconds: float | None) -> Trained:
    """`python train.py --data SOURCE`; another seed and, for a smoke test, a shorter time are the only other flags."""
    words = ["train.py", "--data", source, "--run", RUN_NAME, "--overwrite", "--seed", str(seed)]
    words += [] if seconds is None else ["--minutes", f"{seconds / 60:.3f}"]
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *words], cwd=PROJECT, capture_output=True, text=True)
    wall_seconds = time.perf_counter() - started
    if done.returncode:
        raise UserError(f"train.py failed: {done.stderr.strip().splitlines()[-1:]}")
    from model.checkpoint import read_card

    best = read_card(BEST_PATH)["provenance"]["best_validation"]
    return Trained(best["bits_per_byte"], wall_seconds, best["step"])


def samples(prompt: str, training_documents: list[str]) -> list[dict[str, Any]]:
    """The first three samples that are drawn, none selected, each with its longest copy from the training text."""
    from generation.config import SamplingConfig
    from generation.memorization import longest_copy
    from generation.text_generator import TextGenerator

    results = TextGenerator.load(BEST_PATH).generate(prompt, SamplingConfig(num_samples=3))
    copies = [longest_copy(result.text, training_documents) for result in results]
    return [
        {"text": result.prompt + result.text, "longest_copy": copy, "longest_copy_characters": len(copy)}
        for result, copy in zip(results, copies, strict=True)
    ]


def answer(config: BenchmarkConfig) -> Report:
    """The English tales, with some samples."""
    return in_the_same_time("tales-en", "the English tales", config, sample_prompt="Once upon a time")


def in_the_same_time(source: str, text_name: str, config: BenchmarkConfig, *, sample_prompt: str | None) -> Report:
    """Train both in turns for the same time on the same split of a corpus; count once."""
    # Importing torch here lets the command line answer before.
    from benchmarks import nanogpt
    from data.prepare import prepare_corpus
    from data.sources import open_source
    from training.counting import counting_bits_per_byte

    checkout = nanogpt.open_checkout(config.nanogpt)
    corpus = prepare_corpus(open_source(source), "char", context_length=64, progress=False)
    training, validation = list(corpus.training_documents()), list(corpus.validation_documents())
    counting = counting_bits_per_byte(training, validation)
    ours: list[Trained] = []
    theirs: list[Trained] = []
    side_by_side: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        peer = checkout.copy_to(Path(folder) / "nanoGPT")
        data = nanogpt.write_character_data(peer, "text", training, validation)
        for turn in range(config.turns(1)):
            ours.append(train_ours(source, 1337 + turn, QUICK_SECONDS if config.quick else None))
            print(f"train.py: {ours[-1]}", flush=True)
            run = nanogpt.train_for(peer, "text", ours[-1].wall_seconds)
            model = nanogpt.load_model(peer, run.checkpoint)
            half_window = nanogpt.bits_per_byte(model, data, model.config.block_size // 2)
            theirs.append(Trained(half_window, run.wall_seconds, run.steps))
            side_by_side.append(nanogpt.bits_per_byte(model, data, model.config.block_size))
            print(f"nanoGPT: {theirs[-1]}", flush=True)
    facts = {"samples": samples(sample_prompt, training)} if sample_prompt is not None else {}
    shutil.rmtree(BEST_PATH.parent, ignore_errors=True)  # or generate.py would take it for the user's newest run
    own_scores = [run.bits_per_byte for run in ours]
    measure = f"validation of {text_name}, `python train.py`"
    return Report(
        question=f"How well does the default training predict a part of {text_name} that it never saw?",
        comparisons=[
            Comparison(
                measure, "bits per byte", "nanoGPT's CPU configuration, same time", own_scores,
                [run.bits_per_byte for run in theirs], Target("at most", 0.80),
            ),
            Comparison(
                measure, "bits per byte", f"counting {counting.order}-gram", own_scores,
                [counting.bits_per_byte], Target("at most", 0.90),
            ),
        ],
        notes=[
            f"both have half a window of context before what is scored; by windows side by side nanoGPT scores "
            f"{', '.join(f'{score:.4f}' for score in side_by_side)}",
            "nanoGPT's seed is fixed in its train.py; its own evaluations are reduced to one at the end",
        ],
        facts={
            "nanoGPT commit": checkout.commit,
            "this project": [vars(run) for run in ours],
            "nanoGPT": [vars(run) for run in theirs],
            **facts,
        },
    )  # fmt: skip


if __name__ == "__main__":
    run_benchmark("quality_tales", __doc__, answer)
