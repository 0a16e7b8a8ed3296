"""What was decided before the first step; it travels in the checkpoint, and a resumed run uses it unchanged."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """One decision for every option that was left open, by `training.preflight`."""

    n_steps: int
    sequences: int
    """Windows of an optimizer step over all processes."""
    micro_batch_size: int
    """Windows of a forward pass per process."""
    evaluate_every_steps: int
    save_every_steps: int
    device: str
    precision: str
    compile: bool
    threads: int
