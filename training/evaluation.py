"""How good the model is on text it never saw: nats per token, and bits per byte, which compare across tokenizers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from data.batches import EvaluationBatch, validation_windows
from data.prepare import PreparedCorpus
from model.gpt import GPT
from training.distributed import Workers
from training.parallel import is_sharded
from training.precision import autocast


@dataclass(frozen=True)
class Evaluation:
    """The result of one pass over the whole validation split."""

    loss: float
    """Nats per token."""
    bits_per_byte: float
    """All nats, the end-of-text tokens included, per ln 2 and per UTF-8 byte of the documents without separators."""


@torch.no_grad()
def evaluate(
    model: GPT, corpus: PreparedCorpus, *, device: torch.device, precision: str, workers: Workers, sequences: int = 16
) -> Evaluation:
    """Score every token of the validation split once, each with at least half a window of context before it.

    The first token is read but not scored: an end of text, or the one a single document's tail begins with. The
    processes share the windows.
    """
    was_training = model.training
    model.eval()
    context_length = model.config.context_length
    nats = torch.zeros((), dtype=torch.float64, device=device)
    batches = validation_windows(
        corpus.validation,
        context_length,
        stride=max(1, context_length // 2),
        sequences=sequences,
        rank=workers.rank,
        world_size=workers.world_size,
    )
    if is_sharded(model):
        batches = _in_step(batches, context_length, device, workers)
    for token_ids, target_ids, counted in batches:
        with autocast(device, precision):
            losses = model.token_losses(token_ids.to(device), target_ids.to(device))  # (B, T)
        nats += losses[counted.to(device)].double().sum()
    model.train(was_training)
    total = workers.sum(nats).item()
    n_targets = corpus.n_validation_tokens - 1
    return Evaluation(loss=total / n_targets, bits_per_byte=total / math.log(2) / corpus.validation_bytes)


def _in_step(
    batches: Iterator[EvaluationBatch], context_length: int, device: torch.device, workers: Workers
) -> Iterator[EvaluationBatch]:
    """As many batches in every process, since each forward pass of a sharded model needs all of them.

    A process that has none left computes a window of which nothing counts.
    """
    nothing = torch.zeros(1, context_length, dtype=torch.int64)
    while True:
        batch = next(batches, None)
        if not workers.max(int(batch is not None), device):
            return
        yield batch or EvaluationBatch(nothing, nothing, nothing.bool())
