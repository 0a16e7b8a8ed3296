"""How fast this machine trains a model: measured for about three seconds, before the number of steps is decided."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from data.batches import Batches
from data.prepare import PreparedCorpus
from model.config import ModelConfig
from training.config import TrainConfig
from training.distributed import Workers
from training.fine_tuning import starting_model
from training.optimizers import build_optimizer
from training.parallel import LossFunction, place
from training.precision import autocast

_MEASURING_SECONDS = 3.0


@dataclass(frozen=True)
class Speed:
    """What one process was measured to need, in seconds."""

    micro_batch: float
    optimizer: float
    """With the exchange of gradients between processes."""
    evaluation: float
    """A whole pass over the validation split."""

    def step(self, n_micro_batches: int) -> float:
        """One optimizer step."""
        return n_micro_batches * self.micro_batch + self.optimizer


def measure_speed(
    train_config: TrainConfig,
    model_config: ModelConfig,
    corpus: PreparedCorpus,
    device: torch.device,
    precision: str,
    micro_batch_size: int,
    workers: Workers,
) -> Speed:
    """Time micro-batches and an optimizer step on a throwaway model, for about three seconds.

    Several processes do the same at the same time, so that what they lose to each other is in the numbers.
    """
    random_state = torch.get_rng_state()
    throwaway = starting_model(model_config, train_config, None, resumed=False)
    model = place(throwaway, device, workers, train_config.parallel)
    loss_function = LossFunction(model, workers, compiled=False)
    optimizer = build_optimizer(model, train_config)
    batches = Batches(corpus.training, model_config.context_length, micro_batch_size, train_config.seed)
    token_ids, target_ids = (ids.to(device) for ids in batches.batch(0))

    def micro_batch(is_last: bool = False) -> None:
        with loss_function.accumulating(is_last):
            with autocast(device, precision):
                loss = loss_function(token_ids, target_ids)
            loss.backward()  # type: ignore[no-untyped-call]

    def evaluation() -> None:
        with autocast(device, precision):
            model.token_losses(token_ids, target_ids)

    def median_seconds(work: Callable[[], object], share: float) -> float:
        return _median_seconds(work, device, _MEASURING_SECONDS * share, workers)

    micro_batch(is_last=True)
    if workers.world_size == 1:
        micro_seconds, exchange_seconds = median_seconds(micro_batch, 0.7), 0.0
    else:
        micro_seconds = median_seconds(micro_batch, 0.35)
        exchange_seconds = max(0.0, median_seconds(lambda: micro_batch(is_last=True), 0.35) - micro_seconds)
    optimizer_seconds = median_seconds(optimizer.step, 0.2)
    # Validation windows overlap by half, so every token is read twice.
    tokens_read = 2 * corpus.n_validation_tokens
    n_batches = math.ceil(tokens_read / (micro_batch_size * model_config.context_length))
    evaluation_seconds = n_batches * median_seconds(evaluation, 0.1)
    torch.set_rng_state(random_state)
    return Speed(micro_seconds, exchange_seconds + optimizer_seconds, evaluation_seconds)


def _median_seconds(work: Callable[[], object], device: torch.device, budget: float, workers: Workers) -> float:
    times: list[float] = []
    # What exchanges something must be done equally often in every process, so the slowest decides.
    while workers.max(int(not times or (sum(times) < budget and len(times) < 50)), device):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    # The first call of anything also warms caches and allocators.
    return sorted(times[1:] or times)[len(times[1:] or times) // 2]
