"""What a fresh run takes where nothing was named: the size that the machine can train in the time given, and how hard
it is kept from learning its text by heart, by how often it reads it."""

from __future__ import annotations

from generation.text_generator import choose_device
from training.config import TrainConfig
from training.optimizers import DEFAULT_WEIGHT_DECAY
from training.precision import choose_precision
from training.preflight import DEFAULT_MINUTES

_FEWEST_MINUTES_FOR_MINI = 10.0
_FEW_EPOCHS = 4.0
_MANY_EPOCHS_WEIGHT_DECAY = 1.0


def default_preset(config: TrainConfig) -> str:
    """`mini`; `nano` for a run of under ten minutes on a CPU that does not multiply bf16.

    A model is worth its size only when the run gives it enough to read. In three minutes on two cores with bf16, mini
    reads the English tales ten times over and ends at 1.475 bits per byte. Two cores without it manage less than three
    times, and mini ends at 1.633; nano reads them nine times in less time, and ends at 1.497. What `--steps` asks for
    means the same on every machine. Raises UserError when the device is not there.
    """
    device = choose_device(config.device)
    is_short = config.steps is None and (config.minutes or DEFAULT_MINUTES) < _FEWEST_MINUTES_FOR_MINI
    is_slow = device.type == "cpu" and choose_precision(config.precision, device) == "fp32"
    return "nano" if is_short and is_slow else "mini"


def weight_decay_for(epochs: float) -> float:
    """The weight decay of a fresh run that reads its corpus so many times.

    A text that is read many times over wants far more decay than one that is read once (Kim et al. 2025, "Pre-training
    under infinite compute", arxiv.org/abs/2509.14786). Ten epochs of mini over the English tales ended at 1.509, 1.485
    and 1.475 bits per byte with 0.1, 0.4 and 1.
    """
    return DEFAULT_WEIGHT_DECAY if epochs <= _FEW_EPOCHS else _MANY_EPOCHS_WEIGHT_DECAY


def dropout_for(epochs: float, of_preset: float) -> float:
    """The dropout of a fresh run: the preset's for a text that is read many times, none for one that is not.

    Who reads little has nothing to learn by heart: mini after less than three epochs over the English tales ended at
    1.633 bits per byte with a dropout of 0.2 and at 1.569 with none.
    """
    return 0.0 if epochs <= _FEW_EPOCHS else of_preset
