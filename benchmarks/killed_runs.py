"""Training runs of this project under `kill -9`, by the harness of `killing`.

After each kill every announced checkpoint must be there and verify; at the end the run is resumed to its last step and
must have left the same bits as one that was never killed.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.killing import Child, LostError, Tally, kill_at_random
from data.prepare import PreparedCorpus, prepare_corpus
from data.sources import open_source
from model.checkpoint import load_checkpoint, verify_checkpoint
from model.checkpoint_choice import step_checkpoints
from model.config import ModelConfig
from model.gpt import GPT
from training.config import TrainConfig
from training.distributed import Workers
from training.interruption import Interruption
from training.plan import Plan
from training.run_state import RunFolder
from training.trainer import Trainer

MODEL = {"vocab_size": 257, "context_length": 16, "n_layer": 1, "n_head": 2, "n_embd": 8, "dropout": 0.2}
CONFIG = TrainConfig(keep_checkpoints=2)
MEASURED_EVERY = 100
"""Trials between two measurements of how long a run takes: it changes with what else the machine does."""
PLAN = Plan(
    n_steps=6,
    sequences=8,
    micro_batch_size=4,
    evaluate_every_steps=2,
    save_every_steps=1,
    device="cpu",
    precision="fp32",
    compile=False,
    threads=1,
)


def train(run: Path, corpus: PreparedCorpus, say: Callable[[str], None]) -> None:
    """Start a run or go on with it; says `begin N` and `saved N` around every step checkpoint."""
    with RunFolder.open(run, resume=True, overwrite=False) as folder:
        save_step = folder.save_step

        def announced_save(step: int, **values: Any) -> str:
            say(f"begin {step}")
            sha256 = save_step(step, **values)
            say(f"saved {step}")
            return sha256

        folder.save_step = announced_save  # type: ignore[method-assign]
        checkpoint = folder.newest_checkpoint()
        torch.manual_seed(CONFIG.seed)
        model = GPT(ModelConfig(**MODEL)) if checkpoint is None else checkpoint.build_model()  # type: ignore[arg-type]
        trainer = Trainer(
            model.train(),
            corpus,
            CONFIG,
            PLAN,
            folder,
            workers=Workers(),
            interruption=Interruption(),
            provenance={},
            show_sample=lambda step, progress: None,
        )
        if checkpoint is not None and checkpoint.training_state is not None:
            trainer.load_training_state(checkpoint.training_state)
        trainer.run()


def bits(run: Path) -> str:
    """A hash of everything that a finished run leaves behind, but for how long it took."""
    checkpoint = load_checkpoint(run / f"step-{PLAN.n_steps:06d}.pt")
    assert checkpoint.training_state is not None
    found = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found.update(bytes(value.contiguous().reshape(-1).view(torch.uint8).numpy()))
        elif isinstance(value, dict):
            for name in value.keys() - {"training_seconds", "seconds"}:
                found.update(str(name).encode())
            for name, item in value.items():
                if name not in ("training_seconds", "seconds"):
                    add(item)
        elif isinstance(value, list):
            for item in value:
                add(item)
        else:
            found.update(repr(value).encode())

    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    add([checkpoint.state_dict, checkpoint.training_state, load_checkpoint(run / "best.pt").state_dict, metrics])
    return found.hexdigest()


def check_after_kill(run: Path, said: list[str]) -> None:
    """Raise LostError unless what was announced is there, and all that has a checkpoint's name is one."""
    for path in run.glob("*.pt"):
        verify_checkpoint(path)
    announced = [int(words.split()[1]) for words in said if words.startswith("saved")]
    found = step_checkpoints(run)
    if announced and (not found or found[0][0] < max(announced)):
        raise LostError(f"step {max(announced)} was announced, {[step for step, _ in found]} are there")


def trial(folder: Path, corpus: PreparedCorpus, seed: int, expected: str, run_seconds: float, tally: Tally) -> None:
    """One run, killed and resumed; adds to the tally."""
    source = random.Random(seed)
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    said: list[str] = []
    tally.trials += 1
    try:
        for _ in range(source.randint(3, 8) if source.random() < 0.1 else 1):
            child = Child(lambda say: train(run, corpus, say), folder / "errors")
            kill_at_random(child, source, run_seconds, PLAN.n_steps)
            code = child.end(kill=True)
            if code > 0:
                raise LostError((folder / "errors").read_text(encoding="utf-8").splitlines()[-1])
            tally.count(child, code)
            said += child.said
            check_after_kill(run, said)
        if Child(lambda say: train(run, corpus, say), folder / "errors").end(kill=False) != 0:
            raise LostError((folder / "errors").read_text(encoding="utf-8").splitlines()[-1])
        if bits(run) != expected:
            raise LostError("the resumed run ended with other bits")
        names = sorted(path.name for path in run.iterdir() if path.suffix in (".pt", ".tmp"))
        if len(names) != CONFIG.keep_checkpoints + 1 or any(name.endswith(".tmp") for name in names):
            raise LostError(f"left behind: {names}")
    except (LostError, ValueError, OSError) as error:
        tally.lose(seed, error)


def length_of_a_run(folder: Path, corpus: PreparedCorpus) -> float:
    """Seconds of a run that is not killed, which it leaves in `again`."""
    shutil.rmtree(folder / "again", ignore_errors=True)
    started = time.monotonic()
    if Child(lambda say: train(folder / "again", corpus, say), folder / "errors").end(kill=False) != 0:
        raise LostError((folder / "errors").read_text(encoding="utf-8"))
    return time.monotonic() - started


def kill_our_runs(n_trials: int, folder: Path, first_seed: int = 0) -> Tally:
    """Many trials of this project; `folder` is for their files."""
    text = folder / "text.txt"
    text.write_text("the cat sat on the mat. a dog ran to the old mill. " * 40, encoding="utf-8")
    corpus = prepare_corpus(
        open_source(str(text)), "byte", context_length=16, cache_folder=folder / "tokens", progress=False
    )
    # The unbroken run, in this very process: what PyTorch loads at its first step, the children have then already.
    train(folder / "unbroken", corpus, lambda words: None)
    expected, tally = bits(folder / "unbroken"), Tally()
    run_seconds = 0.0
    for seed in range(first_seed, first_seed + n_trials):
        if (seed - first_seed) % MEASURED_EVERY == 0:
            run_seconds = length_of_a_run(folder, corpus)
            if bits(folder / "again") != expected:
                tally.lose(seed, "two runs that were not killed differ")
        trial(folder, corpus, seed, expected, run_seconds, tally)
    return tally
