"""nanoGPT (Karpathy, github.com/karpathy/nanoGPT, MIT) as a peer, run from a checkout that the user points to.

Its training is its own `train.py` in its own process. A character corpus is given to it as its own preparation script
would write it: `train.bin` and `val.bin` of 16-bit ids, `meta.pkl` with the vocabulary; ends of documents are one more
character.
"""

from __future__ import annotations

import importlib.util
import math
import pickle
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.machine import git_commit
from command_line import UserError

CPU_CONFIGURATION = (
    "--device=cpu", "--compile=False", "--eval_iters=20", "--log_interval=1", "--block_size=64", "--batch_size=12",
    "--n_layer=4", "--n_head=4", "--n_embd=128", "--dropout=0.0",
)  # fmt: skip
"""The command of its README for a computer without a GPU; steps and evaluations are added by `train`."""
TRIAL_STEPS = 120
_ATTEMPTS, _ENOUGH = 3, 0.97
_SEPARATOR = "\0"
"""The character that stands for the end of a document; no text holds it."""


@dataclass(frozen=True)
class Checkout:
    """A folder that holds nanoGPT; raises UserError when it does not."""

    path: Path

    def __post_init__(self) -> None:
        for name in ("train.py", "model.py", "configurator.py", "config/train_shakespeare_char.py"):
            if not (self.path / name).is_file():
                raise UserError(
                    f"--nanogpt must be the folder of a nanoGPT checkout, but {self.path} has no {name}; "
                    "run: git clone https://github.com/karpathy/nanoGPT"
                )

    @property
    def commit(self) -> str:
        """Which nanoGPT this is; "unknown" when the folder is no git checkout."""
        return git_commit(self.path)

    def copy_to(self, folder: Path) -> Checkout:
        """A copy to work in: nanoGPT writes its data and runs into its own folder."""
        ignore = shutil.ignore_patterns(".git", "out*", "assets", "*.ipynb", "*.bin", "*.pkl")
        shutil.copytree(self.path, folder, ignore=ignore)
        return Checkout(folder)

    def model_module(self) -> Any:
        """Its `model.py` as a module: GPT and GPTConfig."""
        specification = importlib.util.spec_from_file_location("nanogpt_model", self.path / "model.py")
        assert specification is not None
        assert specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        sys.modules[specification.name] = module  # dataclasses look their module up by its name
        specification.loader.exec_module(module)
        return module

    def build(self, **config: Any) -> Any:
        """A fresh model of its own class."""
        module = self.model_module()
        return module.GPT(module.GPTConfig(**config))


def open_checkout(folder: str | None) -> Checkout:
    """The checkout that `--nanogpt` names; raises UserError without one."""
    if folder is None:
        raise UserError(
            "this question needs nanoGPT; run: git clone https://github.com/karpathy/nanoGPT and add --nanogpt nanoGPT"
        )
    return Checkout(Path(folder).absolute())


# ---- data --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CharacterData:
    """A prepared character corpus; `validation` begins with an end of document, from which its first one is predicted.

    `validation_bytes` are the UTF-8 bytes of the validation documents without separators.
    """

    vocab_size: int
    validation: npt.NDArray[np.int64]
    validation_bytes: int


def write_character_data(
    checkout: Checkout, name: str, training_documents: Iterable[str], validation_documents: Iterable[str]
) -> CharacterData:
    """Write data/<name>/ in nanoGPT's own format, every document followed by a separator character."""
    training = "".join(document + _SEPARATOR for document in training_documents)
    validation = "".join(document + _SEPARATOR for document in validation_documents)
    # As nanoGPT's own script: the vocabulary is that of the whole text.
    characters = sorted(set(training) | set(validation))
    ids = {character: number for number, character in enumerate(characters)}
    folder = checkout.path / "data" / name
    folder.mkdir(parents=True, exist_ok=True)
    encoded = {
        part: np.array([ids[c] for c in text], np.uint16) for part, text in (("train", training), ("val", validation))
    }
    for part, values in encoded.items():
        values.tofile(folder / f"{part}.bin")
    with (folder / "meta.pkl").open("wb") as file:
        pickle.dump({"vocab_size": len(characters), "stoi": ids, "itos": dict(enumerate(characters))}, file)
    return CharacterData(
        vocab_size=len(characters),
        validation=np.concatenate([[ids[_SEPARATOR]], encoded["val"]]).astype(np.int64),
        validation_bytes=len(validation.replace(_SEPARATOR, "").encode("utf-8")),
    )


