"""How fast does a model of GPT-2's size (124 M) write on this CPU, its weights in 32, 16 or 8 bits?"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.machine import PROJECT
from benchmarks.measuring import OURS, Comparison, Target, alternate, compare, in_own_process
from benchmarks.report import BenchmarkConfig, Report, run_benchmark
from command_line import MissingPackageError

NEW_TOKENS = 64
WARM_UP_TOKENS = 8
PROMPT = "The"
"""A single token: torch has no fast product of several rows in bf16 for every processor, so a peer would be stopped
by its prompt already."""

Precision = Literal["fp32", "bf16", "int8"]
WIDTHS: tuple[Precision, ...] = ("fp32", "bf16", "int8")
LLAMA_CPP_TYPES = {"fp32": "f32", "bf16": "bf16", "int8": "q8_0"}
TRAINING_MINUTES = 0.5


def save_model(folder: Path) -> None:
    """GPT-2's shape with random weights as a checkpoint, a Hugging Face folder and three GGUF files."""
    import torch

    from data.tokenizers.gguf_vocabulary import gguf_vocabulary
    from data.tokenizers.registry import build_tokenizer
    from model.checkpoint import save_checkpoint
    from model.config import preset_config
    from model.gguf_export import export_gguf
    from model.gpt import GPT
    from model.huggingface import export_model

    torch.manual_seed(0)
    config, tokenizer = preset_config("gpt2"), build_tokenizer("gpt2", lambda: iter(()), 0)
    weights = GPT(config).state_dict()
    save_checkpoint(
        folder / "gpt2.pt", model_config=config, state_dict=weights, tokenizer=tokenizer.state(), provenance={}
    )
    (folder / "hf").mkdir()
    export_model(config, weights, folder / "hf", end_of_text=tokenizer.end_of_text, begin_of_text=None, dtype="f32")
    for dtype in LLAMA_CPP_TYPES.values():
        export_gguf(config, weights, folder / f"{dtype}.gguf", vocabulary=gguf_vocabulary(tokenizer), dtype=dtype)


@dataclass(frozen=True)
class Drawn:
    """What one process measured: tokens per second, and before them the seconds to load and to draw a few tokens."""

    speed: float
    warm_up: float


Contender = Callable[[str, Precision, int], Drawn]
"""Called with the folder of the files, the width of the weights and the number of tokens to draw."""


def timed(draw: Callable[[int], object], new_tokens: int, began: float) -> Drawn:
    """Warm up, counted from `began`, which stands behind the imports; then draw."""
    draw(WARM_UP_TOKENS)
    started = time.perf_counter()
    draw(new_tokens)
    return Drawn(new_tokens / (time.perf_counter() - started), started - began)


def ours(folder: str, precision: Precision, new_tokens: int) -> Drawn:
    """`TextGenerator` with the compiled kernels; to compile them is a part of the warm-up."""
    from generation.config import SamplingConfig
    from generation.text_generator import TextGenerator

    began = time.perf_counter()
    generator = TextGenerator.load(Path(folder) / "gpt2.pt", "cpu", precision, compile=True)

    def draw(n_tokens: int) -> None:
        generator.generate(PROMPT, SamplingConfig(temperature=0.0, max_new_tokens=n_tokens, min_new_tokens=n_tokens))

    return timed(draw, new_tokens, began)


def hugging_face(folder: str, precision: Precision, new_tokens: int) -> Drawn:
    """transformers' `generate`, its weights in fp32 or bf16."""
    import torch
    from transformers import GPT2LMHeadModel

    began = time.perf_counter()
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    model = GPT2LMHeadModel.from_pretrained(Path(folder) / "hf", dtype=dtype).eval()
    prompt = torch.tensor([[464]])  # the one token of PROMPT

    def draw(n_tokens: int) -> None:
        model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=n_tokens,
            min_new_tokens=n_tokens, pad_token_id=0,
        )  # fmt: skip

    with torch.no_grad():
        return timed(draw, new_tokens, began)


