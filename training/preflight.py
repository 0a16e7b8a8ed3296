"""Before the first step: decide what was left open, predict what the run will cost, say when it does not make sense.

Speed is measured on a throwaway model, so neither the weights nor the random state of the run are touched. What is
decided (`Plan`) is stored in the checkpoint: a resumed run never decides again.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from command_line import UserError
from data.prepare import PreparedCorpus
from data.tokenizers.base import Tokenizer
from data.tokenizers.gguf_vocabulary import NoGGUFError, gguf_vocabulary
from model.config import ModelConfig
from model.cost import adapter_parameters, block_matrices, count_parameters, training_memory
from model.layouts.registry import why_not_exportable, why_not_gguf
from training.config import TrainConfig
from training.counting import counting_seconds
from training.distributed import Workers
from training.memory import TooLittleMemoryError, free_memory, sharded_memory, shortage_explained
from training.plan import Plan
from training.precision import Precision, choose_precision
from training.speed import Speed, measure_speed

DEFAULT_MINUTES = 3.0
_EVALUATIONS = 10
"""Evaluations of a run, unless they would take more than the share below of its time."""
_EVALUATION_SHARE = 0.08
_FINISHING_SECONDS = 5.5
"""What comes after the last evaluation, besides counting: saving, the loss plot, the end of the process."""
"""What the counting baseline, the plot, the last sample and the exit take, measured on the English tales."""
_DAY = 24 * 3600.0
_COMPILE_SECONDS = {"cpu": 1800.0, "cuda": 180.0}
"""Runs shorter than this lose more by waiting for the compiler than they gain (benchmarks/results/)."""


@dataclass(frozen=True)
class Preflight:
    """The decided plan and what it will cost."""

    plan: Plan
    model_config: ModelConfig
    corpus: PreparedCorpus
    memory_bytes: int
    tokens_per_second: float
    seconds: float
    """From now to the exit."""
    world_size: int = 1
    n_adapters: int = 0
    """Numbers in low-rank adapters, when only these are trained."""

    @property
    def epochs(self) -> float:
        """How often the run sees the training part of the corpus."""
        return self.plan.n_steps * self.batch_tokens / self.corpus.n_training_tokens

    @property
    def batch_tokens(self) -> int:
        """Tokens of an optimizer step over all processes."""
        return self.plan.sequences * self.model_config.context_length

    @property
    def seconds_of_steps(self) -> float:
        """Of all optimizer steps, without evaluations and what comes after the last."""
        return self.plan.n_steps * self.batch_tokens / self.tokens_per_second

    def lines(self) -> list[str]:
        """The report, one fact a line."""
        corpus, plan = self.corpus, self.plan
        processes = f"{self.world_size} processes on " if self.world_size > 1 else ""
        bytes_per_token = corpus.training_bytes / corpus.n_training_tokens
        return [
            f"corpus      {corpus.name}: {corpus.corpus_bytes / 1e6:,.2f} MB, {corpus.documents:,} documents",
            f"tokens      {corpus.n_training_tokens:,} to train on, {corpus.n_validation_tokens:,} held out",
            f"tokenizer   {corpus.tokenizer.name}: vocabulary {corpus.tokenizer.vocab_size:,}, "
            f"{bytes_per_token:.2f} bytes per token",
            f"model       {count_parameters(self.model_config):,} parameters, "
            f"context {self.model_config.context_length}"
            + (f"; trained: {self.n_adapters:,} in adapters" if self.n_adapters else ""),
            f"machine     {processes}{plan.device}, {plan.precision}, {plan.threads} threads, "
            f"about {self.memory_bytes / 1e9:.2f} GB of memory",
            f"speed       {self.tokens_per_second:,.0f} tokens/s measured",
            f"run         {plan.n_steps:,} steps of {self.batch_tokens:,} tokens = {self.epochs:.1f} epochs, "
            f"finished {_at_about(self.seconds)} (in {self.seconds:,.0f} s)",
            f"export      {_exportable(self.model_config, corpus.tokenizer)}",
        ]

    def advice(self) -> list[str]:
        """What does not fit together, and what to try; nothing when all is well."""
        return advice(
            self.n_adapters or count_parameters(self.model_config) - ngram_parameters(self.model_config),
            self.corpus.n_training_tokens,
            self.epochs,
        )


def _at_about(seconds: float) -> str:
    """When something ends that takes so long: the time, the day if it takes one, nothing that no calendar holds."""
    if seconds > 100 * 365 * _DAY:
        return "not in this century"
    form = "%H:%M:%S" if seconds < _DAY else "%Y-%m-%d %H:%M"
    return time.strftime(f"at about {form}", time.localtime(time.time() + seconds))


def _exportable(config: ModelConfig, tokenizer: Tokenizer) -> str:
    """Which other programs can run the model once it is trained, and if not, because of which parts."""
    obstacles = why_not_exportable(config)
    if obstacles:
        parts = ", ".join(obstacle.split(" (")[0] for obstacle in obstacles)
        return f"not possible: other programs have no {parts}; --preset mini-llama can be exported"
    obstacles = why_not_gguf(config)
    try:
        gguf_vocabulary(tokenizer)
    except NoGGUFError as error:
        obstacles.append(error.reason)
    if obstacles:
        return f"possible: python convert.py export --to hf; not --to gguf: {'; '.join(obstacles)}"
    return "possible: python convert.py export --help"


def ngram_parameters(config: ModelConfig) -> int:
    """Parameters in hashed tables, most of whose rows a small corpus never touches."""
    return (config.bigram_rows + config.trigram_rows) * config.n_embd


def advice(n_parameters: int, n_tokens: int, epochs: float) -> list[str]:
    """Advice on how model, corpus and length of a run fit each other, from parameters per token and epochs.

    More than about 4 epochs bring less and less, and more than about 16 next to nothing (Muennighoff et al. 2023,
    arxiv.org/abs/2305.16264), unless dropout and weight decay are raised; a model with very many parameters for each
    token learns the text by heart instead of the language.
    """
    ratio = n_parameters / n_tokens
    if ratio > 60 and epochs > 2:
        return [
            f"{n_parameters / 1e6:.1f}M parameters on {n_tokens:,} tokens will memorise them; try a smaller --preset, "
            f"more text, or --init with a trained checkpoint"
        ]
    if epochs > 40:
        return [
            f"{epochs:,.0f} epochs over the same {n_tokens:,} tokens: the validation loss will rise long before the "
            f"end; try fewer --steps or --minutes, --early-stop 3, or more text"
        ]
    if 0 < epochs < 0.1:
        return [f"the run reads only {epochs:.1%} of the corpus; try more --minutes or a smaller, faster --preset"]
    return []


def prepare_plan(
    train_config: TrainConfig,
    model_config: ModelConfig,
    corpus: PreparedCorpus,
    device: torch.device,
    workers: Workers,
    *,
    elapsed_seconds: Callable[[], float],
) -> Preflight:
    """Decide everything that is open, measuring the speed of this machine; `elapsed_seconds` counts from the start.

    Raises TooLittleMemoryError before anything large is allocated, UserError when sizes do not divide.
    """
    with workers.together():
        precision = choose_precision(train_config.precision, device)
        if train_config.threads is not None:
            torch.set_num_threads(train_config.threads)
        sequences = choose_sequences(train_config, model_config, workers)
        micro_batch_size, memory_bytes = choose_micro_batch(
            train_config, model_config, device, precision, sequences, workers
        )
    # One decision for all processes: what suits the poorest of them.
    precision, micro_batch_size = workers.share(precision), min(workers.gather(micro_batch_size))
    with shortage_explained(device, micro_batch_size):
        speed = measure_speed(train_config, model_config, corpus, device, precision, micro_batch_size, workers)
    n_micro_batches = math.ceil(sequences // workers.world_size / micro_batch_size)
    finishing = _FINISHING_SECONDS + counting_seconds(corpus.corpus_bytes)
    n_steps, every = choose_steps(train_config, speed, n_micro_batches, workers, elapsed_seconds() + finishing)
    step_seconds = speed.step(n_micro_batches)
    seconds = n_steps * step_seconds + math.ceil(n_steps / every) * speed.evaluation / workers.world_size + finishing
    plan = Plan(
        n_steps=n_steps,
        sequences=sequences,
        micro_batch_size=micro_batch_size,
        evaluate_every_steps=every,
        save_every_steps=train_config.save_every_steps or every,
        device=str(device) if workers.world_size == 1 else device.type,
        precision=precision,
        compile=choose_compile(train_config.compile, device, seconds),
        threads=torch.get_num_threads(),
    )
    batch_tokens = sequences * model_config.context_length
    return Preflight(
        workers.share(plan),
        model_config,
        corpus,
        memory_bytes,
        tokens_per_second=batch_tokens / step_seconds,
        seconds=seconds,
        world_size=workers.world_size,
        n_adapters=_n_adapters(train_config, model_config),
    )


def _n_adapters(train_config: TrainConfig, model_config: ModelConfig) -> int:
    return adapter_parameters(model_config, train_config.lora_rank, train_config.lora_matrices)


def choose_sequences(train_config: TrainConfig, model_config: ModelConfig, workers: Workers) -> int:
    """Windows of an optimizer step over all processes.

    By default a batch has about one token for every thousand parameters of the blocks, 4,096 for the preset small, up
    to the half million that GPT-3's authors gave their smallest model (Brown et al. 2020, arxiv.org/abs/2005.14165,
    table 2.1).
    """
    context_length, world_size = model_config.context_length, workers.world_size
    if train_config.batch_tokens is None:
        wanted = int(min(2**19, max(2**11, 2 ** round(math.log2(block_matrices(model_config) / 1024)))))
        return max(world_size, wanted // context_length // world_size * world_size)
    sequences, rest = divmod(train_config.batch_tokens, context_length)
    if rest or sequences % world_size or sequences == 0:
        unit = context_length * world_size
        nearest = max(1, round(train_config.batch_tokens / unit)) * unit
        raise UserError(
            f"--batch-tokens ({train_config.batch_tokens}) must be a multiple of the context length times the number "
            f"of processes ({unit}); try --batch-tokens {nearest}"
        )
    return sequences


def choose_micro_batch(
    train_config: TrainConfig,
    model_config: ModelConfig,
    device: torch.device,
    precision: Precision,
    sequences: int,
    workers: Workers,
) -> tuple[int, int]:
    """Windows of a forward pass and the memory in bytes that training will take with them.

    Raises TooLittleMemoryError when even one window does not fit.
    """
    # Processes on one CPU share its memory; each has a GPU of its own.
    available = free_memory(device) // (workers.local_world_size if device.type == "cpu" else 1)

    def needed(size: int) -> int:
        context_length = model_config.context_length
        n_adapters = _n_adapters(train_config, model_config)
        optimizer = train_config.optimizer
        memory = training_memory(model_config, size, context_length, optimizer, precision, n_adapters=n_adapters)
        if train_config.parallel == "fsdp":
            return sharded_memory(memory, model_config, workers.world_size)
        return memory.total

    per_process = sequences // workers.world_size
    if train_config.micro_batch_size is not None:
        size = min(train_config.micro_batch_size, per_process)
    else:
        # On a CPU the activations of about 4,096 tokens still profit from the last-level cache.
        size = per_process if device.type == "cuda" else min(per_process, max(1, 4096 // model_config.context_length))
        while size > 1 and needed(size) > 0.8 * available:
            size = (size + 1) // 2
    if needed(size) > available:
        smaller = "a smaller --preset" if size == 1 else f"--micro-batch-size {max(1, size // 2)} or a smaller --preset"
        raise TooLittleMemoryError(
            f"training needs about {needed(size) / 1e9:.1f} GB of memory ({size} windows at once), but {device} has "
            f"{available / 1e9:.1f} GB free; try {smaller}"
        )
    return size, needed(size)


def choose_steps(
    train_config: TrainConfig, speed: Speed, n_micro_batches: int, workers: Workers, other_seconds: float
) -> tuple[int, int]:
    """The number of optimizer steps and the steps between evaluations.

    `other_seconds` are those of a timed run in which neither can happen.
    """
    step_seconds = speed.step(n_micro_batches)
    evaluation_seconds = speed.evaluation / workers.world_size
    if train_config.steps is not None:
        n_steps = train_config.steps
        available = n_steps * step_seconds
    else:
        available = (train_config.minutes or DEFAULT_MINUTES) * 60 - other_seconds
    affordable = int(_EVALUATION_SHARE * available / max(evaluation_seconds, 1e-9))
    n_evaluations = min(_EVALUATIONS, max(1, affordable))
    if train_config.steps is None:
        n_steps = max(1, int((available - n_evaluations * evaluation_seconds) / step_seconds))
    every = train_config.evaluate_every_steps or max(1, math.ceil(n_steps / n_evaluations))
    return n_steps, every


def choose_compile(choice: str, device: torch.device, seconds: float) -> bool:
    """Whether to compile: asked for, or where there is a compiler and a run long enough to win back its time."""
    if choice != "auto":
        return choice == "on"
    has_compiler = device.type == "cuda" or shutil.which("g++") is not None or shutil.which("clang++") is not None
    return has_compiler and seconds > _COMPILE_SECONDS.get(device.type, math.inf)
