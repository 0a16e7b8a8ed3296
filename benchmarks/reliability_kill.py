"""How often does `kill -9` lose work? Real training runs, killed at random and in the middle of their saves.

A trial: a training run that saves after every step is killed by SIGKILL, once or (one trial in ten) three to eight
times in a row, also while it resumes and cleans up. Half of the kills come at a random time, half a random while after
a save has begun. After each kill every announced checkpoint must be there and verify; at the end the run is resumed to
its last step and must have left the same bits as one that was never killed. A fork server makes a trial cheap: PyTorch
is imported once.

With --nanogpt its own train.py goes through the same kills; lost means: its checkpoint can no longer be loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import runpy
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import Comparison
from benchmarks.report import BenchmarkConfig, Report, run_benchmark
from data.prepare import PreparedCorpus, prepare_corpus
from data.sources import open_source
from model.checkpoint import load_checkpoint, step_checkpoints, verify_checkpoint
from model.config import ModelConfig
from model.gpt import GPT
from training.config import TrainConfig
from training.distributed import Workers
from training.interruption import Interruption
from training.plan import Plan
from training.run_state import RunFolder
from training.trainer import Trainer

TRIALS = 3000
MODEL = {"vocab_size": 257, "context_length": 16, "n_layer": 1, "n_head": 2, "n_embd": 8, "dropout": 0.2}
CONFIG = TrainConfig(keep_checkpoints=2)
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


class LostError(Exception):
    """A promise was broken; the message says which."""


@dataclass
class Tally:
    """What the trials of one contender came to."""

    trials: int = 0
    kills: int = 0
    kills_in_save: int = 0
    """Kills that came after a save had begun and before it was announced."""
    lost: list[str] = field(default_factory=list)
    """Every broken promise, with the seed that repeats it."""


# ---- the runs that are killed ------------------------------------------------------------------------------------


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


# ---- killing -----------------------------------------------------------------------------------------------------


@dataclass
class Child:
    """A forked process and what it has said so far."""

    work: Callable[[Callable[[str], None]], None]
    errors: Path
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._readable, writable = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(writable)
        os.close(writable)

    def _run(self, writable: int) -> None:
        status = 1
        try:
            log = os.open(self.errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)

            def say(words: str) -> None:
                os.write(writable, f"{words}\n".encode())

            self.work(say)
            status = 0
        except BaseException as error:  # noqa: BLE001 - a forked child must never run on into its parent's code
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(status)

    def listen(self, until: Callable[[str], bool], seconds: float) -> None:
        """Collect what it says until a line that ends the wait, the end of the process, or the time."""
        deadline = time.monotonic() + seconds
        while not (self.said and until(self.said[-1])):
            ready, _, _ = select.select([self._readable], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return
            part = os.read(self._readable, 4096)
            if not part:
                return
            self.said += part.decode().splitlines()

    def end(self, *, kill: bool) -> int:
        """Wait for its end, after killing it if asked to; returns its exit code (negative: a signal's number)."""
        if kill:
            os.kill(self.pid, signal.SIGKILL)
        self.listen(lambda words: False, 600)
        os.close(self._readable)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def kill_at_random(child: Child, source: random.Random, run_seconds: float, n_saves: int) -> None:
    """Kill at any time of the run, or a random while after one of its saves has begun."""
    if source.random() < 0.5:
        child.listen(lambda words: False, source.uniform(0, run_seconds))
    else:
        target = source.randint(1, n_saves)
        child.listen(lambda words: sum(line.startswith("begin") for line in child.said) >= target, 600)
        child.listen(lambda words: False, source.uniform(0, run_seconds / n_saves))


def in_save(said: list[str]) -> bool:
    """Whether the last thing said was that a save begins."""
    return bool(said) and said[-1].startswith("begin")


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
            tally.kills += code == -signal.SIGKILL
            tally.kills_in_save += code == -signal.SIGKILL and in_save(child.said)
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
        tally.lost.append(f"seed {seed}: {error}")


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
    started = time.monotonic()
    if Child(lambda say: train(folder / "again", corpus, say), folder / "errors").end(kill=False) != 0:
        raise LostError((folder / "errors").read_text(encoding="utf-8"))
    run_seconds = time.monotonic() - started
    if bits(folder / "again") != expected:
        tally.lost.append("two runs that were not killed differ")
    for seed in range(first_seed, first_seed + n_trials):
        trial(folder, corpus, seed, expected, run_seconds, tally)
    return tally


# ---- nanoGPT through the same kills ------------------------------------------------------------------------------

NANOGPT_FLAGS = (
    "--device=cpu", "--compile=False", "--eval_iters=1", "--eval_interval=1", "--max_iters=6", "--log_interval=1000",
    "--block_size=16", "--batch_size=8", "--n_layer=1", "--n_head=2", "--n_embd=8", "--always_save_checkpoint=True",
    "--dataset=killed", "--gradient_accumulation_steps=1",
)  # fmt: skip


def kill_nanogpt(checkout: Path, n_trials: int, folder: Path) -> Tally:
    """nanoGPT's own train.py, killed in the same way; lost is a checkpoint that was there and cannot be loaded now."""
    copy = folder / "nanoGPT"
    shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git", "assets"))
    data = copy / "data" / "killed"
    data.mkdir(parents=True)
    for name in ("train.bin", "val.bin"):
        (np.arange(2000) % 50).astype(np.uint16).tofile(data / name)

    def work(say: Callable[[str], None]) -> None:
        save, n_saves = torch.save, 0

        def announced_save(*arguments: Any, **settings: Any) -> None:
            nonlocal n_saves
            n_saves += 1
            say(f"begin {n_saves}")
            save(*arguments, **settings)
            say(f"saved {n_saves}")

        torch.save = announced_save
        os.chdir(copy)
        sys.path.insert(0, str(copy))
        for name in [name for name in sys.modules if name == "model" or name.startswith("model.")]:
            del sys.modules[name]  # nanoGPT has a module of that name, too
        sys.argv = ["train.py", *NANOGPT_FLAGS, f"--out_dir={folder / 'out'}"]
        runpy.run_path("train.py", run_name="__main__")

    started = time.monotonic()
    child = Child(work, folder / "errors")
    if child.end(kill=False) != 0:
        raise LostError((folder / "errors").read_text(encoding="utf-8"))
    run_seconds, n_saves, tally = time.monotonic() - started, len(child.said) // 2, Tally()
    for seed in range(n_trials):
        source = random.Random(seed)
        shutil.rmtree(folder / "out", ignore_errors=True)
        child = Child(work, folder / "errors")
        kill_at_random(child, source, run_seconds, n_saves)
        code = child.end(kill=True)
        tally.trials += 1
        tally.kills += code == -signal.SIGKILL
        tally.kills_in_save += code == -signal.SIGKILL and in_save(child.said)
        if any(words.startswith("saved") for words in child.said):
            try:
                torch.load(folder / "out" / "ckpt.pt", weights_only=True)
            except Exception as error:  # noqa: BLE001 - whatever it raises, the checkpoint is lost
                tally.lost.append(f"seed {seed}: {type(error).__name__}")
    return tally


def answer(config: BenchmarkConfig) -> Report:
    """Kill ours, and nanoGPT when it is there."""
    torch.set_num_threads(1)
    n_trials = config.turns(TRIALS) if not config.quick else config.rounds or 5
    tallies: dict[str, Tally] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "ours").mkdir()
        tallies["this project"] = kill_our_runs(n_trials, folder / "ours")
        if config.nanogpt is not None:
            (folder / "peer").mkdir()
            tallies["nanoGPT"] = kill_nanogpt(Path(config.nanogpt), n_trials, folder / "peer")
    notes = [
        f"{name}: {tally.trials} trials, {tally.kills} kills, {tally.kills_in_save} of them within a save, "
        f"{len(tally.lost)} lost"
        for name, tally in tallies.items()
    ]
    comparisons: list[Comparison] = []
    facts = {
        name: {**vars(tally), "lost": tally.lost[:20], "n_lost": len(tally.lost)} for name, tally in tallies.items()
    }
    return Report("How often does kill -9 lose work?", comparisons, notes, facts)


if __name__ == "__main__":
    run_benchmark("reliability_kill", str(__doc__), answer)
