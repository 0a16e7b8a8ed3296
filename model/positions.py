"""How the model knows the order of tokens: learned vectors added to the input, or rotation of queries and keys."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ModelConfig


def rotary_frequencies(config: ModelConfig) -> Tensor:
    """Radians per position of each pair of channels, (D/2,) in float64 (Su et al. 2021, arxiv.org/abs/2104.09864).

    `rope_scaling` says how they were lowered when a trained model was taught a longer context. `linear` divides all by
    one factor (Chen et al. 2023, arxiv.org/abs/2306.15595). `llama3` divides only the slow ones, leaves the fast ones,
    and blends in between (Llama-3.1: Grattafiori et al. 2024, arxiv.org/abs/2407.21783).
    """
    width = config.channels_per_head
    frequencies = config.rope_theta ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    if config.rope_scaling == "none":
        return frequencies
    stretched = frequencies / config.rope_scaling_factor
    if config.rope_scaling == "linear":
        return stretched
    low, high = config.rope_low_frequency_factor, config.rope_high_frequency_factor
    turns = config.rope_original_context * frequencies / (2 * math.pi)
    share_kept = ((turns - low) / (high - low)).clamp(0, 1)
    return torch.lerp(stretched, frequencies, share_kept)


class RotaryPositions(nn.Module):
    """Cosines and sines for the rotation of queries and keys; the table grows when a later position is asked for."""

    cosines: Tensor
    sines: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        # Non-persistent: the table follows from the config, so it does not belong into a checkpoint.
        self.register_buffer("cosines", torch.empty(0), persistent=False)
        self.register_buffer("sines", torch.empty(0), persistent=False)

    def forward(self, positions: Tensor, highest: int) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines of `positions` (T,) or (B, T): each (T, D) or (B, 1, T, D); `highest` bounds all."""
        # As embeddings they are looked up in half the time that an index takes.
        cosines, sines = (F.embedding(positions, table) for table in self.tables(highest, positions.device))
        return (cosines, sines) if positions.ndim == 1 else (cosines.unsqueeze(1), sines.unsqueeze(1))

    def tables(self, highest: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines of all positions up to `highest` and more, each (positions, D)."""
        if highest >= self.cosines.shape[0] or self.cosines.device != device:
            # Doubling keeps the cost per token constant when positions run far beyond the context window.
            self._grow(max(highest + 1, 2 * self.cosines.shape[0], self.config.context_length), device)
        return self.cosines, self.sines

    @torch.inference_mode(False)
    def _grow(self, n_positions: int, device: torch.device) -> None:
        # Never as inference tensors: a table grown by a sample must still serve the next training step.
        # Angles in float64: at position 100,000 a float32 product is off by more than a hundredth of a turn.
        angles = torch.outer(torch.arange(n_positions, dtype=torch.float64), rotary_frequencies(self.config))
        self.cosines = torch.cat((angles.cos(), angles.cos()), dim=-1).to(device, torch.float32)
        # Channel i + D/2 enters channel i with the opposite sign.
        self.sines = torch.cat((-angles.sin(), angles.sin()), dim=-1).to(device, torch.float32)


def rotate(vectors: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotate (B, H, T, D) queries or keys by their positions; channel i is paired with i + D/2 (Llama's order)."""
    partners = vectors.roll(vectors.shape[-1] // 2, dims=-1)
    return vectors * cosines.to(vectors.dtype) + partners * sines.to(vectors.dtype)
