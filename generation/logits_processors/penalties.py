"""Rules that make tokens less or more probable without forbidding them."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from generation.logits_processors.base import Stage
from generation.logits_processors.row_history import TokenCounts, n_new_tokens


class LogitBias:
    """Adds a number to the logits of chosen tokens, as OpenAI's `logit_bias`."""

    stage: Stage = "raw"

    def __init__(self, biases: Mapping[int, float]) -> None:
        self.name = "logit_bias=" + ",".join(f"{token}:{bias:g}" for token, bias in biases.items())
        self._tokens = torch.tensor(list(biases), dtype=torch.int64)
        self._biases = torch.tensor(list(biases.values()), dtype=torch.float32)

    def __call__(self, token_ids: Tensor, logits: Tensor, prompt_lengths: Tensor) -> Tensor:
        """(B, V) → (B, V)."""
        return logits.index_add(1, self._tokens.to(logits.device), self._biases.to(logits).expand(len(logits), -1))


class RepetitionPenalty:
    """Divides positive and multiplies negative logits of tokens that have occurred (Keskar et al. 2019,
    arxiv.org/abs/1909.05858); above 1 against repetition, below 1 for it.
    """

    stage: Stage = "penalties"

    def __init__(self, penalty: float, counts: TokenCounts) -> None:
        self.penalty = penalty
        self.counts = counts
        self.name = f"repetition_penalty={penalty:g}"

    def __call__(self, token_ids: Tensor, logits: Tensor, prompt_lengths: Tensor) -> Tensor:
        """(B, V) → (B, V)."""
        occurred = self.counts.update(token_ids, prompt_lengths) > 0
        penalised = torch.where(logits > 0, logits / self.penalty, logits * self.penalty)
        return torch.where(occurred, penalised, logits)


class PresencePenalty:
    """Subtracts a number from the logits of every token that has occurred, as OpenAI's `presence_penalty`."""

    stage: Stage = "penalties"

    def __init__(self, penalty: float, counts: TokenCounts) -> None:
        self.penalty = penalty
        self.counts = counts
        self.name = f"presence_penalty={penalty:g}"

    def __call__(self, token_ids: Tensor, logits: Tensor, prompt_lengths: Tensor) -> Tensor:
        """(B, V) → (B, V)."""
        return logits - self.penalty * (self.counts.update(token_ids, prompt_lengths) > 0)


class FrequencyPenalty:
    """Subtracts a number for each time that a token has occurred, as OpenAI's `frequency_penalty`."""

    stage: Stage = "penalties"

    def __init__(self, penalty: float, counts: TokenCounts) -> None:
        self.penalty = penalty
        self.counts = counts
        self.name = f"frequency_penalty={penalty:g}"

    def __call__(self, token_ids: Tensor, logits: Tensor, prompt_lengths: Tensor) -> Tensor:
        """(B, V) → (B, V)."""
        return logits - self.penalty * self.counts.update(token_ids, prompt_lengths)


class LengthDecay:
    """Makes the end of text more probable with every token behind `start` new ones, exponentially.

    Adds |logit| · (factor^(tokens behind start) − 1) to the logit of the end: the rule of Hugging Face's
    `ExponentialDecayLengthPenalty`.
    """

    stage: Stage = "penalties"

    def __init__(self, start: int, factor: float, end_of_text: int) -> None:
        self.start = start
        self.factor = factor
        self.end_of_text = end_of_text
        self.name = f"length_decay={factor:g} from {start}"

    def __call__(self, token_ids: Tensor, logits: Tensor, prompt_lengths: Tensor) -> Tensor:
        """(B, V) → (B, V)."""
        n_behind = n_new_tokens(token_ids, prompt_lengths) - self.start
        end = logits[:, self.end_of_text]
        if n_behind <= 0 or self.factor == 1:
            return logits
        # e^80 is near the largest float32 and enough to win against any logit.
        growth = math.exp(min(n_behind * math.log(self.factor), 80.0)) - 1
        # A bias may have made the logit large before: above the largest number there is no probability.
        raised = torch.where(end == -torch.inf, end, (end + end.abs() * growth).clamp(max=torch.finfo(end.dtype).max))
        return logits.index_copy(1, torch.tensor([self.end_of_text], device=logits.device), raised.unsqueeze(1))
