"""Does cost stay flat? Time per token far beyond the window, and memory of training on a thousand times the text."""

from __future__ import annotations

import functools
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.measuring import Comparison, Target, alternate, in_own_process
from benchmarks.report import BenchmarkConfig, Report, run_benchmark

MEGABYTE = 1_000_000
FLAT = Target("at most", 1.05)
TRAINING_STEPS = 20


def seconds_of_windows(n_windows: int) -> list[float]:
    """Seconds that each window's worth of tokens takes in one long text, the first window being filled by the prompt.

    After the window is full, its newest half is kept and recomputed, so every window holds the same kinds of steps.
    """
    from benchmarks.mini import mini_generator
    from generation.config import SamplingConfig

    generator, token_ids = mini_generator()
    window = generator.model.config.context_length
    n_tokens = n_windows * window
    sampling = SamplingConfig(max_new_tokens=n_tokens, min_new_tokens=n_tokens)
    times = [time.perf_counter()]
    prompt = generator.tokenizer.decode(token_ids[:window])
    n_drawn = 0
    for piece in generator.stream(prompt, sampling):
        n_drawn += piece.token_id is not None
        if n_drawn == len(times) * window:
            times.append(time.perf_counter())
    return [after - before for before, after in itertools.pairwise(times)]


def late_against_early(n_windows: int) -> float:
    """How much longer the last window takes than the second; the first one also warms up."""
    seconds = seconds_of_windows(n_windows)
    return seconds[-1] / seconds[1]


def training_memory(path: Path) -> float:
    """Peak anonymous megabytes of preparing a text and training mini on it for some steps, as train.py does."""
    from benchmarks.memory import peak_anonymous_bytes

    return peak_anonymous_bytes(lambda: _train(path)) / MEGABYTE


def _train(path: Path) -> None:
    from data.batches import Batches
    from data.prepare import prepare_corpus
    from data.sources import open_source
    from model.config import preset_config
    from model.gpt import GPT
    from training.config import TrainConfig
    from training.optimizers import build_optimizer
    from training.precision import keep_freed_memory

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        context_length = preset_config("mini", vocab_size=1).context_length
        corpus = prepare_corpus(
            open_source(str(path)), "bpe:2048", context_length=context_length, cache_folder=Path(folder), progress=False
        )
        keep_freed_memory()
        model = GPT(preset_config("mini", vocab_size=corpus.tokenizer.vocab_size))
        optimizer = build_optimizer(model, TrainConfig())
        batches = Batches(corpus.training, context_length, sequences=16, seed=0)
        for step in range(TRAINING_STEPS):
            model.loss(*batches.batch(step)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()


def answer(config: BenchmarkConfig) -> Report:
    """Both kinds of growth."""
    from benchmarks.texts import write_text

    n_windows, large = (3, 10) if config.quick else (12, 1000)
    growth = [in_own_process(late_against_early, n_windows) for _ in range(config.turns(5))]
    with tempfile.TemporaryDirectory() as folder:
        contenders: dict[str, Callable[[], float]] = {}
        for megabytes in (1, large):
            path = Path(folder) / f"{megabytes}.txt"
            write_text(path, megabytes * MEGABYTE)
            contenders[f"{megabytes} MB"] = functools.partial(in_own_process, training_memory, path)
        memory = alternate(contenders, config.turns(3))
    return Report(
        "Does cost stay flat?",
        [
            Comparison(f"time per token, window {n_windows}", "times", "the second window", growth, [1.0], FLAT),
            Comparison(
                f"memory of training, {large} MB of text", "MB", "1 MB", memory[f"{large} MB"], memory["1 MB"], FLAT
            ),
        ],
        ["memory holds Python, torch, the preparation of the text and the training of the preset mini"],
    )


if __name__ == "__main__":
    run_benchmark("cost_growth", __doc__, answer)
