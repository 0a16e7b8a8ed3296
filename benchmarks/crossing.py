"""When does a run of train.py first predict the validation text as well as asked for? Shared by the time_to questions.

The clock is the training time that the run itself writes beside every step: from the first step on, compiling
included, evaluations and saving left out.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import PROJECT
from command_line import UserError


@dataclass(frozen=True)
class Crossing:
    """The first evaluation at or below the loss asked for; None where the run never got there."""

    seconds: float | None
    step: int | None
    best_nats_per_byte: float
    training_seconds: float
    """Of the whole run."""


def find_crossing(lines: list[dict[str, float]], nats_per_byte: float) -> Crossing:
    """Read a crossing out of the lines of metrics.jsonl."""
    seconds = best_seconds = 0.0
    step, best = None, math.inf
    for line in lines:
        seconds = line.get("seconds", seconds)
        if "validation_bits_per_byte" in line:
            score = line["validation_bits_per_byte"] * math.log(2)
            best = min(best, score)
            if step is None and score <= nats_per_byte:
                step, best_seconds = int(line["step"]), seconds
    return Crossing(None if step is None else best_seconds, step, best, seconds)


def train_until(name: str, text: str, nats_per_byte: float, *flags: str) -> Crossing:
    """Train on a text file with the flags given and find the crossing; the run folder is removed afterwards."""
    from training.metrics import read_metrics

    run = f"benchmark-{name}"
    folder = PROJECT / "checkpoints" / run
    words = ["train.py", "--data", text, "--run", run, "--overwrite", "--sample-tokens", "0", *flags]
    done = subprocess.run([sys.executable, *words], cwd=PROJECT, capture_output=True, text=True)
    try:
        if done.returncode:
            raise UserError(f"train.py failed: {done.stderr.strip().splitlines()[-1:]}")
        return find_crossing(read_metrics(folder / "metrics.jsonl"), nats_per_byte)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def text_path(given: str | None) -> str:
    """The path of tinyshakespeare, as `--text` names it or fetched; raises UserError when there is none."""
    from data.corpora import fetch_corpus

    path = Path(given).absolute() if given is not None else fetch_corpus("tinyshakespeare")
    if not path.is_file():
        raise UserError(f"--text must name a text file, but is {given!r}")
    return str(path)
