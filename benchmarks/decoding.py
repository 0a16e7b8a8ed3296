"""Contenders of the questions about decoding: networks of the size of mini, each drawing tokens in its own way.

Every function runs in a process of its own and returns tokens per second, loading and a warm-up left out.
"""

from __future__ import annotations

import time
from pathlib import Path

TOP_K, TEMPERATURE = 200, 0.8
WARM_UP_TOKENS = 8


def ours(prompt_tokens: int, new_tokens: int, batch_size: int, *, compile: bool = False) -> float:
    """`TextGenerator.generate` of this project, the end of text held back so that all rows are equally long."""
    from benchmarks.mini import mini_generator
    from generation.config import SamplingConfig
    from model.decoding_kernels import use_decoding_kernels

    generator, token_ids = mini_generator()
    if compile:
        use_decoding_kernels(generator.model, "fp32")
    prompt = generator.tokenizer.decode(token_ids[:prompt_tokens])

    def draw(n_tokens: int) -> int:
        sampling = SamplingConfig(
            max_new_tokens=n_tokens, min_new_tokens=n_tokens, num_samples=batch_size, batch_size=batch_size,
            temperature=TEMPERATURE, top_k=TOP_K,
        )  # fmt: skip
        return sum(len(result.token_ids) for result in generator.generate(prompt, sampling))

    draw(WARM_UP_TOKENS)
    started = time.perf_counter()
    n_drawn = draw(new_tokens)
    return n_drawn / (time.perf_counter() - started)


def nanogpt(folder: str, prompt_tokens: int, new_tokens: int, batch_size: int) -> float:
    """nanoGPT's `GPT.generate`."""
    import torch

    from benchmarks.mini import mini_parts
    from benchmarks.nanogpt import Checkout

    config, _, token_ids = mini_parts()
    torch.manual_seed(0)
    model = Checkout(Path(folder)).build(
        vocab_size=config.vocab_size, block_size=config.context_length, n_layer=config.n_layer, n_head=config.n_head,
        n_embd=config.n_embd, dropout=0.0, bias=False,
    ).eval()  # fmt: skip
    prompt = torch.tensor([token_ids[:prompt_tokens]] * batch_size)
    model.generate(prompt, WARM_UP_TOKENS, temperature=TEMPERATURE, top_k=TOP_K)
    started = time.perf_counter()
    model.generate(prompt, new_tokens, temperature=TEMPERATURE, top_k=TOP_K)
    return batch_size * new_tokens / (time.perf_counter() - started)


def hugging_face(prompt_tokens: int, new_tokens: int, batch_size: int) -> float:
    """transformers' `generate` of a GPT-2 with the sizes of mini; its window is longer, for it cannot go beyond it."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from benchmarks.mini import mini_parts

    config, _, token_ids = mini_parts()
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size, n_positions=prompt_tokens + new_tokens, n_layer=config.n_layer,
            n_head=config.n_head, n_embd=config.n_embd, bos_token_id=0, eos_token_id=0,
        )
    ).eval()  # fmt: skip
    prompt = torch.tensor([token_ids[:prompt_tokens]] * batch_size)

    def draw(n_tokens: int) -> None:
        model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=True, temperature=TEMPERATURE, top_k=TOP_K,
            max_new_tokens=n_tokens, min_new_tokens=n_tokens, pad_token_id=0,
        )  # fmt: skip

    with torch.no_grad():
        draw(WARM_UP_TOKENS)
        started = time.perf_counter()
        draw(new_tokens)
        return batch_size * new_tokens / (time.perf_counter() - started)
