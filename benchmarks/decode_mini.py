"""How fast does the default mini model write with a full window? After loading, and from a cold start."""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import decoding
from benchmarks.machine import PROJECT
from benchmarks.measuring import OURS, Target, alternate, compare, in_own_process
from benchmarks.report import BenchmarkConfig, Report, run_benchmark
from model.config import preset_config

WINDOW = preset_config("mini", vocab_size=1).context_length
NEW_TOKENS = 500
WITH_KERNELS = f"{OURS}, --compile"


def seconds_to_exit(folder: Path, *words: str) -> float:
    """From starting Python in a folder to its end."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - started


def from_cold_start(config: BenchmarkConfig, new_tokens: int, work_folder: Path) -> dict[str, list[float]]:
    """Seconds to the exit of `generate.py`, also with kernels that an earlier start has compiled, and of `sample.py`.

    nanoGPT gets 65 or so characters as vocabulary, in place of mini's 2,048 tokens: its sample.py needs a tokenizer
    that it knows, and a smaller head is no disadvantage.
    """
    from benchmarks import mini, nanogpt

    path = work_folder / "mini.pt"
    mini.save_mini(path)
    peer = nanogpt.open_checkout(config.nanogpt).copy_to(work_folder / "nanoGPT")
    sizes, tokenizer, token_ids = mini.mini_parts()
    # nanoGPT's flags are split at every "=".
    prompt = tokenizer.decode(token_ids[:WINDOW]).replace("=", "")
    nanogpt.write_character_data(peer, "tales", [prompt], [prompt])
    nanogpt.save_untrained(
        peer, "tales", vocab_size=len({*prompt, "\0"}), block_size=sizes.context_length, n_layer=sizes.n_layer,
        n_head=sizes.n_head, n_embd=sizes.n_embd, dropout=0.0, bias=False,
    )  # fmt: skip
    own_words = [
        "generate.py", "--checkpoint", str(path), "--prompt", tokenizer.decode(token_ids[:WINDOW]), "--top-k", "200",
        "--max-new-tokens", str(new_tokens), "--min-new-tokens", str(new_tokens),
    ]  # fmt: skip
    peer_words = [
        "sample.py", "--device=cpu", "--out_dir=out-tales", "--num_samples=1", f"--max_new_tokens={new_tokens}",
        f"--start={prompt}",
    ]  # fmt: skip
    seconds_to_exit(PROJECT, *own_words, "--compile")
    return alternate(
        {
            OURS: lambda: seconds_to_exit(PROJECT, *own_words),
            WITH_KERNELS: lambda: seconds_to_exit(PROJECT, *own_words, "--compile"),
            "nanoGPT": lambda: seconds_to_exit(peer.path, *peer_words),
        },
        config.turns(3),
    )


def answer(config: BenchmarkConfig) -> Report:
    """Tokens per second after loading, then seconds from a cold start."""
    new_tokens = 20 if config.quick else NEW_TOKENS
    with_kernels = functools.partial(decoding.ours, compile=True)
    contenders: dict[str, Callable[[], float]] = {
        OURS: functools.partial(in_own_process, decoding.ours, WINDOW, new_tokens, 1),
        WITH_KERNELS: functools.partial(in_own_process, with_kernels, WINDOW, new_tokens, 1),
        "Hugging Face generate": functools.partial(in_own_process, decoding.hugging_face, WINDOW, new_tokens, 1),
    }
    targets: dict[str, Target | None] = {"Hugging Face generate": Target("at least", 5)}
    if config.nanogpt is not None:
        folder = str(Path(config.nanogpt).absolute())
        contenders["nanoGPT"] = functools.partial(in_own_process, decoding.nanogpt, folder, WINDOW, new_tokens, 1)
        targets["nanoGPT"] = Target("at least", 15)
    values = alternate(contenders, config.turns(3))
    measure = f"decode mini, full window, {new_tokens} tokens"
    comparisons = compare(measure, "tokens/s", values, targets)
    comparisons += compare(f"{measure}, --compile", "tokens/s", {**values, OURS: values[WITH_KERNELS]}, targets)
    if config.nanogpt is not None:
        with tempfile.TemporaryDirectory() as work_folder:
            values = from_cold_start(config, new_tokens, Path(work_folder))
        cold = {"nanoGPT": Target("at most", 1 / 4)}
        measure = f"the same from a cold start to exit, {new_tokens} tokens"
        comparisons += compare(measure, "s", values, cold)
        comparisons += compare(f"{measure}, --compile", "s", {**values, OURS: values[WITH_KERNELS]}, cold)
    return Report(
        "How fast does the default mini model write 500 tokens when its window is full?",
        comparisons,
        ["Hugging Face runs a GPT-2 of the same sizes, with positions enough for prompt and continuation"],
    )


if __name__ == "__main__":
    run_benchmark("decode_mini", __doc__, answer)
