"""Tokens in, logits of the next token out, for texts of any length: the rows of one batch and their KV cache.

Every row stands for itself: it has its own length, it is re-prefilled when its own window is full, and what stands in
the other rows has no influence on it. What a row keeps when its window is full is the cache policy:

    window   the newest half, computed anew. One step in C/2 costs a prefill, so a token costs the same everywhere.
    exact    the newest C tokens, computed anew for each token: plain crop and recompute, slow, the reference.
    rolling  the oldest token is overwritten (rotary positions only). Every token attends to the last C tokens, but
             deeper layers still carry what earlier tokens told them, so it is not the same as `exact`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from command_line import UserError
from generation.config import SamplingConfig
from model.gpt import GPT
from model.kv_cache import NO_TOKEN, KVCache


class ContextWindow:
    """The rows of a batch, each with the part of its text that the model sees.

    `start` gives the logits behind the prompts, `step` takes one token per row and gives the logits behind it.
    """

    def __init__(
        self, model: GPT, prompts: Sequence[Sequence[int]], of_prompt: Sequence[int], sampling: SamplingConfig
    ) -> None:
        """Row i continues the prompt number `of_prompt[i]`; every prompt has 1 to C tokens.

        Raises UserError when the model cannot do the cache policy.
        """
        config = model.config
        if sampling.cache == "rolling" and config.positions != "rotary":
            raise UserError(
                "--cache rolling needs a model with rotary positions, but this one has learned ones, which end with "
                "the context window; use --cache window or --cache exact"
            )
        self.model = model
        self.device = model.token_embedding.weight.device
        used = sorted(set(of_prompt))
        self._prompts = [prompts[number] for number in used]
        self._row_of_prompt = [used.index(number) for number in of_prompt]
        self.lengths = [len(prompts[number]) for number in of_prompt]
        self.prompt_lengths = torch.tensor(self.lengths, device=self.device)
        longest = max(self.lengths)
        self._tokens = torch.full((len(self.lengths), longest + 64), NO_TOKEN, device=self.device)
        self._n_kept = config.context_length if sampling.cache == "exact" else max(1, config.context_length // 2)
        self._rolling = sampling.cache == "rolling"
        # A short text does not need slots for a whole window.
        self._capacity = min(config.context_length, longest + sampling.max_new_tokens)
        self._cache = self._new_cache(len(self._prompts))
        self.hidden = torch.empty(0)
        """Hidden states of the newest tokens, from which the logits were computed: (B, C)."""
        self.hidden_total = torch.empty(0)
        """Sum of the hidden states of all tokens of each row, as they were when they were the newest: (B, C)."""

    def _new_cache(self, n_rows: int) -> KVCache:
        return KVCache(
            self.model.config,
            n_rows,
            capacity=self._capacity,
            rolling=self._rolling,
            device=self.device,
            dtype=self.model.token_embedding.weight.dtype,
        )

    @property
    def token_ids(self) -> Tensor:
        """Prompt and generated tokens of every row, (B, T), −1 behind the shorter ones."""
        return self._tokens[:, : max(self.lengths)]

    @torch.inference_mode()
    def start(self) -> Tensor:
        """Prefill the prompts, each once however many rows continue it; logits behind each row, (B, V) in float32."""
        longest = max(len(prompt) for prompt in self._prompts)
        padded = [[*prompt, *[NO_TOKEN] * (longest - len(prompt))] for prompt in self._prompts]
        token_ids = torch.tensor(padded, device=self.device)  # (B, T)
        hidden = self.model.hidden_states(token_ids, self._cache)  # (B, T, C)
        last = torch.tensor([len(prompt) - 1 for prompt in self._prompts], device=self.device)
        self.hidden = hidden[torch.arange(len(last), device=self.device), last]
        self.hidden_total = (hidden * (token_ids != NO_TOKEN).unsqueeze(-1)).sum(dim=1)
        logits = self.model.logits(self.hidden).float()  # (B, V)
        rows = self._row_of_prompt
        if len(rows) > len(self._prompts):
            self._cache.keep_rows(rows)
            token_ids, logits = token_ids[rows], logits[rows]
            self.hidden, self.hidden_total = self.hidden[rows], self.hidden_total[rows]
        self._tokens[:, :longest] = token_ids
        return logits

    @torch.inference_mode()
    def step(self, new_tokens: Tensor) -> Tensor:
        """Append one token to every row, (B,) → logits behind it, (B, V) in float32."""
        self._append(new_tokens)
        self._make_room()
        self.hidden = self.model.hidden_states(new_tokens.unsqueeze(1), self._cache)[:, -1]
        self.hidden_total = self.hidden_total + self.hidden
        return self.model.logits(self.hidden).float()

    def keep_rows(self, rows: list[int]) -> None:
        """Go on with only the given rows."""
        self._cache.keep_rows(rows)
        self.hidden, self.hidden_total = self.hidden[rows], self.hidden_total[rows]
        self.lengths = [self.lengths[row] for row in rows]
        self.prompt_lengths, self._tokens = self.prompt_lengths[rows], self._tokens[rows]

    def _append(self, new_tokens: Tensor) -> None:
        width = self._tokens.shape[1]
        if max(self.lengths) == width:
            # Doubling keeps the cost per token constant however long the text becomes.
            grown = torch.full((len(self.lengths), 2 * width), NO_TOKEN, device=self.device)
            grown[:, :width] = self._tokens
            self._tokens = grown
        if len(set(self.lengths)) == 1:
            self._tokens[:, self.lengths[0]] = new_tokens
        else:
            rows = torch.arange(len(self.lengths), device=self.device)
            self._tokens[rows, torch.tensor(self.lengths, device=self.device)] = new_tokens
        self.lengths = [length + 1 for length in self.lengths]

    def _make_room(self) -> None:
        """Re-prefill each row whose window is full with its newest tokens, so that one more fits."""
        if self._rolling:
            return
        full = [row for row, length in enumerate(self._cache.lengths) if length == self._cache.capacity]
        if not full:
            return
        # The newest token is already in the row but goes through the model in the ordinary step that follows.
        n_prefilled = self._n_kept - 1
        refreshed = self._new_cache(len(full))
        if n_prefilled:
            ends = [self.lengths[row] - 1 for row in full]
            kept = [self._tokens[row, end - n_prefilled : end] for row, end in zip(full, ends, strict=True)]
            self.model.hidden_states(torch.stack(kept), refreshed)
        self._cache.copy_rows_from(refreshed, full)
