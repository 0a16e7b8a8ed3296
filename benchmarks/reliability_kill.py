"""How often does `kill -9` lose work? Real training runs, killed at random and in the middle of their saves.

A trial: a training run that saves after every step is killed by SIGKILL, once or (one trial in ten) three to eight
times in a row, also while it resumes and cleans up. Half of the kills come at a random time, half a random while after
a save has begun. What is checked then: `killed_runs`.

With --nanogpt its own train.py goes through the same kills (`killed_nanogpt`), each trial with one.

All 3,000 trials in parts: `--rounds 200`, then `--rounds 200 --first-seed 200`, and so on; each part is added to the
result of those before it, and nanoGPT, which takes longer, may be left out of later ones.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.killed_nanogpt import kill_nanogpt
from benchmarks.killed_runs import kill_our_runs
from benchmarks.killing import Tally
from benchmarks.machine import git_commit
from benchmarks.measuring import OURS
from benchmarks.report import RESULTS_FOLDER, BenchmarkConfig, Report, run_benchmark
from command_line import UserError

QUESTION = "reliability_kill"
TRIALS = 3000
PROCESSES = 4
"""Trials at the same time: they wait more than they compute."""
PEER = "nanoGPT"


def earlier_facts(first_seed: int, contenders: list[str], folder: Path = RESULTS_FOLDER) -> dict[str, Any]:
    """What the result file holds of the trials before `first_seed`; raises UserError unless it holds just those."""
    if first_seed == 0:
        return {"parts": [], **{name: dataclasses.asdict(Tally()) for name in contenders}}
    path = folder / f"{QUESTION}.json"
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["facts"] if path.exists() else {}
    for name in contenders:
        n_trials = facts.get(name, {}).get("trials", 0)
        if n_trials != first_seed:
            raise UserError(
                f"--first-seed {first_seed} goes on after {first_seed} trials, but {path.name} holds {n_trials} of "
                f"{name}; give --first-seed {n_trials}"
            )
    return facts


def kill_in_parallel(kill: Callable[..., Tally], n_trials: int, first_seed: int, folder: Path) -> list[Tally]:
    """The tallies of `kill(n_trials, folder, first_seed)`, its trials dealt out to a few processes."""
    n_parts = min(PROCESSES, n_trials)
    borders = [first_seed + n_trials * part // n_parts for part in range(n_parts + 1)]
    folders = [folder / str(part) for part in range(n_parts)]
    for part in folders:
        part.mkdir(parents=True)
    lengths = [end - begin for begin, end in itertools.pairwise(borders)]
    # Fresh interpreters: one that has computed on several threads must not be forked.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n_parts, context, initializer=torch.set_num_threads, initargs=(1,)) as executor:
        return list(executor.map(kill, lengths, folders, borders[:-1]))


def answer(config: BenchmarkConfig) -> Report:
    """Kill ours, and nanoGPT when it is there."""
    n_trials = config.turns(TRIALS) if not config.quick else config.rounds or 5
    contenders = [OURS, *([PEER] if config.nanogpt is not None else [])]
    facts = earlier_facts(config.first_seed, contenders)
    tallies = {name: Tally(**facts[name]) for name in (OURS, PEER) if name in facts}
    with tempfile.TemporaryDirectory() as folder:
        for tally in kill_in_parallel(kill_our_runs, n_trials, config.first_seed, Path(folder) / "ours"):
            tallies[OURS].add(tally)
        if config.nanogpt is not None:
            kill_peer = functools.partial(kill_nanogpt, Path(config.nanogpt))
            for tally in kill_in_parallel(kill_peer, n_trials, config.first_seed, Path(folder) / "peer"):
                tallies[PEER].add(tally)
    notes = [
        f"{name}: {tally.trials} trials, {tally.kills} kills, {tally.kills_in_save} of them within a save, "
        f"{tally.n_lost} lost"
        for name, tally in tallies.items()
    ]
    last_seed = config.first_seed + n_trials - 1
    parts = [*facts["parts"], f"{', '.join(contenders)}: seeds {config.first_seed} to {last_seed} at {git_commit()}"]
    results = {"parts": parts, **{name: dataclasses.asdict(tally) for name, tally in tallies.items()}}
    return Report("How often does kill -9 lose work?", [], notes, results)


if __name__ == "__main__":
    run_benchmark(QUESTION, str(__doc__), answer)