def llama_cpp(folder: str, precision: Precision, new_tokens: int) -> Drawn:
    """llama.cpp through llama-cpp-python, on as many threads as this process may use cores."""
    from llama_cpp import Llama

    began = time.perf_counter()
    path = Path(folder) / f"{LLAMA_CPP_TYPES[precision]}.gguf"
    model = Llama(str(path), n_ctx=1024, n_threads=len(os.sched_getaffinity(0)), verbose=False)
    prompt = model.tokenize(PROMPT.encode(), add_bos=False)

    def draw(n_tokens: int) -> None:
        model.reset()
        for _ in itertools.islice(model.generate(prompt, temp=0.0), n_tokens):
            pass

    return timed(draw, new_tokens, began)


def int8_perplexity(minutes: float) -> Comparison:
    """Perplexity of int8 against bf16 weights on validation tales: random weights have none, so mini is trained."""
    from data.prepare import prepare_corpus
    from data.sources import open_source
    from generation.score import score_documents
    from generation.text_generator import TextGenerator

    name = "benchmark-decode-gpt2"
    words = ["train.py", "--run", name, "--overwrite", "--minutes", f"{minutes:g}", "--sample-tokens", "0"]
    subprocess.run([sys.executable, *words], cwd=PROJECT, check=True, capture_output=True)
    corpus = prepare_corpus(open_source("tales-en"), "auto", context_length=256, progress=False)
    documents = list(corpus.validation_documents())

    def perplexity(precision: Precision) -> float:
        generator = TextGenerator.load(PROJECT / "checkpoints" / name / "best.pt", "cpu", precision)
        return score_documents(generator.model, generator.tokenizer, documents).perplexity

    return Comparison(
        f"perplexity of validation tales, mini after {minutes:g} min of training, int8", "", "bf16",
        [perplexity("int8")], [perplexity("bf16")], Target("at most", 1.005),
    )  # fmt: skip


def compared(precision: Precision, folder: str, new_tokens: int, rounds: int) -> list[Comparison]:
    """One width against llama.cpp at the same one and against Hugging Face, which has no int8: its fp32 stands in."""
    theirs: Precision = "fp32" if precision == "int8" else precision
    peers: dict[str, Contender] = {
        f"llama.cpp, {LLAMA_CPP_TYPES[precision]}": llama_cpp,
        f"Hugging Face generate, {theirs}": hugging_face,
    }
    warm_ups: dict[str, list[float]] = {name: [] for name in (OURS, *peers)}

    def measure(name: str, work: Contender, width: Precision) -> float:
        drawn = in_own_process(work, folder, width, new_tokens)
        warm_ups[name].append(drawn.warm_up)
        return drawn.speed

    contenders = {OURS: functools.partial(measure, OURS, ours, precision)}
    for name, work in peers.items():
        contenders[name] = functools.partial(measure, name, work, theirs if work is hugging_face else precision)
    values = alternate(contenders, rounds)
    measured = f"decode GPT-2 124M, one sample, {precision}"
    targets = dict(zip(peers, (Target("at least", 1), Target("at least", 2)), strict=True))
    comparisons = compare(measured, "tokens/s", values, targets)
    return comparisons + compare(f"{measured}: load and warm-up", "s", warm_ups, dict.fromkeys(peers))


def answer(config: BenchmarkConfig) -> Report:
    """Each width in turn, then what int8 costs in perplexity."""
    if importlib.util.find_spec("llama_cpp") is None:
        raise MissingPackageError("llama-cpp-python", "the comparison with llama.cpp")
    comparisons: list[Comparison] = []
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder))
        for precision in WIDTHS:
            comparisons += compared(precision, folder, 16 if config.quick else NEW_TOKENS, config.turns(3))
    if not config.quick:
        comparisons.append(int8_perplexity(TRAINING_MINUTES))
    return Report(
        "How fast does a model of GPT-2's size write on this CPU, its weights in 32, 16 or 8 bits?",
        comparisons,
        ["random weights of GPT-2's shape, greedy, behind one token; warm-up: from the imports to the eighth token"],
    )


if __name__ == "__main__":
    run_benchmark("decode_gpt2", __doc__, answer)
