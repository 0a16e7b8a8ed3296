"""Which of our presets a run takes that names none: the one that this machine can train in the time given."""

from __future__ import annotations

from generation.text_generator import choose_device
from training.config import TrainConfig
from training.precision import choose_precision
from training.preflight import DEFAULT_MINUTES

_FEWEST_MINUTES_FOR_MINI = 10.0


def default_preset(config: TrainConfig) -> str:
    """`mini`; `nano` for a run of under ten minutes on a CPU that does not multiply bf16.

    A model is worth its size only when the run gives it enough to read. In three minutes on two cores with bf16, mini
    reads the English tales ten times over and ends at 1.475 bits per byte. Two cores without it manage less than three
    times, and mini ends at 1.633; nano reads them nine times in less time, and ends at 1.517. What `--steps` asks for
    means the same on every machine. Raises UserError when the device is not there.
    """
    device = choose_device(config.device)
    is_short = config.steps is None and (config.minutes or DEFAULT_MINUTES) < _FEWEST_MINUTES_FOR_MINI
    is_slow = device.type == "cpu" and choose_precision(config.precision, device) == "fp32"
    return "nano" if is_short and is_slow else "mini"
