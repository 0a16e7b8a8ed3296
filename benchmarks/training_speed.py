"""How many tokens a second does the same GPT-2 architecture train with: forward, backward, clipping, AdamW?"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measuring import OURS, Comparison, Target, alternate, compare, in_own_process
from benchmarks.report import BenchmarkConfig, Report, run_benchmark

LEARNING_RATE, BETAS, WEIGHT_DECAY, CLIP = 1e-3, (0.9, 0.99), 0.1, 1.0
WARM_UP_STEPS = 5
HUGGING_FACE, TRAINER = "Hugging Face GPT2LMHeadModel, plain loop", "Hugging Face Trainer"


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and its batch."""

    name: str
    n_layer: int
    n_head: int
    n_embd: int
    context_length: int
    batch_size: int
    vocab_size: int = 65


SHAPES = (
    Shape("4 layers × 128, 12 × 64 tokens", 4, 4, 128, 64, 12),
    Shape("6 layers × 384, 8 × 256 tokens", 6, 6, 384, 256, 8),
)


def _tokens_per_second(shape: Shape, step: Callable[[int], object], seconds: float) -> float:
    """Steps on fixed random tokens until the time is over."""
    for number in range(WARM_UP_STEPS):
        step(number)
    n_steps, started = 0, time.perf_counter()
    while n_steps == 0 or time.perf_counter() - started < seconds:
        step(n_steps)
        n_steps += 1
    return n_steps * shape.batch_size * shape.context_length / (time.perf_counter() - started)


def ours(shape: Shape, precision: str, seconds: float) -> float:
    """Tokens per second of this project's GPT, loss and AdamW, as its trainer calls them."""
    import torch

    from model.config import ModelConfig
    from model.gpt import GPT
    from training.config import TrainConfig
    from training.optimizers import build_optimizer
    from training.precision import autocast, keep_freed_memory

    keep_freed_memory()
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=shape.vocab_size, context_length=shape.context_length, n_layer=shape.n_layer, n_head=shape.n_head,
        n_embd=shape.n_embd, feed_forward="gelu", bias=False,
    )  # fmt: skip
    model = GPT(config).train()
    optimizer = build_optimizer(model, TrainConfig(optimizer="adamw", learning_rate=LEARNING_RATE))
    token_ids = torch.randint(shape.vocab_size, (shape.batch_size, shape.context_length + 1))

    def step(number: int) -> None:
        with autocast(torch.device("cpu"), precision):
            loss = model.loss(token_ids[:, :-1].contiguous(), token_ids[:, 1:].contiguous())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return _tokens_per_second(shape, step, seconds)


def nanogpt(shape: Shape, folder: str, seconds: float) -> float:
    """Tokens per second of nanoGPT's model and optimizer in the steps of its train.py; on a CPU it has only fp32."""
    import torch

    from benchmarks.nanogpt import Checkout

    torch.manual_seed(0)
    model = Checkout(Path(folder)).build(
        vocab_size=shape.vocab_size, block_size=shape.context_length, n_layer=shape.n_layer, n_head=shape.n_head,
        n_embd=shape.n_embd, dropout=0.0, bias=False,
    )  # fmt: skip
    optimizer = model.configure_optimizers(WEIGHT_DECAY, LEARNING_RATE, BETAS, "cpu")
    token_ids = torch.randint(shape.vocab_size, (shape.batch_size, shape.context_length + 1))

    def step(number: int) -> None:
        _, loss = model(token_ids[:, :-1].contiguous(), token_ids[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return _tokens_per_second(shape, step, seconds)


def _gpt2(shape: Shape) -> Any:
    """transformers' GPT-2 of the same sizes, with fresh weights."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=shape.vocab_size, n_positions=shape.context_length, n_layer=shape.n_layer, n_head=shape.n_head,
            n_embd=shape.n_embd, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
            bos_token_id=0, eos_token_id=0,
        )
    ).train()  # fmt: skip


def hugging_face(shape: Shape, seconds: float) -> float:
    """Tokens per second of transformers' GPT-2 with torch's AdamW."""
    import torch

    model = _gpt2(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY)
    token_ids = torch.randint(shape.vocab_size, (shape.batch_size, shape.context_length))

    def step(number: int) -> None:
        loss = model(token_ids, labels=token_ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return _tokens_per_second(shape, step, seconds)


def trainer(shape: Shape, seconds: float) -> float:
    """Tokens per second of transformers' Trainer with the same model and optimizer; it logs once a step."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    started: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step >= WARM_UP_STEPS:
                started.append(time.perf_counter())
                control.should_training_stop = started[-1] - started[0] > seconds

    row = torch.randint(shape.vocab_size, (shape.context_length,))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, use_cpu=True, per_device_train_batch_size=shape.batch_size, max_steps=10**6,
            learning_rate=LEARNING_RATE, adam_beta1=BETAS[0], adam_beta2=BETAS[1], weight_decay=WEIGHT_DECAY,
            max_grad_norm=CLIP, logging_steps=1, disable_tqdm=True, report_to=[], save_strategy="no",
            dataloader_pin_memory=False,
        )  # fmt: skip
        texts = [{"input_ids": row, "labels": row}] * (64 * shape.batch_size)
        with contextlib.redirect_stdout(io.StringIO()):
            Trainer(_gpt2(shape), arguments, train_dataset=texts, callbacks=[Clock()]).train()
    n_steps = len(started) - 1
    return n_steps * shape.batch_size * shape.context_length / (started[-1] - started[0])


def answer(config: BenchmarkConfig) -> Report:
    """Both shapes, every contender in a process of its own."""
    import torch

    from training.precision import choose_precision

    seconds = 0.5 if config.quick else 4.0
    has_bf16 = choose_precision("auto", torch.device("cpu")) == "bf16"
    has_trainer = importlib.util.find_spec("accelerate") is not None
    wanted = {"fp32": 1.15, "bf16": 1.5} if has_bf16 else {"fp32": 1.15}
    comparisons: list[Comparison] = []
    for shape in SHAPES:
        # Two names for this project: each precision is compared on its own.
        contenders: dict[str, Callable[[], float]] = {
            precision: functools.partial(in_own_process, ours, shape, precision, seconds) for precision in wanted
        }
        contenders[HUGGING_FACE] = functools.partial(in_own_process, hugging_face, shape, seconds)
        if has_trainer:
            contenders[TRAINER] = functools.partial(in_own_process, trainer, shape, seconds)
        if config.nanogpt is not None:
            folder = str(Path(config.nanogpt).absolute())
            contenders["nanoGPT"] = functools.partial(in_own_process, nanogpt, shape, folder, seconds)
        values = alternate(contenders, config.turns(5))
        for precision, ratio in wanted.items():
            targets: dict[str, Target | None] = {HUGGING_FACE: None}
            if has_trainer:
                targets[TRAINER] = Target("at least", 2)
            if config.nanogpt is not None:
                targets["nanoGPT"] = Target("at least", ratio)
            named = {**values, OURS: values[precision]}
            comparisons += compare(f"training, {shape.name}, {precision}", "tokens/s", named, targets)
    return Report(
        "How many tokens a second does the same GPT-2 architecture train with?",
        comparisons,
        [
            "not compiled; the peers run in fp32, which is all that nanoGPT has on a CPU",
            *([] if has_trainer else ["no row of Hugging Face's Trainer: it needs pip install accelerate"]),
            *([] if has_bf16 else ["no bf16 row: this processor would only emulate it"]),
        ],
    )


if __name__ == "__main__":
    run_benchmark("training_speed", __doc__, answer)
