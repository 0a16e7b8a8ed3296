"""What happened in one step, in numbers: which processor changed what, and how surprising the drawn token was."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from generation.guidance import Guidance
from generation.logits_processors.base import LogitsProcessor, processor_name


@dataclass(frozen=True)
class StageTrace:
    """What one processor did to one row."""

    stage: str
    name: str
    candidates_before: int
    """Tokens that could still be drawn."""
    candidates_after: int
    entropy: float
    """Of the distribution behind this processor, in nats."""
    favourite: int
    """The most probable token behind it."""
    removed: int | None
    """The favourite before it, if this processor took it out or lowered it below another."""


@dataclass(frozen=True)
class Alternative:
    """A token that could have been drawn."""

    token_id: int
    probability: float
    """Under the model."""
    chance: float
    """Behind all processors: how likely it was to be drawn."""
    desired: dict[str, float] = field(default_factory=dict)
    """p(desired | prefix + this token) by the label of each discriminator that guided; empty for no candidate."""


@dataclass(frozen=True)
class StepTrace:
    """One step of one row, from the model's distribution to the drawn token."""

    entropy: float
    """Of the model's own distribution, in nats."""
    favourite: int
    """The model's most probable token."""
    stages: tuple[StageTrace, ...]
    rank: int | None
    """Place of the drawn token in the model's own order, from 1; None when nothing could be drawn."""
    probability: float | None
    """Of the drawn token under the model."""
    chance: float | None
    """Of the drawn token behind all processors."""
    alternatives: tuple[Alternative, ...]
    """The model's most probable tokens."""


class Tracer:
    """Watches one step of a batch; use a new one for every step."""

    def __init__(self, n_alternatives: int) -> None:
        self._n_alternatives = n_alternatives
        self._seen: list[tuple[LogitsProcessor, _Statistics, _Statistics]] = []

    def observe(self, processor: LogitsProcessor, before: Tensor, after: Tensor) -> None:
        """Take note of what a processor made of the logits (B, V)."""
        # What one processor leaves is what the next one finds.
        found = self._seen[-1][2] if self._seen else _Statistics(before)
        self._seen.append((processor, found, _Statistics(after)))

    def finish(self, logits: Tensor, processed: Tensor, chosen: Tensor, *, greedy: bool) -> list[StepTrace]:
        """The traces of all rows: logits (B, V) of the model and behind all processors, drawn tokens (B,)."""
        probabilities, chances = logits.softmax(dim=-1), draw_chances(processed, greedy=greedy)
        statistics = _Statistics(logits)
        processors = [processor for processor, _, _ in self._seen]
        top = probabilities.topk(min(self._n_alternatives, logits.shape[1]), dim=-1)
        listed = zip(top.indices.tolist(), top.values.tolist(), chances.gather(1, top.indices).tolist(), strict=True)
        alternatives = [
            tuple(
                Alternative(token, probability, chance, desired_of(processors, row, token))
                for token, probability, chance in zip(*of_row, strict=True)
            )
            for row, of_row in enumerate(listed)
        ]
        tokens = chosen.clamp(min=0).unsqueeze(1)  # (B, 1)
        ranks = (1 + (logits > logits.gather(1, tokens)).sum(dim=-1)).tolist()
        of_chosen, chances_of_chosen = (share.gather(1, tokens)[:, 0].tolist() for share in (probabilities, chances))
        return [
            StepTrace(
                entropy=statistics.entropies[row],
                favourite=statistics.favourites[row],
                stages=tuple(self._stage(row, *seen) for seen in self._seen),
                rank=ranks[row] if drawn else None,
                probability=of_chosen[row] if drawn else None,
                chance=chances_of_chosen[row] if drawn else None,
                alternatives=alternatives[row],
            )
            for row, drawn in enumerate((chosen >= 0).tolist())
        ]

    def _stage(self, row: int, processor: LogitsProcessor, before: "_Statistics", after: "_Statistics") -> StageTrace:
        lost = before.favourites[row] != after.favourites[row]
        return StageTrace(
            stage=processor.stage,
            name=processor_name(processor),
            candidates_before=before.candidates[row],
            candidates_after=after.candidates[row],
            entropy=after.entropies[row],
            favourite=after.favourites[row],
            removed=before.favourites[row] if lost else None,
        )


def desired_of(processors: Sequence[LogitsProcessor], row: int, token_id: int) -> dict[str, float]:
    """p(desired | prefix + token) by label, as guidance saw it in the step that just was; empty without guidance."""
    desired: dict[str, float] = {}
    for processor in processors:
        if isinstance(processor, Guidance) and processor.last is not None:
            desired |= processor.last.of_token(row, token_id)
    return desired


class _Statistics:
    """Number of candidates, entropy in nats and most probable token of each row of logits (B, V)."""

    def __init__(self, logits: Tensor) -> None:
        self.candidates: list[int] = (logits > -torch.inf).sum(dim=-1).tolist()
        # A row without candidates has no distribution: its softmax is NaN, its entropy stands as 0.
        entropies = torch.special.entr(logits.softmax(dim=-1)).sum(dim=-1)
        self.entropies: list[float] = entropies.nan_to_num(0.0).tolist()
        self.favourites: list[int] = logits.argmax(dim=-1).tolist()


def draw_chances(processed: Tensor, *, greedy: bool) -> Tensor:
    """How likely each token is to be drawn from processed logits, (B, V) → (B, V); greedy: 1 for the best."""
    if greedy:
        return torch.nn.functional.one_hot(processed.argmax(dim=-1), processed.shape[1]).float()
    return processed.softmax(dim=-1).nan_to_num(0.0)
