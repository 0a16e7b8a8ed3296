"""What processors remember of each row, kept up to date by one token a step instead of reading the whole text again."""

from collections.abc import Callable
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

State = TypeVar("State")


def n_new_tokens(token_ids: Tensor, prompt_lengths: Tensor) -> int:
    """Tokens that every row has generated, from (B, T) and (B,)."""
    return token_ids.shape[1] - int(prompt_lengths.max())


def row_lengths(token_ids: Tensor, prompt_lengths: Tensor) -> Tensor:
    """Tokens of each row, prompt and generated: (B, T) and (B,) → (B,)."""
    return prompt_lengths + n_new_tokens(token_ids, prompt_lengths)


class _Progress:
    """Tells whether a call goes on one token behind the last one."""

    def __init__(self) -> None:
        self._lengths: Tensor | None = None
        self._newest: Tensor | None = None

    def observe(self, token_ids: Tensor, lengths: Tensor) -> Literal["same", "next", "other"]:
        """How the rows relate to those of the last call; other rows, fewer or more of them, are `other`."""
        rows = torch.arange(len(lengths), device=lengths.device)
        newest = token_ids[rows, lengths - 1]
        relation: Literal["same", "next", "other"] = "other"
        if self._lengths is not None and self._newest is not None and len(self._lengths) == len(lengths):
            if torch.equal(lengths, self._lengths) and torch.equal(newest, self._newest):
                relation = "same"
            elif torch.equal(lengths, self._lengths + 1) and torch.equal(token_ids[rows, lengths - 2], self._newest):
                relation = "next"
        self._lengths, self._newest = lengths, newest
        return relation


class TokenCounts:
    """How often each token stands in each row, optionally only in its last `window` tokens or behind its prompt."""

    def __init__(self, vocab_size: int, *, window: int | None = None, new_only: bool = False) -> None:
        self.vocab_size = vocab_size
        self.window = window
        self.new_only = new_only
        self._progress = _Progress()
        self._counts = torch.empty(0, 0)

    def update(self, token_ids: Tensor, prompt_lengths: Tensor) -> Tensor:
        """The counts (B, V) for rows (B, T) with prompts of the given lengths (B,)."""
        lengths = row_lengths(token_ids, prompt_lengths)
        starts = prompt_lengths if self.new_only else torch.zeros_like(prompt_lengths)
        relation = self._progress.observe(token_ids, lengths)
        if relation == "next":
            self._add(token_ids, lengths - 1, 1.0, lengths - 1 >= starts)
            if self.window is not None:
                leaving = lengths - 1 - self.window
                self._add(token_ids, leaving.clamp(min=0), -1.0, leaving >= starts)
        elif relation == "other":
            self._counts = self._count_all(token_ids, lengths, starts)
        return self._counts

    def _add(self, token_ids: Tensor, positions: Tensor, amount: float, counted: Tensor) -> None:
        rows = torch.arange(len(positions), device=positions.device)
        amounts = counted.float() * amount
        self._counts.scatter_add_(1, token_ids[rows, positions].unsqueeze(1), amounts.unsqueeze(1))

    def _count_all(self, token_ids: Tensor, lengths: Tensor, starts: Tensor) -> Tensor:
        if self.window is not None:
            starts = torch.maximum(starts, lengths - self.window)
        positions = torch.arange(token_ids.shape[1], device=token_ids.device)
        counted = (positions >= starts.unsqueeze(1)) & (positions < lengths.unsqueeze(1))  # (B, T)
        counts = torch.zeros(len(lengths), self.vocab_size, device=token_ids.device)
        return counts.scatter_add_(1, token_ids.clamp(min=0), counted.float())


class RowStates(Generic[State]):
    """A state of any kind for each row: built by `new`, and given one token after the other by `add`.

    `add` takes the state, the token and whether it was generated (not part of the prompt), and returns the new state.
    """

    def __init__(self, new: Callable[[], State], add: Callable[[State, int, bool], State]) -> None:
        self._new = new
        self._add = add
        self._progress = _Progress()
        self._states: list[State] = []

    def update(self, token_ids: Tensor, prompt_lengths: Tensor) -> list[State]:
        """The states of the rows (B, T) with prompts of the given lengths (B,)."""
        lengths = row_lengths(token_ids, prompt_lengths)
        relation = self._progress.observe(token_ids, lengths)
        if relation == "next":
            rows = torch.arange(len(lengths), device=lengths.device)
            newest = token_ids[rows, lengths - 1].tolist()
            self._states = [self._add(state, token, True) for state, token in zip(self._states, newest, strict=True)]
        elif relation == "other":
            self._states = [
                self._read(tokens[:length], prompt_length)
                for tokens, length, prompt_length in zip(
                    token_ids.tolist(), lengths.tolist(), prompt_lengths.tolist(), strict=True
                )
            ]
        return self._states

    def _read(self, tokens: list[int], prompt_length: int) -> State:
        state = self._new()
        for position, token in enumerate(tokens):
            state = self._add(state, token, position >= prompt_length)
        return state
