"""Does every part of the default recipe pay? Each is taken out in turn, on the English tales."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from benchmarks.machine import PROJECT
from benchmarks.measuring import OURS, Comparison, Target
from benchmarks.report import BenchmarkConfig, Report, run_benchmark
from command_line import UserError

STEPS = 830
"""Of 2,048 tokens: the whole default run. After 200, parts look bad that pay in the end, such as `zero_projection`."""
AT_ONCE = 2


@dataclass(frozen=True)
class Part:
    """What the recipe has, and the flags of train.py that take it out."""

    name: str
    flags: tuple[str, ...]


PARTS = (
    Part("Muon, not AdamW", ("--optimizer", "adamw")),
    Part("ReLU², not GELU", ("--feed-forward", "gelu")),
    Part("RMSNorm, not LayerNorm", ("--normalization", "layernorm")),
    Part("rotary, not learned positions", ("--positions", "learned")),
    Part("QK-norm", ("--no-qk-norm",)),
    Part("projections from zero", ("--initialization", "gpt2")),
    Part("a head of its own", ("--tied-head",)),
    Part("linear, not cosine schedule", ("--schedule", "cosine")),
    Part("decay of matrices that grows with the epochs", ("--weight-decay", "0.1")),
)


@dataclass(frozen=True)
class Trained:
    """The best validation of a run, and its seconds of training on one thread."""

    bits_per_byte: float
    seconds: float


def train(steps: int, seed: int, flags: tuple[str, ...]) -> Trained:
    """One run of train.py on one thread; its folder is removed."""
    from model.checkpoint import read_card
    from training.metrics import read_metrics

    run = f"benchmark-ablation-{'-'.join(flag.strip('-') for flag in flags) or 'none'}-{steps}-{seed}"
    folder = PROJECT / "checkpoints" / run
    words = ["--run", run, "--overwrite", "--steps", str(steps), "--seed", str(seed), "--threads", "1"]
    words += ["--sample-tokens", "0", "--compile", "off", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "train.py", *words], cwd=PROJECT, env=environment, capture_output=True, text=True
    )
    try:
        if done.returncode:
            raise UserError(f"train.py {' '.join(words)} failed: {done.stderr.strip().splitlines()[-1:]}")
        best = read_card(folder / "best.pt")["provenance"]["best_validation"]
        seconds = max(line.get("seconds", 0.0) for line in read_metrics(folder / "metrics.jsonl"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{steps} steps, seed {seed}, {' '.join(flags) or OURS}: {best['bits_per_byte']:.4f}", flush=True)
    return Trained(best["bits_per_byte"], seconds)


def answer(config: BenchmarkConfig) -> Report:
    """The parts of the network and of the optimizer."""
    return with_and_without(PARTS, "Does every part of the default recipe pay?", config)


def with_and_without(parts: Sequence[Part], question: str, config: BenchmarkConfig) -> Report:
    """Every seed with the whole recipe and with one part less, some runs at once."""
    steps = 10 if config.quick else STEPS
    seeds = range(1337, 1337 + config.turns(3))
    with ThreadPoolExecutor(AT_ONCE) as executor:
        runs = {
            flags: [executor.submit(train, steps, seed, flags) for seed in seeds]
            for flags in [(), *(part.flags for part in parts)]
        }
        trained = {flags: [run.result() for run in of_flags] for flags, of_flags in runs.items()}
    whole = trained[()]
    comparisons, seconds = [], {}
    for part in parts:
        without = trained[part.flags]
        comparisons.append(
            Comparison(
                f"tales after {steps} steps: {part.name}", "bits per byte", f"without (`{' '.join(part.flags)}`)",
                [run.bits_per_byte for run in whole], [run.bits_per_byte for run in without], Target("at most", 1),
            )
        )  # fmt: skip
        ratios = [run.seconds / other.seconds for run, other in zip(whole, without, strict=True)]
        seconds[part.name] = round(statistics.median(ratios), 3)
    return Report(
        question,
        comparisons,
        [f"{AT_ONCE} runs at a time, each on one thread; equal steps, what time they took stands in the facts"],
        facts={"seconds of training, with the part / without": seconds},
    )


if __name__ == "__main__":
    run_benchmark("ablations", __doc__, answer)
