"""How fast does a model of GPT-2's size (124 M) write on this CPU, its weights in 32, 16 or 8 bits?"""

from __future__ import annotations

import functools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.machine import PROJECT
from benchmarks.measuring import OURS, Comparison, Target, alternate, compare, in_own_process
from benchmarks.report import BenchmarkConfig, Report, run_benchmark
from command_line import MissingPackageError

NEW_TOKENS = 64
WARM_UP_TOKENS = 8
PROMPT = "The"
"""A single token: torch has no fast product of several rows in bf16 for every processor, so a peer would be stopped
by its prompt already."""

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


def timed(draw: Callable[[int], object], new_tokens: int, began: float, what: str) -> float:
    """Tokens per second of `draw` after a warm-up, or the seconds from `began` to the end of the warm-up."""
    draw(WARM_UP_TOKENS)
    if what == "warm-up":
        return time.perf_counter() - began
    started = time.perf_counter()
    draw(new_tokens)
    return new_tokens / (time.perf_counter() - started)


def ours(folder: str, precision: str, new_tokens: int, what: str) -> float:
    """`TextGenerator` with the compiled kernel; `began` stands behind the imports, so the load counts as warm-up."""
    from generation.config import LoadConfig, SamplingConfig
    from generation.text_generator import TextGenerator

    load = LoadConfig(precision=precision, compile=True)  # type: ignore[arg-type]
    began = time.perf_counter()
    generator = TextGenerator.load(Path(folder) / "gpt2.pt", "cpu", load.precision, compile=load.compile)

    def draw(n_tokens: int) -> None:
        generator.generate(PROMPT, SamplingConfig(temperature=0.0, max_new_tokens=n_tokens, min_new_tokens=n_tokens))

    return timed(draw, new_tokens, began, what)


def hugging_face(folder: str, precision: str, new_tokens: int, what: str) -> float:
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
        return timed(draw, new_tokens, began, what)


def llama_cpp(folder: str, precision: str, new_tokens: int, what: str) -> float:
    """llama.cpp through llama-cpp-python, on as many threads as this process may use cores."""
    import itertools

    from llama_cpp import Llama

    began = time.perf_counter()
    path = Path(folder) / f"{LLAMA_CPP_TYPES[precision]}.gguf"
    model = Llama(str(path), n_ctx=1024, n_threads=len(os.sched_getaffinity(0)), verbose=False)
    prompt = model.tokenize(PROMPT.encode(), add_bos=False)

    def draw(n_tokens: int) -> None:
        model.reset()
        for _ in itertools.islice(model.generate(prompt, temp=0.0), n_tokens):
            pass

    return timed(draw, new_tokens, began, what)


def int8_perplexity(minutes: float, work_folder: Path) -> Comparison:
    """Perplexity of int8 against bf16 weights on validation tales: random weights have none, so mini is trained."""
    import subprocess
    import sys

    from data.prepare import prepare_corpus
    from data.sources import open_source
    from generation.score import score_documents
    from generation.text_generator import TextGenerator

    name = "benchmark-decode-gpt2"
    words = ["train.py", "--run", name, "--overwrite", "--minutes", f"{minutes:g}", "--sample-tokens", "0"]
    subprocess.run([sys.executable, *words], cwd=PROJECT, check=True, capture_output=True)
    corpus = prepare_corpus(open_source("tales-en"), "auto", context_length=256, progress=False)
    documents = list(corpus.validation_documents())

    def perplexity(precision: str) -> float:
        path = PROJECT / "checkpoints" / name / "best.pt"
        generator = TextGenerator.load(path, "cpu", precision)  # type: ignore[arg-type]
        return score_documents(generator.model, generator.tokenizer, documents).perplexity

    return Comparison(
        f"perplexity of validation tales, mini after {minutes:g} min of training, int8", "", "bf16",
        [perplexity("int8")], [perplexity("bf16")], Target("at most", 1.005),
    )  # fmt: skip


def answer(config: BenchmarkConfig) -> Report:
    """Each width against llama.cpp at the same one, and against Hugging Face (which has fp32 and bf16)."""
    try:
        import llama_cpp as _  # noqa: F401
    except ImportError:
        raise MissingPackageError("llama-cpp-python", "the comparison with llama.cpp") from None
    new_tokens = 16 if config.quick else NEW_TOKENS
    comparisons: list[Comparison] = []
    with tempfile.TemporaryDirectory() as work_folder:
        save_model(Path(work_folder))
        for precision in ("fp32", "bf16", "int8"):
            theirs = "fp32" if precision == "int8" else precision
            peers = {
                f"llama.cpp, {LLAMA_CPP_TYPES[precision]}": functools.partial(llama_cpp, work_folder, precision),
                f"Hugging Face generate, {theirs}": functools.partial(hugging_face, work_folder, theirs),
            }
            contenders = {OURS: functools.partial(ours, work_folder, precision), **peers}
            for what, unit in (("speed", "tokens/s"), ("warm-up", "s")):
                runs = {
                    name: functools.partial(in_own_process, work, new_tokens, what) for name, work in contenders.items()
                }
                values = alternate(runs, config.turns(3) if what == "speed" else 1)
                targets = [Target("at least", 1), Target("at least", 2)] if what == "speed" else [None, None]
                named = f"decode GPT-2 124M, one sample, {precision}" + (", load and warm-up" * (what == "warm-up"))
                comparisons += compare(named, unit, values, dict(zip(peers, targets, strict=True)))
        if not config.quick:
            comparisons.append(int8_perplexity(TRAINING_MINUTES, Path(work_folder)))
    return Report(
        "How fast does a model of GPT-2's size write on this CPU, its weights in 32, 16 or 8 bits?",
        comparisons,
        ["random weights of GPT-2's shape, greedy, behind one token; Hugging Face has no int8: its fp32 stands there"],
    )


if __name__ == "__main__":
    run_benchmark("decode_gpt2", __doc__, answer)
