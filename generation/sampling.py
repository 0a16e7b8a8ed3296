"""One token per row: draws from the probabilities of the processed logits, or the most probable one.

Random number (seed, sample, step) is a pure function of the three: the counter-based generator Philox (Salmon et al.
2011, "Parallel random numbers: as easy as 1, 2, 3", doi.org/10.1145/2063384.2063405) is keyed by seed and sample and
counted by step. So a sample draws the same numbers alone, in a batch of 64, or after others have ended.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from command_line import UserError

NO_CANDIDATE = -1
"""Drawn for a row in which every token is banned."""

_BLOCK_STEPS = 64
_NUMBERS_PER_COUNT = 4
"""Philox-4x64 yields four 64-bit numbers for each value of its counter."""


def uniform_block(seed: int, sample: int, block: int) -> NDArray[np.float64]:
    """The random numbers of steps 64·block … 64·block + 63 of one sample, each in [0, 1) with 53 random bits."""
    counter = block * (_BLOCK_STEPS // _NUMBERS_PER_COUNT)
    philox = np.random.Philox(counter=[counter, 0, 0, 0], key=np.array([seed, sample], dtype=np.uint64))
    bits = np.asarray(philox.random_raw(_BLOCK_STEPS), dtype=np.uint64)
    numbers: NDArray[np.float64] = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


class UniformNumbers:
    """One random number per row and step, for the rows of a batch; drawn 64 steps at a time."""

    def __init__(self, seed: int, samples: Sequence[int]) -> None:
        self.seed = seed
        self.samples = list(samples)
        self._block = -1
        self._numbers = torch.empty(0, 0, dtype=torch.float64)

    def at(self, step: int) -> Tensor:
        """The numbers of a step, (B,) in float64 on the CPU."""
        block, offset = divmod(step, _BLOCK_STEPS)
        if block != self._block:
            rows = [uniform_block(self.seed, sample, block) for sample in self.samples]
            self._numbers = torch.from_numpy(np.stack(rows, axis=1))  # (64, B)
            self._block = block
        return self._numbers[offset]

    def keep_rows(self, rows: list[int]) -> None:
        """Keep only the given rows of the batch."""
        self.samples = [self.samples[row] for row in rows]
        self._numbers = self._numbers[:, rows]


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one token per row with the probabilities softmax(logits), (B, V) and (B,) → (B,).

    Inverse of the cumulative distribution in float64 (float32 sums of 100,000 probabilities are off by 1e-4, and on a
    GPU they depend on the batch): the first token whose cumulative weight exceeds u · total. A token of weight 0 is
    never drawn. NO_CANDIDATE where all logits are −inf.
    """
    # Apple's GPUs have no float64.
    precise = (logits.cpu() if logits.device.type == "mps" else logits).double()
    highest = precise.amax(dim=-1, keepdim=True)
    # Not exp, which takes four times as long for each −inf, and those are most of a vocabulary behind top-k.
    cumulative = (precise - highest).mul_(math.log2(math.e)).exp2_().cumsum(dim=-1)
    # u ≤ 1 − 2⁻⁵³, so the rounded product stays below the total and the search always ends at a token.
    targets = uniforms.to(cumulative.device).unsqueeze(1) * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, targets, right=True).squeeze(1)
    return _checked(chosen, highest.squeeze(1)).to(logits.device)


def most_probable(logits: Tensor) -> Tensor:
    """The token of the highest logit of each row, the lower id when two are equal: (B, V) → (B,)."""
    highest, chosen = logits.max(dim=-1)
    return _checked(chosen, highest)


def _checked(chosen: Tensor, highest: Tensor) -> Tensor:
    """NO_CANDIDATE where nothing may be chosen; (B,) and (B,) → (B,). Raises UserError for NaN and +inf."""
    # A few numbers are compared sooner in Python than by three calls of torch.
    if all(-math.inf < value < math.inf for value in highest.tolist()):
        return chosen
    if highest.isnan().any():
        raise UserError("a logits processor made logits that are not numbers (NaN); --explain shows the order of all")
    if highest.isposinf().any():
        raise UserError(
            "a logits processor made a logit infinite (+inf), which has no probability; to force a token, set all "
            "others to −inf"
        )
    return chosen.masked_fill(highest == -torch.inf, NO_CANDIDATE)
