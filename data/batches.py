"""Cut a sequence of tokens into windows: shuffled ones to train on, all of them once to evaluate on.

`Batches.batch(step)` depends on the seed and the step and on nothing that happened before, so a run is resumed by
asking for the next step. The windows of all epochs are one long stream, and a step takes the next `sequences` of it:

    number in the stream → epoch, number in the epoch → (shuffle) → window → first token

An epoch's windows lie side by side from a start offset that is drawn anew for each epoch, so that the borders move. Its
order is a permutation that is computed, not stored: a Feistel network over the smallest square number that holds all
windows, walked along its cycle until it lands on a window (Black and Rogaway 2002, "Ciphers with Arbitrary Finite
Domains", https://www.cs.ucdavis.edu/~rogaway/papers/subset.pdf).
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from command_line import UserError
from data.shards import TokenShards

_ROUNDS = 6
"""Feistel rounds: four are enough in theory (Luby and Rackoff 1988); small domains mix better with a few more."""

Integers = npt.NDArray[np.uint64]


def _mix(values: Integers) -> Integers:
    """Scramble 64-bit numbers (the finalizer of SplitMix64; Steele et al. 2014, doi.org/10.1145/2660193.2660195)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _draw(seed: int, epochs: Integers, purpose: int) -> Integers:
    """A random 64-bit number for each epoch, different for each seed and purpose."""
    key = _mix(np.array([seed], dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    return _mix(_mix(key + epochs * np.uint64(0x9E3779B97F4A7C15)) + np.uint64(purpose + 1))


def permute(numbers: Integers, size: int, keys: list[Integers]) -> Integers:
    """Where a permutation of 0 … size−1 takes each number: (N,) → (N,); keys[r] is (N,), one for each Feistel round."""
    side = np.uint64(math.isqrt(size - 1) + 1)
    result = numbers.copy()
    walking = np.arange(len(numbers))
    while len(walking):
        left, right = result[walking] // side, result[walking] % side
        for key in keys:
            left, right = right, (left + _mix(right + key[walking]) % side) % side
        result[walking] = left * side + right
        walking = walking[result[walking] >= size]
    return result


class Batches:
    """Shuffled windows of `context_length` tokens and their targets, as a pure function of seed and step.

    `sequences` is the number of windows of a step over all processes; rank r of `world_size` gets the r-th equal slice.
    Raises UserError when the tokens are fewer than one window or the sequences cannot be divided.
    """

    def __init__(
        self,
        tokens: TokenShards,
        context_length: int,
        sequences: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if len(tokens) < context_length + 1:
            raise UserError(
                f"the training text has {len(tokens)} tokens, a window needs {context_length + 1}; "
                f"lower --context-length (now {context_length}) or give more text"
            )
        if sequences < 1 or sequences % world_size:
            raise UserError(f"{sequences} sequences a step cannot be divided among {world_size} processes")
        self.tokens, self.context_length, self.sequences = tokens, context_length, sequences
        self.seed, self.rank, self.world_size = seed, rank, world_size
        targets = len(tokens) - 1
        # One window less than fits, so that the start offset can take every value below the window's length.
        self.windows_per_epoch = max(1, (targets - (context_length - 1)) // context_length)
        self._offsets = min(context_length, targets - self.windows_per_epoch * context_length + 1)

    def _starts(self, stream: Integers) -> npt.NDArray[np.int64]:
        size = self.windows_per_epoch
        epochs, numbers = stream // np.uint64(size), stream % np.uint64(size)
        keys = [_draw(self.seed, epochs, purpose) for purpose in range(_ROUNDS)]
        offsets = _draw(self.seed, epochs, _ROUNDS) % np.uint64(self._offsets)
        return (permute(numbers, size, keys) * np.uint64(self.context_length) + offsets).astype(np.int64)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """This rank's token ids and target ids of a step, each (sequences / world_size, T), int64."""
        share = self.sequences // self.world_size
        begin = np.uint64(step * self.sequences + self.rank * share)
        starts = self._starts(begin + np.arange(share, dtype=np.uint64))
        windows = torch.from_numpy(self.tokens.windows(starts, self.context_length + 1))
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


class EvaluationBatch(NamedTuple):
    """Some windows of an evaluation; `counted` marks the targets that no earlier window counted. All (B, T)."""

    token_ids: Tensor
    target_ids: Tensor
    counted: Tensor


def validation_windows(
    tokens: TokenShards,
    context_length: int,
    stride: int | None = None,
    *,
    sequences: int = 32,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[EvaluationBatch]:
    """Yield windows in which every target of the sequence (each token but the first) is counted exactly once.

    Windows begin every `stride` tokens (default: `context_length`, no overlap). The first counts all its targets, a
    later one only those that the one before did not reach, which see at least `context_length − stride` tokens before
    them. The last window is moved left until it ends with the last token. A sequence shorter than one window is one
    short window. Over all ranks every window comes once; ranks may get different numbers of batches, even none.
    """
    targets = len(tokens) - 1
    length = min(context_length, targets)
    stride = length if stride is None else min(stride, length)
    if length < 1 or stride < 1:
        return
    starts = np.append(np.arange(0, targets - length, stride), targets - length)
    # The targets that window k has not to count again: all up to the end of window k − 1.
    counted_before = np.concatenate([[0], starts[:-1] + length]) - starts
    starts, counted_before = starts[rank::world_size], counted_before[rank::world_size]
    for first in range(0, len(starts), sequences):
        chosen = slice(first, first + sequences)
        windows = torch.from_numpy(tokens.windows(starts[chosen], length + 1))
        counted = torch.from_numpy(np.arange(length) >= counted_before[chosen, None])
        yield EvaluationBatch(windows[:, :-1].contiguous(), windows[:, 1:].contiguous(), counted)
