"""The GPT: token ids in, logits of the next token out. Read from top to bottom.

token ids (B, T) → token embedding (+ positions, + n-grams) → blocks → final norm → (B, T, C) → head → (B, T, V)
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.block import Block
from model.config import ModelConfig
from model.dropout import ChannelDropout
from model.initialization import initialize, outlined
from model.kv_cache import HISTORY, NO_TOKEN, KVCache
from model.loss import linear_cross_entropy, token_losses
from model.ngram_embedding import NgramEmbedding
from model.normalization import NORMALIZATIONS
from model.positions import RotaryPositions

if TYPE_CHECKING:
    from model.decoding_kernels import DecodingStep


class GPT(nn.Module):
    """A decoder-only transformer whose parts are chosen by its config; GPT-2, Llama-2 and ours are configs of it.

    `forward` always returns logits; decoding calls `hidden_states` and `logits` (of the last position only), training
    calls `loss`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.position_embedding = (
            nn.Embedding(config.context_length, config.n_embd) if config.positions == "learned" else None
        )
        self.rotary = RotaryPositions(config) if config.positions == "rotary" else None
        self.ngram_embedding = NgramEmbedding(config) if config.bigram_rows or config.trigram_rows else None
        self.dropout = ChannelDropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.final_norm = NORMALIZATIONS[config.normalization](config, config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.decoding_step: DecodingStep | None = None
        if config.tied_head:
            self.head.weight = self.token_embedding.weight
        initialize(self, config)

    @classmethod
    def from_state_dict(cls, config: ModelConfig, state_dict: Mapping[str, Tensor]) -> "GPT":
        """The GPT with these very tensors (not copies) as its weights, in evaluation mode.

        Takes neither time nor memory nor random numbers for initial weights that would be replaced at once.
        """
        with outlined():
            model = cls(config)
        model.adopt(state_dict)
        return model

    def adopt(self, state_dict: Mapping[str, Tensor]) -> None:
        """Take these very tensors as the weights of this model, outlined on "meta", and enter evaluation mode."""
        self.load_state_dict(state_dict, assign=True)
        if self.config.tied_head:
            self.head.weight = self.token_embedding.weight
        device = self.token_embedding.weight.device
        for module in self.modules():
            for name, buffer in module.named_buffers(recurse=False):
                # Tables that grow when they are needed; those of the state dict have left "meta" already.
                if buffer.is_meta:
                    # Not empty_like, which imports sympy for a tensor on "meta": half a second.
                    setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device=device))
        self.eval()

    def forward(self, token_ids: Tensor, kv_cache: KVCache | None = None) -> Tensor:
        """Logits of the token after each position: (B, T) → (B, T, V)."""
        return self.logits(self.hidden_states(token_ids, kv_cache))

    def hidden_states(self, token_ids: Tensor, kv_cache: KVCache | None = None) -> Tensor:
        """What the model knows at each position: (B, T) → (B, T, C), normalised, ready for the head.

        With a cache, `token_ids` holds only the new tokens, and shorter rows are padded behind with −1. Without one,
        T must not exceed the context length.
        """
        if kv_cache is not None and self.decoding_step is not None and self.decoding_step.can_take(token_ids, kv_cache):
            return self.decoding_step(token_ids, kv_cache)
        T = token_ids.shape[1]
        if kv_cache is None:
            if self.config.context_length < T:
                raise ValueError(f"{T} tokens do not fit into a context of {self.config.context_length}")
            positions = torch.arange(T, device=token_ids.device)
            highest = T - 1
        else:
            positions = kv_cache.begin(token_ids)
            highest = max(kv_cache.lengths) + T - 1
        hidden = self.dropout(self.embed(token_ids, positions, kv_cache))
        rotation = self.rotary(positions, highest) if self.rotary is not None else None
        for block in self.blocks:
            hidden = block(hidden, rotation, kv_cache)
        hidden = self.final_norm(hidden)
        if kv_cache is not None:
            kv_cache.end(token_ids)
        return hidden  # type: ignore[no-any-return]

    def embed(self, token_ids: Tensor, positions: Tensor, kv_cache: KVCache | None = None) -> Tensor:
        """The input of the first block: (B, T) → (B, T, C)."""
        hidden = self.token_embedding(token_ids.clamp(min=0) if kv_cache is not None else token_ids)  # (B, T, C)
        if self.position_embedding is not None:
            # A padded position may lie behind the window; what it holds is never read.
            hidden = hidden + self.position_embedding(positions.clamp(max=self.config.context_length - 1))
        if self.ngram_embedding is not None:
            if kv_cache is None:
                with_history = F.pad(token_ids, (HISTORY, 0), value=NO_TOKEN)  # (B, HISTORY + T)
            else:
                with_history = kv_cache.with_history(token_ids)
            hidden = hidden + self.ngram_embedding(with_history)
        return hidden  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of the next token from hidden states: (…, C) → (…, V)."""
        return self.head(hidden)  # type: ignore[no-any-return]

    def loss(self, token_ids: Tensor, target_ids: Tensor) -> Tensor:
        """Mean cross-entropy in nats per token of predicting `target_ids` (B, T), without holding all logits."""
        hidden = self.hidden_states(token_ids).flatten(0, 1)  # (B·T, C)
        return linear_cross_entropy(hidden, self.head.weight, target_ids.flatten())

    def token_losses(self, token_ids: Tensor, target_ids: Tensor) -> Tensor:
        """Cross-entropy in nats of every single target, (B, T) → (B, T), without gradients."""
        with torch.no_grad():
            hidden = self.hidden_states(token_ids).flatten(0, 1)  # (B·T, C)
        return token_losses(hidden, self.head.weight, target_ids.flatten()).view_as(target_ids)
