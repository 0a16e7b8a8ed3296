"""Kill a process at a random time, or in the middle of a save: what every contender goes through.

A fork server makes a trial cheap: PyTorch is imported once, and every run is a forked child of the process that has it.
"""

from __future__ import annotations

import os
import random
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

LISTED = 20
"""Losses that are told one by one; the others are only counted."""


class LostError(Exception):
    """A promise was broken; the message says which."""


@dataclass
class Tally:
    """What the trials of one contender came to."""

    trials: int = 0
    kills: int = 0
    kills_in_save: int = 0
    """Kills that came after a save had begun and before it was announced."""
    n_lost: int = 0
    """Trials with a broken promise."""
    lost: list[str] = field(default_factory=list)
    """What was broken in the first of them, with the seed that repeats it."""

    def count(self, child: Child, exit_code: int) -> None:
        """Count a run that was to be killed: it may have been ready before."""
        self.kills += exit_code == -signal.SIGKILL
        self.kills_in_save += exit_code == -signal.SIGKILL and child.is_saving

    def lose(self, seed: int, reason: object) -> None:
        """Count a broken promise."""
        self.n_lost += 1
        if len(self.lost) < LISTED:
            self.lost.append(f"seed {seed}: {reason}")

    def add(self, other: Tally) -> None:
        """Count the trials of another tally as well."""
        self.trials += other.trials
        self.kills += other.kills
        self.kills_in_save += other.kills_in_save
        self.n_lost += other.n_lost
        self.lost = [*self.lost, *other.lost][:LISTED]


@dataclass
class Child:
    """A forked process and what it has said so far."""

    work: Callable[[Callable[[str], None]], None]
    errors: Path
    said: list[str] = field(default_factory=list)
    heard: list[float] = field(default_factory=list)
    """When each of its words came."""

    def __post_init__(self) -> None:
        self._readable, writable = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(writable)
        os.close(writable)

    def _run(self, writable: int) -> None:
        status = 1
        try:
            log = os.open(self.errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)

            def say(words: str) -> None:
                os.write(writable, f"{words}\n".encode())

            self.work(say)
            status = 0
        except BaseException as error:  # noqa: BLE001 - a forked child must never run on into its parent's code
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(status)

    def listen(self, until: Callable[[str], bool], seconds: float) -> None:
        """Collect what it says until a line that ends the wait, the end of the process, or the time."""
        deadline = time.monotonic() + seconds
        while not (self.said and until(self.said[-1])):
            ready, _, _ = select.select([self._readable], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return
            part = os.read(self._readable, 4096)
            if not part:
                return
            lines = part.decode().splitlines()
            self.said += lines
            self.heard += [time.monotonic()] * len(lines)

    @property
    def n_begun(self) -> int:
        """Saves that have begun."""
        return sum(words.startswith("begin") for words in self.said)

    @property
    def save_seconds(self) -> float:
        """How long its longest save has taken so far."""
        times = zip(self.said, self.heard, self.said[1:], self.heard[1:], strict=False)
        return max((end - begin for word, begin, _, end in times if word.startswith("begin")), default=0.0)

    @property
    def is_saving(self) -> bool:
        """Whether the last thing that it said was that a save begins."""
        return bool(self.said) and self.said[-1].startswith("begin")

    def end(self, *, kill: bool) -> int:
        """Wait for its end, after killing it if asked to; returns its exit code (negative: a signal's number)."""
        if kill:
            os.kill(self.pid, signal.SIGKILL)
        self.listen(lambda words: False, 600)
        os.close(self._readable)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def kill_at_random(child: Child, source: random.Random, run_seconds: float, n_saves: int) -> None:
    """Wait for a random time of the run, or within one of its saves, after which the child is to be killed.

    The child's own words set the pace, since other programs may make it faster or slower at any moment: so many saves
    begun, and then a random part of the time that one save and the training up to it (or the save alone) have taken.
    """
    aims_at_save = source.random() < 0.5
    target = source.randint(1 if aims_at_save else 0, n_saves)
    started = time.monotonic()
    child.listen(lambda words: child.n_begun >= target, 600)
    pace = (time.monotonic() - started) / target if target else run_seconds / n_saves
    if aims_at_save and child.save_seconds:
        pace = child.save_seconds
    child.listen(lambda words: False, source.uniform(0, pace))
