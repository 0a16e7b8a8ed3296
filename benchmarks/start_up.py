"""How long until something appears? `--help` against bare Python; the first token against `import torch`."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import PROJECT
from benchmarks.measuring import OURS, Comparison, Target, alternate, compare
from benchmarks.report import BenchmarkConfig, Report, run_benchmark
from command_line import UserError

ALLOWED_SECONDS_BEYOND_TORCH = 0.5
SAVE_MINI = "import sys, pathlib, benchmarks.mini; benchmarks.mini.save_mini(pathlib.Path(sys.argv[1]))"
"""In a process of its own, so that this one stays small and starts others quickly."""


def seconds_to_exit(*words: str) -> float:
    """From starting Python with these arguments to its end."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=PROJECT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def seconds_to_first_text(*words: str) -> float:
    """From starting Python with these arguments to the first byte on its standard output behind the prompt."""
    started = time.perf_counter()
    # Unbuffered reading, so that the byte counts when it comes and not when a buffer is full.
    with subprocess.Popen(
        [sys.executable, *words], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdout is not None
        first = os.read(process.stdout.fileno(), 1)
        elapsed = time.perf_counter() - started
        errors = process.communicate()[1]
    if not first:
        raise UserError(f"generate.py wrote nothing ({errors.decode().strip()})")
    return elapsed


def answer(config: BenchmarkConfig) -> Report:
    """Measure both starts."""
    bare = "python -c pass"
    values = alternate(
        {
            OURS: lambda: seconds_to_exit("generate.py", "--help"),
            bare: lambda: seconds_to_exit("-c", "pass"),
            "train.py --help": lambda: seconds_to_exit("train.py", "--help"),
        },
        config.turns(15),
    )
    help_target = Target("at most", 8)
    comparisons = [
        Comparison("`generate.py --help`", "s", bare, values[OURS], values[bare], help_target),
        Comparison("`train.py --help`", "s", bare, values["train.py --help"], values[bare], help_target),
    ]
    torch_import = f"import torch + {ALLOWED_SECONDS_BEYOND_TORCH} s"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mini.pt"
        subprocess.run([sys.executable, "-c", SAVE_MINI, path], cwd=PROJECT, check=True)
        # Without a prompt, because the prompt itself is printed before the model is asked.
        words = ("generate.py", "--checkpoint", str(path), "--max-new-tokens", "8", "--min-new-tokens", "8")
        values = alternate(
            {
                OURS: lambda: seconds_to_first_text(*words),
                torch_import: lambda: seconds_to_exit("-c", "import torch") + ALLOWED_SECONDS_BEYOND_TORCH,
            },
            config.turns(7),
        )
    comparisons += compare("`generate.py` to the first token", "s", values, {torch_import: Target("at most", 1)})
    return Report("How long until something appears?", comparisons)


if __name__ == "__main__":
    run_benchmark("start_up", __doc__, answer)
