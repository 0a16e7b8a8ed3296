"""Keys and values of the tokens that were already seen, so that a new token costs one position instead of all.

Every row of a batch has a length of its own: its tokens stand in slots 0 … length − 1, and what lies behind them is
never attended to. That is how prompts of different lengths share a batch without padding having any influence.
"""

import torch
from torch import Tensor

from model.config import ModelConfig

NO_TOKEN = -1
"""Stands for padding behind a shorter prompt, and for the missing tokens before the first."""

HISTORY = 2
"""How many earlier tokens an embedding may look back to (a trigram reads two)."""


class KVCache:
    """Preallocated keys and values (B, K, S, D) of every layer, and what is needed to go on behind them.

    A `rolling` cache overwrites its oldest slot when it is full, so every token sees the last `capacity` tokens
    (rotary positions only, since they keep counting). Otherwise a full cache raises ValueError: the caller decides
    what to keep.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        *,
        capacity: int | None = None,
        rolling: bool = False,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if rolling and config.positions != "rotary":
            raise ValueError("a rolling cache needs rotary positions: learned ones end with the context window")
        self.capacity = capacity or config.context_length
        if config.positions == "learned" and self.capacity > config.context_length:
            raise ValueError(f"learned positions end at {config.context_length}; a cache of {self.capacity} cannot be")
        self.rolling = rolling
        shape = (config.n_layer, batch_size, config.key_value_heads, self.capacity, config.channels_per_head)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = [0] * batch_size
        self.history = torch.full((batch_size, HISTORY), NO_TOKEN, dtype=torch.int64, device=device)
        self._needs_history = bool(config.bigram_rows or config.trigram_rows)
        self.mask: Tensor | None = None
        self.is_causal = False
        self._counts = [0] * batch_size
        self._n_columns = 0
        # Row, column and slot of every new token, padding left out; None while all rows are alike.
        self._places: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def batch_size(self) -> int:
        """B: rows."""
        return len(self.lengths)

    @property
    def is_uniform(self) -> bool:
        """Whether all rows have the same length and no padding: slices can take the place of index tensors."""
        return len(set(self.lengths)) == 1 and set(self._counts) == {self._n_columns}

    def begin(self, token_ids: Tensor) -> Tensor:
        """Make room for `token_ids` (B, T), padded behind with NO_TOKEN; returns their positions, (T,) or (B, T).

        Raises ValueError when a row does not fit.
        """
        B, T = token_ids.shape
        longest = self._count(T, [T] * B if T == 1 else (token_ids != NO_TOKEN).sum(dim=1).tolist())
        device = token_ids.device
        if self.is_uniform:
            self._places = None
            start = self.lengths[0]
            # A single new token sees everything; a first call is plainly causal; only a later chunk needs a mask.
            self.is_causal = start == 0 and T > 1
            self.mask = None
            if start > 0 and T > 1:
                self.mask = torch.ones(T, start + T, dtype=torch.bool, device=device).tril(start)
            return torch.arange(start, start + T, device=device)
        starts = torch.tensor(self.lengths, device=device)
        positions = starts.unsqueeze(1) + torch.arange(T, device=device)  # (B, T)
        # Padding is not stored: its positions may lie behind the last slot, or wrap around to living tokens.
        counts = torch.tensor(self._counts, device=device)
        rows, columns = (torch.arange(T, device=device) < counts.unsqueeze(1)).nonzero(as_tuple=True)
        self._places = (rows, columns, positions[rows, columns] % self.capacity)
        slots = torch.arange(min(longest, self.capacity), device=device)
        self.mask = (slots <= positions.unsqueeze(-1)).unsqueeze(1)  # (B, 1, T, S)
        self.is_causal = False
        return positions

    def begin_token(self) -> None:
        """Make room for one token a row, whose keys, values and history are stored elsewhere, before `end_token`.

        Raises ValueError as `begin`.
        """
        self._count(1, [1] * self.batch_size)

    def _count(self, n_columns: int, counts: list[int]) -> int:
        """Note how many tokens come to each row; returns how many the longest will have."""
        self._n_columns, self._counts = n_columns, counts
        longest = max(length + count for length, count in zip(self.lengths, counts, strict=True))
        if longest > self.capacity and not (self.rolling and n_columns == 1):
            raise ValueError(f"the cache holds {self.capacity} tokens a row, but {longest} are needed")
        return longest

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new (B, K, T, D) keys and values of a layer; returns all that may be attended to, (B, K, S, D)."""
        all_keys, all_values = self.keys[layer], self.values[layer]
        T = keys.shape[2]
        if self._places is None:
            start, end = self.lengths[0], self.lengths[0] + T
            slot = start % self.capacity
            all_keys[:, :, slot : slot + T] = keys
            all_values[:, :, slot : slot + T] = values
        else:
            rows, columns, slots = self._places
            all_keys[rows, :, slots] = keys[rows, :, columns].to(all_keys.dtype)
            all_values[rows, :, slots] = values[rows, :, columns].to(all_values.dtype)
            end = max(length + count for length, count in zip(self.lengths, self._counts, strict=True))
        n_visible = min(end, self.capacity)
        return all_keys[:, :, :n_visible], all_values[:, :, :n_visible]

    def with_history(self, token_ids: Tensor) -> Tensor:
        """The new tokens behind the HISTORY tokens before them, (B, HISTORY + T)."""
        return torch.cat((self.history, token_ids), dim=1)

    def end(self, token_ids: Tensor) -> None:
        """Count the tokens of this call, after the last layer has stored them."""
        if self._needs_history:
            seen = self.with_history(token_ids)
            if self._places is None:
                self.history = seen[:, -HISTORY:].contiguous()
            else:
                last = torch.tensor(self._counts, device=seen.device).unsqueeze(1)
                self.history = seen.gather(1, last + torch.arange(HISTORY, device=seen.device))
        self.end_token()

    def end_token(self) -> None:
        """Count the tokens of this call."""
        self.lengths = [length + count for length, count in zip(self.lengths, self._counts, strict=True)]

    def copy_rows_from(self, other: "KVCache", rows: list[int]) -> None:
        """Replace the given rows by the rows of another cache of at most this capacity, in their order."""
        self.keys[:, rows, :, : other.capacity] = other.keys
        self.values[:, rows, :, : other.capacity] = other.values
        self.history[rows] = other.history
        for row, length in zip(rows, other.lengths, strict=True):
            self.lengths[row] = length

    def keep_rows(self, rows: list[int]) -> None:
        """Keep only the given rows, in the given order; a row may be named more than once."""
        self.keys, self.values, self.history = self.keys[:, rows], self.values[:, rows], self.history[rows]
        self.lengths = [self.lengths[row] for row in rows]
        self._counts, self._n_columns = [0] * len(rows), 0
