"""Steer decoding by Bayes' rule: p(x | prefix, desired) ∝ p_LM(x | prefix) · p(desired | prefix + x)^λ.

With λ = 1, a discriminator that knows the true p(desired | prefix) and no truncation, texts come out with exactly the
probability p(text | desired) (Yang & Klein 2021, "FUDGE", arxiv.org/abs/2104.05218). A larger λ asks for more than
Bayes. A negative λ steers away: |λ| · ln p(not desired), which is bounded above, unlike −|λ| · ln p(desired).

Each candidate x is scored for itself. One probability of the prefix multiplied into all candidates would cancel when
they are normalised: the common mistake, which changes nothing at all.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from command_line import UserError
from generation.logits_processors.base import HiddenStateReader, HiddenStates, Stage

LOWEST_LOG_PROBABILITY = -30.0
"""Counts for everything below it, e^−30 ≈ 10⁻¹³: what is impossible stays so in practice, yet where every candidate
is, the language model still decides and the text goes on."""


class CandidateScorer(Protocol):
    """Says of every candidate token how much it speaks for the desired attribute; a discriminator or a rule."""

    name: str

    def log_odds(self, token_ids: Tensor, prompt_lengths: Tensor, candidates: Tensor) -> Tensor:
        """ln p(desired | prefix + x) − ln p(not desired | prefix + x) of candidates (B, k): (B, k).

        `token_ids` (B, T) and `prompt_lengths` (B,) are those of a logits processor. ±∞ means surely.
        """
        ...


@dataclass(frozen=True)
class Guide:
    """A scorer and how strongly it steers: λ, negative for away from it."""

    scorer: CandidateScorer
    strength: float

    def log_probabilities(self, log_odds: Tensor) -> Tensor:
        """What λ multiplies: ln p(desired), or ln p(not desired) for a negative λ; (B, k) → (B, k)."""
        return F.logsigmoid(log_odds if self.strength >= 0 else -log_odds).clamp(min=LOWEST_LOG_PROBABILITY)


@dataclass(frozen=True)
class ScoredCandidates:
    """What guidance knew at its last step, for those who explain it."""

    token_ids: Tensor
    """(B, k), the most probable first."""
    log_odds: dict[str, Tensor]
    """ln p(desired | prefix + x) − ln p(not desired | prefix + x) of each candidate (B, k), by its scorer's name."""

    def of_token(self, row: int, token_id: int) -> dict[str, float]:
        """p(desired | prefix + x) of one token by the name of its scorer; empty when it was no candidate."""
        places = (self.token_ids[row] == token_id).nonzero()
        if not len(places):
            return {}
        return {name: float(odds[row, places[0, 0]].sigmoid()) for name, odds in self.log_odds.items()}


class Guidance:
    """Adds Σ λ · ln p(desired | prefix + x) to the logits of the most probable candidates; all others are banned.

    The sum over all guides is formed first, so their order has no influence. With λ = 0 everywhere nothing happens,
    not even the choice of candidates. Raises UserError when a scorer answers NaN.
    """

    stage: Stage = "guidance"

    def __init__(self, guides: Sequence[Guide], n_candidates: int = 50) -> None:
        self.guides = [guide for guide in guides if guide.strength != 0]
        self.n_candidates = n_candidates
        self.last: ScoredCandidates | None = None
        shares = ", ".join(f"{guide.scorer.name}^{guide.strength:g}" for guide in guides)
        self.name = f"guidance({shares}; {n_candidates} candidates)"

    def read_from(self, states: HiddenStates, language_model: str | None) -> None:
        """See `HiddenStateReader`: for those of the scorers that are one."""
        for guide in self.guides:
            if isinstance(guide.scorer, HiddenStateReader):
                guide.scorer.read_from(states, language_model)

    def __call__(self, token_ids: Tensor, logits: Tensor, prompt_lengths: Tensor) -> Tensor:
        """(B, V) → (B, V)."""
        if not self.guides:
            return logits
        base, candidates = logits.topk(min(self.n_candidates, logits.shape[-1]), dim=-1)  # (B, k) each
        found, terms = {}, []
        for guide in self.guides:
            log_odds = guide.scorer.log_odds(token_ids, prompt_lengths, candidates).to(base.dtype)
            is_nan = log_odds.isnan()
            if is_nan.any():
                log_odds = _without_nan(log_odds, is_nan & (base > -torch.inf), guide.scorer.name)
            terms.append(abs(guide.strength) * guide.log_probabilities(log_odds))
            found[guide.scorer.name] = log_odds
        self.last = ScoredCandidates(candidates, found)
        total = functools.reduce(torch.add, terms)
        return torch.full_like(logits, -torch.inf).scatter_(1, candidates, base + total)


def _without_nan(log_odds: Tensor, matters: Tensor, name: str) -> Tensor:
    """Zero for NaN; raises UserError where it matters. What is banned already may be no token of the scorer's."""
    if matters.any():
        raise UserError(
            f"the discriminator {name} answers with no number (NaN): its training diverged; train it again with a "
            "lower --learning-rate"
        )
    return log_odds.nan_to_num(0.0, posinf=torch.inf, neginf=-torch.inf)