# ---- training ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingRun:
    """One finished run of its `train.py`."""

    steps: int
    wall_seconds: float
    """From the start of the process to its exit."""
    step_seconds: list[float]
    """As it printed them."""
    checkpoint: Path


def train(checkout: Checkout, dataset: str, steps: int, *flags: str) -> TrainingRun:
    """Run its train.py for `steps` steps with its CPU configuration, evaluated once at the start and once at the end.

    That is less than its own default (every 250 steps), so none of its time is spent on what it need not do.
    """
    output = checkout.path / f"out-{dataset}"
    words = [
        "train.py", "config/train_shakespeare_char.py", *CPU_CONFIGURATION, f"--dataset={dataset}",
        f"--out_dir={output.name}", f"--max_iters={steps}", f"--lr_decay_iters={steps}", f"--eval_interval={steps}",
        *flags,
    ]  # fmt: skip
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *words], cwd=checkout.path, capture_output=True, text=True)
    wall_seconds = time.perf_counter() - started
    if done.returncode:
        raise UserError(f"nanoGPT's train.py failed: {done.stderr.strip().splitlines()[-1:]}")
    times = [float(number) / 1000 for number in re.findall(r"iter \d+: loss \S+, time ([\d.]+)ms", done.stdout)]
    return TrainingRun(steps, wall_seconds, times, output / "ckpt.pt")


def steps_for(budget_seconds: float, trial: TrainingRun) -> int:
    """How many steps fill a time from start to exit, by an earlier run: its median step and everything beside steps."""
    times = sorted(trial.step_seconds)
    step = times[len(times) // 2]
    beside = trial.wall_seconds - step * len(times)
    return max(1, round((budget_seconds - beside) / step))


def train_for(checkout: Checkout, dataset: str, budget_seconds: float) -> TrainingRun:
    """Run its train.py for a time from start to exit; it never gets noticeably less than that time.

    The number of steps comes from a short trial, which is not counted. Where the machine was slower during the trial
    than during the run, the run ended early: then it is the trial of the next one. Raises UserError when the machine is
    too restless for that.
    """
    run = train(checkout, dataset, TRIAL_STEPS)
    for _ in range(_ATTEMPTS):
        run = train(checkout, dataset, steps_for(budget_seconds, run))
        if run.wall_seconds >= _ENOUGH * budget_seconds:
            return run
    raise UserError(
        f"nanoGPT ran {run.wall_seconds:.0f} s in place of {budget_seconds:.0f} s, {_ATTEMPTS} times; "
        "close what else is running and try again"
    )


def save_untrained(checkout: Checkout, dataset: str, **config: Any) -> None:
    """Write a checkpoint of fresh weights where its sample.py looks for it."""
    folder = checkout.path / f"out-{dataset}"
    folder.mkdir(exist_ok=True)
    model = checkout.build(**config)
    torch.save({"model": model.state_dict(), "model_args": config, "config": {"dataset": dataset}}, folder / "ckpt.pt")


# ---- evaluation --------------------------------------------------------------------------------------------------


def load_model(checkout: Checkout, checkpoint: Path) -> Any:
    """The trained model of a checkpoint, ready to evaluate."""
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model = checkout.build(**saved["model_args"])
    model.load_state_dict(saved["model"])
    return model.eval()


def bits_per_byte(model: Any, data: CharacterData, stride: int) -> float:
    """Score the whole validation text; windows begin every `stride` characters and count what none before them did.

    With half a window as stride, nanoGPT gets the protocol of this project's own evaluation, which is kinder to it than
    its own: random windows, whose first characters have nothing before them.
    """
    length = model.config.block_size
    stream = torch.from_numpy(data.validation)
    targets = len(stream) - 1
    starts = sorted({*range(0, max(1, targets - length + 1), stride), max(0, targets - length)})
    nats, counted_to = math.log(data.vocab_size), 0  # the first separator itself, as this project charges its own
    for first in range(0, len(starts), 64):
        chosen = starts[first : first + 64]
        windows = torch.stack([stream[start : start + length + 1] for start in chosen])
        losses = _losses(model, windows)
        for start, row in zip(chosen, losses, strict=True):
            nats += float(row[counted_to - start :].double().sum())
            counted_to = start + len(row)
    return nats / math.log(2) / data.validation_bytes


@torch.no_grad()
def _losses(model: Any, windows: Tensor) -> Tensor:
    """Nats of every target: (B, T + 1) → (B, T)."""
    targets = windows[:, 1:].contiguous()
    logits, _ = model(windows[:, :-1].contiguous(), targets)  # with targets it returns the logits of all positions
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
