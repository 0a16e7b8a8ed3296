"""The commands that a run prints: how to go on with it, how to repeat it."""

from __future__ import annotations

import shlex

from training.distributed import Workers


def resuming(command: list[str]) -> list[str]:
    """The command that goes on where `command` was stopped: whoever asked to overwrite has done so by now."""
    return [word for word in command if word not in ("--resume", "--overwrite")] + ["--resume"]


def repeating(command: list[str], n_steps: int, run: str) -> list[str]:
    """The command of a timed run with the number of steps that it turned out to have, for another run beside it."""
    kept, skip = [], False
    for word in command:
        if not skip and not word.startswith("--minutes"):
            kept.append(word)
        skip = word == "--minutes"
    return [*kept, "--steps", str(n_steps), "--run", f"{run}-again"]


def shown(command: list[str], workers: Workers) -> str:
    """A command as it is typed to start it: by torchrun in place of Python when several processes share the run."""
    if workers.world_size == 1:
        return shlex.join(command)
    n_machines = workers.world_size // workers.local_world_size
    machines = ["--nnodes", str(n_machines)] if n_machines > 1 else []
    # The "--" keeps torchrun from taking --run for an abbreviation of its own options.
    launcher = ["torchrun", *machines, "--nproc-per-node", str(workers.local_world_size), "--"]
    rendezvous = " (with the --rdzv options of before, on every machine)" if machines else ""
    return shlex.join([*launcher, *command[1:]]) + rendezvous
