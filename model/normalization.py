"""Normalization: keeps the size of activations steady from block to block."""

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ModelConfig


class LayerNorm(nn.LayerNorm):
    """Zero mean and unit variance over the channels (Ba et al. 2016, arxiv.org/abs/1607.06450)."""

    def __init__(self, config: ModelConfig, n_channels: int) -> None:
        super().__init__(n_channels, eps=config.norm_eps, bias=config.bias)


class RMSNorm(nn.RMSNorm):
    """Unit root mean square over the channels (Zhang & Sennrich 2019, arxiv.org/abs/1910.07467)."""

    def __init__(self, config: ModelConfig, n_channels: int) -> None:
        super().__init__(n_channels, eps=config.norm_eps)

    def forward(self, inputs: Tensor) -> Tensor:
        """(…, C) → (…, C)."""
        return rms_norm(inputs, self.weight, self.eps)


def rms_norm(inputs: Tensor, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """Vectors of root mean square 1, times `weight`: (…, D) → (…, D). As in torch, eps is by default that of the type.

    On a CPU torch splits it into a dozen operations, and a decoding step is as slow as it has operations.
    """
    if torch.is_grad_enabled() or inputs.device.type != "cpu" or inputs.dtype.itemsize < 4:
        return F.rms_norm(inputs, inputs.shape[-1:], weight, eps)
    norm = torch.linalg.vector_norm(inputs, dim=-1, keepdim=True)
    mean_square = torch.addcmul(_constant(eps, inputs.dtype), norm, norm, value=1 / inputs.shape[-1])
    scaled = inputs * mean_square.rsqrt_()
    return scaled if weight is None else scaled * weight


@functools.cache
def _constant(eps: float | None, dtype: torch.dtype) -> Tensor:
    # A number that stands in a formula becomes a tensor anew each time, which takes longer than to add it.
    return torch.tensor(torch.finfo(dtype).eps if eps is None else eps, dtype=dtype)


NORMALIZATIONS: dict[str, type[LayerNorm] | type[RMSNorm]] = {"layernorm": LayerNorm, "rmsnorm": RMSNorm}
