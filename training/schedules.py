"""How the learning rate moves over a run, as a pure function of the step: nothing to store, nothing to resume."""

import math
from collections.abc import Callable

from training.config import TrainConfig


def learning_rate_factor(step: int, n_steps: int, train_config: TrainConfig) -> float:
    """The share of the peak learning rate that step `step` of 0 … n_steps − 1 uses.

    Warm-up grows linearly from 1/warmup-steps at step 0 to 1; then the schedule falls to exactly
    `final_learning_rate` at the last step. A run too short for both keeps its peak: a single step uses the full rate.
    """
    n_warmup = min(math.ceil(train_config.warmup_fraction * n_steps), n_steps)
    if step < n_warmup:
        return (step + 1) / n_warmup
    n_falling = n_steps - n_warmup
    if train_config.schedule == "wsd":
        n_falling = min(math.ceil(train_config.decay_fraction * n_steps), n_falling)
    last_peak_step = max(n_steps - n_falling - 1, 0)
    if step <= last_peak_step:
        return 1.0
    shape = _SHAPES[train_config.schedule]((step - last_peak_step) / (n_steps - 1 - last_peak_step))
    return train_config.final_learning_rate + (1 - train_config.final_learning_rate) * shape


def _constant(_: float) -> float:
    return 1.0


def _linear(progress: float) -> float:
    return 1.0 - progress


def _cosine(progress: float) -> float:
    """Half a cosine wave (Loshchilov & Hutter 2016, arxiv.org/abs/1608.03983)."""
    return 0.5 + 0.5 * math.cos(math.pi * progress)


# From progress 0 … 1 to the share of the way from the final to the peak rate. Warm-up–stable–decay: Hu et al. 2024,
# arxiv.org/abs/2404.06395; its stable part is the time before the fall begins.
_SHAPES: dict[str, Callable[[float], float]] = {
    "cosine": _cosine,
    "linear": _linear,
    "wsd": _linear,
    "constant": _constant,
}
