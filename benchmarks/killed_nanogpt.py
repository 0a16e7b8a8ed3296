"""nanoGPT's own train.py under `kill -9`, by the harness of `killing`.

It writes its one checkpoint in place and cannot go on bit for bit, so only this is asked of it: once it has announced a
checkpoint, one can be loaded after the kill.
"""

from __future__ import annotations

import importlib
import os
import pickle
import random
import runpy
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.killed_runs import MEASURED_EVERY
from benchmarks.killing import Child, LostError, Tally, kill_at_random

NANOGPT_FLAGS = (
    "--device=cpu", "--compile=False", "--eval_iters=1", "--eval_interval=1", "--max_iters=6", "--log_interval=1000",
    "--block_size=16", "--batch_size=8", "--n_layer=1", "--n_head=2", "--n_embd=8", "--always_save_checkpoint=True",
    "--dataset=killed", "--gradient_accumulation_steps=1",
)  # fmt: skip


def _copy_with_data(checkout: Path, folder: Path) -> Path:
    copy = folder / "nanoGPT"
    shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git", "assets"))
    data = copy / "data" / "killed"
    data.mkdir(parents=True)
    for name in ("train.bin", "val.bin"):
        (np.arange(2000) % 50).astype(np.uint16).tofile(data / name)
    with (data / "meta.pkl").open("wb") as file:
        pickle.dump({"vocab_size": 257}, file)  # as many as our runs have
    return copy


def kill_nanogpt(checkout: Path, n_trials: int, folder: Path, first_seed: int = 0) -> Tally:
    """Many trials of nanoGPT; lost is a checkpoint that was there and cannot be loaded now."""
    copy = _copy_with_data(checkout, folder)

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

    importlib.import_module("torch._dynamo")  # or every child would load it for seconds at its first step
    tally, run_seconds, n_saves = Tally(), 0.0, 0
    for seed in range(first_seed, first_seed + n_trials):
        source = random.Random(seed)
        shutil.rmtree(folder / "out", ignore_errors=True)
        if (seed - first_seed) % MEASURED_EVERY == 0:
            started = time.monotonic()
            child = Child(work, folder / "errors")
            if child.end(kill=False) != 0:
                raise LostError((folder / "errors").read_text(encoding="utf-8"))
            run_seconds, n_saves = time.monotonic() - started, len(child.said) // 2
            shutil.rmtree(folder / "out")
        child = Child(work, folder / "errors")
        kill_at_random(child, source, run_seconds, n_saves)
        code = child.end(kill=True)
        tally.trials += 1
        tally.count(child, code)
        if any(words.startswith("saved") for words in child.said):
            try:
                torch.load(folder / "out" / "ckpt.pt", weights_only=True)
            except Exception as error:  # noqa: BLE001 - whatever it raises, the checkpoint is lost
                tally.lose(seed, type(error).__name__)
    return tally
