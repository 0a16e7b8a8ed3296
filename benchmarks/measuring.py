"""Time contenders in turns, compare them by ratios, and say what was compared."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

Value = TypeVar("Value")

OURS = "this project"
"""The name of this project in all results."""


@dataclass(frozen=True)
class Target:
    """What a ratio (this project divided by the peer) should be."""

    direction: Literal["at most", "at least"]
    ratio: float

    def is_met(self, ratio: float) -> bool:
        """Whether a measured ratio reaches it."""
        return ratio <= self.ratio if self.direction == "at most" else ratio >= self.ratio

    def __str__(self) -> str:
        return f"{'≤' if self.direction == 'at most' else '≥'} {self.ratio:.3g} ×"


@dataclass(frozen=True)
class Comparison:
    """One measure of this project and of one peer, taken in turns: ours[i] and theirs[i] belong to the same turn.

    A peer without turns (a fixed bound, a published figure, a deterministic method) has one value.
    """

    measure: str
    unit: str
    peer: str
    ours: list[float]
    theirs: list[float]
    target: Target | None = None

    def __post_init__(self) -> None:
        if not self.ours or len(self.theirs) not in (1, len(self.ours)):
            raise ValueError(f"{self.measure}: {len(self.ours)} values cannot be paired with {len(self.theirs)}")

    @property
    def ratios(self) -> list[float]:
        """This project divided by the peer, turn by turn."""
        theirs = self.theirs * len(self.ours) if len(self.theirs) == 1 else self.theirs
        return [own / other for own, other in zip(self.ours, theirs, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of the ratios."""
        return statistics.median(self.ratios)

    @property
    def is_met(self) -> bool | None:
        """Whether the median ratio reaches the target; None without a target."""
        return None if self.target is None else self.target.is_met(self.ratio)

    def __str__(self) -> str:
        text = (
            f"{self.measure}: {OURS} {statistics.median(self.ours):.4g} {self.unit}, "
            f"{self.peer} {statistics.median(self.theirs):.4g}; "
            f"ratio {self.ratio:.3g} ({min(self.ratios):.3g} to {max(self.ratios):.3g})"
        )
        return text if self.target is None else f"{text}, target {self.target}: {'met' if self.is_met else 'missed'}"


def alternate(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each contender measured in each round, all of them once a round and always in the same order."""
    values: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, measure in contenders.items():
            values[name].append(measure())
            print(f"round {number + 1} of {rounds}: {name} {values[name][-1]:.4g}", flush=True)
    return values


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_own_process(work: Callable[..., Value], *arguments: object) -> Value:
    """What `work` (a function of a module, with plain arguments) returns in a fresh Python of its own.

    Contenders that share a process share its allocator and its thread settings, which this project changes.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return executor.submit(work, *arguments).result()


def compare(
    measure: str, unit: str, values: Mapping[str, Sequence[float]], targets: Mapping[str, Target | None]
) -> list[Comparison]:
    """This project against every peer of `targets`, from what `alternate` returned."""
    ours = list(values[OURS])
    return [Comparison(measure, unit, peer, ours, list(values[peer]), target) for peer, target in targets.items()]
