"""How long does it take to bring GPT-2 (124 M) in, and how much memory? The whole `convert.py import` of a folder."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.machine import PROJECT
from benchmarks.measuring import OURS, Comparison, Target, alternate, compare, in_own_process, seconds
from benchmarks.report import BenchmarkConfig, Report, run_benchmark
from command_line import MissingPackageError

ALLOWED_SECONDS = 5.0
ALLOWED_WEIGHT_SIZES = 2.2
TRANSFORMERS = "transformers: from_pretrained, torch.save, fsync"
WITHIN = f"{OURS}, torch being imported"


def save_folder(folder: Path, n_layer: int) -> int:
    """GPT-2 with random weights as transformers saves it, and GPT-2's tokenizer; returns the bytes of the weights."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from data.tokenizers.byte_pair_merges import merges_from_ranks
    from data.tokenizers.tiktoken_bpe import load_tiktoken
    from data.tokenizers.trained_bpe import byte_of_printable

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=n_layer))
    model.save_pretrained(folder)
    printable = {value: character for character, value in byte_of_printable().items()}
    tokenizer = load_tiktoken("gpt2")
    words = ["".join(map(printable.__getitem__, token)) for token in tokenizer.tokens]
    words[tokenizer.end_of_text] = "<|endoftext|>"
    merges = [
        " ".join("".join(map(printable.__getitem__, part)) for part in pair)
        for pair in merges_from_ranks(tokenizer.tokens)
    ]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def command(folder: Path) -> list[str]:
    """The words behind `python` that import a folder into a file beside it."""
    return ["convert.py", "import", str(folder / "gpt2"), "--output", str(folder / "best.pt"), "--overwrite"]


def seconds_of_import(folder: Path) -> float:
    """The whole command: from starting Python to its end, with a checkpoint that is synced and was read back."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *command(folder)], cwd=PROJECT, check=True, capture_output=True)
    return time.perf_counter() - started


def seconds_within_python(folder: Path) -> float:
    """The same without what every program with PyTorch waits for: starting Python and importing torch."""
    import torch  # noqa: F401

    from convert import main

    sys.argv = command(folder)
    return seconds(main)


def bytes_of_import(folder: Path) -> float:
    """Peak anonymous memory of the same in this process, Python and torch included."""
    from benchmarks.memory import peak_anonymous_bytes
    from convert import main

    sys.argv = command(folder)
    return peak_anonymous_bytes(main)


def load_and_save(folder: Path) -> None:
    """What comes nearest with transformers: model and tokenizer into one file, unverified."""
    import torch
    from transformers import GPT2LMHeadModel, GPT2TokenizerFast

    model = GPT2LMHeadModel.from_pretrained(folder / "gpt2")
    tokenizer = GPT2TokenizerFast.from_pretrained(folder / "gpt2")
    with (folder / "transformers.pt").open("wb") as file:
        content = {"state_dict": model.state_dict(), "tokenizer": tokenizer.backend_tokenizer.to_str()}
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())


def seconds_of_transformers(folder: Path) -> float:
    """`load_and_save` from starting Python to its end."""
    started = time.perf_counter()
    words = ["-c", f"import pathlib, benchmarks.import_gpt2 as b; b.load_and_save(pathlib.Path({str(folder)!r}))"]
    subprocess.run([sys.executable, *words], cwd=PROJECT, check=True, capture_output=True)
    return time.perf_counter() - started


def answer(config: BenchmarkConfig) -> Report:
    """Seconds of the whole command in turns with transformers, then its memory."""
    if importlib.util.find_spec("transformers") is None:
        raise MissingPackageError("transformers", "building GPT-2's folder")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weight_bytes = in_own_process(save_folder, folder / "gpt2", 2 if config.quick else 12)
        turns: dict[str, Callable[[], float]] = {
            OURS: functools.partial(seconds_of_import, folder),
            WITHIN: functools.partial(in_own_process, seconds_within_python, folder),
            TRANSFORMERS: functools.partial(seconds_of_transformers, folder),
        }
        values = alternate(turns, config.turns(5))
        memory = in_own_process(bytes_of_import, folder)
    task = "`convert.py import` GPT-2 124M"
    bound, target = f"{ALLOWED_SECONDS:g} s", Target("at most", 1)
    megabytes = [memory / 1e6]
    comparisons = [
        Comparison(task, "s", bound, values[OURS], [ALLOWED_SECONDS], target),
        Comparison(f"{task}, torch being imported", "s", bound, values[WITHIN], [ALLOWED_SECONDS], target),
        *compare(task, "s", values, {TRANSFORMERS: None}),
        Comparison(
            f"{task}, peak of anonymous memory", "MB", "its weights", megabytes, [weight_bytes / 1e6],
            Target("at most", ALLOWED_WEIGHT_SIZES),
        ),
    ]  # fmt: skip
    notes = [
        "random weights; the whole command, from starting Python to its end, the memory of torch itself included; "
        "torch being imported: without starting Python and importing torch"
    ]
    return Report("How long does it take to bring GPT-2 (124 M) in, and how much memory?", comparisons, notes)


if __name__ == "__main__":
    run_benchmark("import_gpt2", __doc__, answer)
