"""Temperature, and the rules that cut off improbable tokens; each keeps at least one token of a row that has one."""

import math

import torch
from torch import Tensor

from generation.logits_processors.base import Stage


class Temperature:
    """Divides the logits: below 1 the probable become more probable, above 1 all come closer together.

    On logits, not on probabilities: dividing probabilities by a constant and normalising again changes nothing.
    """

    stage: Stage = "temperature"

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self.name = f"temperature={temperature:g}"

    def __call__(self, token_ids: Tensor, logits: Tensor, prompt_lengths: Tensor) -> Tensor:
        """(B, V) → (B, V)."""
        if self.temperature == 1:
            return logits
        if 1e-3 < self.temperature < 1e3:
            return logits / self.temperature
        # A shift changes no probability, and it keeps the best token finite at a temperature of 1e-30.
        limits = torch.finfo(logits.dtype)
        shifted = logits - logits.amax(dim=-1, keepdim=True).clamp(min=limits.min)
        # A temperature of 1e300 would become infinite in float32, and −inf divided by it no number.
        return shifted / min(max(self.temperature, limits.tiny), limits.max)


class TopK:
    """Keeps the k most probable tokens (Fan et al. 2018, arxiv.org/abs/1805.04833); exactly k: of equal ones the
    lower ids.
    """

    stage: Stage = "truncation"

    def __init__(self, top_k: int) -> None:
        self.top_k = top_k
        self.name = f"top_k={top_k}"

    def __call__(self, token_ids: Tensor, logits: Tensor, prompt_lengths: Tensor) -> Tensor:
        """(B, V) → (B, V)."""
        if self.top_k >= logits.shape[-1]:
            return logits
        # The last that is kept and the first that is not.
        border = logits.topk(self.top_k + 1, dim=-1).values[:, -2:]  # (B, 2)
        kth = border[:, :1]
        dropped = logits < kth
        # A threshold alone lets ties through, and k = 5 could keep six; they are rare, so most steps skip this.
        if any(last == next_one for last, next_one in border.tolist()):
            equal = logits == kth
            n_missing = self.top_k - (logits > kth).sum(dim=-1, keepdim=True)
            dropped |= equal & (equal.cumsum(dim=-1) > n_missing)
        return logits.masked_fill(dropped, -torch.inf)


class MinP:
    """Keeps the tokens with at least this share of the best one's probability (Nguyen et al. 2024,
    arxiv.org/abs/2407.01082): few candidates where the model is sure, many where it is not.
    """

    stage: Stage = "truncation"

    def __init__(self, min_p: float) -> None:
        self.min_p = min_p
        self.name = f"min_p={min_p:g}"

    def __call__(self, token_ids: Tensor, logits: Tensor, prompt_lengths: Tensor) -> Tensor:
        """(B, V) → (B, V)."""
        if self.min_p <= 0:
            return logits
        lowest = logits.amax(dim=-1, keepdim=True) + math.log(self.min_p)
        return logits.masked_fill(logits < lowest, -torch.inf)


class TopP:
    """Keeps the fewest most probable tokens that together reach probability p, also known as nucleus sampling
    (Holtzman et al. 2019, arxiv.org/abs/1904.09751).
    """

    stage: Stage = "truncation"

    def __init__(self, top_p: float) -> None:
        self.top_p = top_p
        self.name = f"top_p={top_p:g}"

    def __call__(self, token_ids: Tensor, logits: Tensor, prompt_lengths: Tensor) -> Tensor:
        """(B, V) → (B, V)."""
        if self.top_p >= 1:
            return logits
        return _keep_first(logits, logits, self.top_p)


class Typical:
    """Keeps the tokens whose surprise is closest to the expected one until they reach a probability (Meister et al.
    2022, arxiv.org/abs/2202.00666): neither the improbable nor, in an uncertain place, the all too probable.
    """

    stage: Stage = "truncation"

    def __init__(self, typical_p: float) -> None:
        self.typical_p = typical_p
        self.name = f"typical_p={typical_p:g}"

    def __call__(self, token_ids: Tensor, logits: Tensor, prompt_lengths: Tensor) -> Tensor:
        """(B, V) → (B, V)."""
        if self.typical_p >= 1:
            return logits
        log_probabilities = logits.log_softmax(dim=-1)
        closeness = -(-log_probabilities - _entropy(logits)).abs()
        return _keep_first(logits, closeness, self.typical_p)


class Epsilon:
    """Drops tokens of a probability below epsilon (Hewitt et al. 2022, arxiv.org/abs/2210.15191)."""

    stage: Stage = "truncation"

    def __init__(self, epsilon: float) -> None:
        self.epsilon = epsilon
        self.name = f"epsilon_cutoff={epsilon:g}"

    def __call__(self, token_ids: Tensor, logits: Tensor, prompt_lengths: Tensor) -> Tensor:
        """(B, V) → (B, V)."""
        return _drop_below(logits, torch.full_like(logits[:, :1], self.epsilon))


class Eta:
    """Drops tokens below min(epsilon, √epsilon · e^−entropy), a threshold that falls where the model is uncertain
    (Hewitt et al. 2022, arxiv.org/abs/2210.15191).
    """

    stage: Stage = "truncation"

    def __init__(self, epsilon: float) -> None:
        self.epsilon = epsilon
        self.name = f"eta_cutoff={epsilon:g}"

    def __call__(self, token_ids: Tensor, logits: Tensor, prompt_lengths: Tensor) -> Tensor:
        """(B, V) → (B, V)."""
        adapted = math.sqrt(self.epsilon) * torch.exp(-_entropy(logits))
        return _drop_below(logits, adapted.clamp(max=self.epsilon))


def _keep_first(logits: Tensor, preference: Tensor, mass: float) -> Tensor:
    """Keep the first tokens by preference, (B, V), of equal ones the lower id, that together reach a probability."""
    order = preference.sort(dim=-1, descending=True, stable=True).indices
    probabilities = logits.softmax(dim=-1).gather(1, order)
    # A token is dropped when those before it already reach the mass; the first stays, also with a mass that is 0 in
    # float32.
    dropped = probabilities.cumsum(dim=-1) - probabilities >= mass
    dropped[:, 0] = False
    return logits.masked_fill(dropped.scatter(1, order, dropped), -torch.inf)


def _drop_below(logits: Tensor, threshold: Tensor) -> Tensor:
    """Drop tokens of a probability below the threshold (B, 1), but never a row's best."""
    best = logits.amax(dim=-1, keepdim=True)
    return logits.masked_fill((logits.softmax(dim=-1) < threshold) & (logits < best), -torch.inf)


def _entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of each row: (B, V) → (B, 1)."""
    entropy: Tensor = torch.special.entr(logits.softmax(dim=-1)).sum(dim=-1, keepdim=True)
    return entropy
