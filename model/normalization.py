"""Normalization: keeps the size of activations steady from block to block."""

from torch import nn

from model.config import ModelConfig


class LayerNorm(nn.LayerNorm):
    """Zero mean and unit variance over the channels (Ba et al. 2016, arxiv.org/abs/1607.06450)."""

    def __init__(self, config: ModelConfig, n_channels: int) -> None:
        super().__init__(n_channels, eps=config.norm_eps, bias=config.bias)


class RMSNorm(nn.RMSNorm):
    """Unit root mean square over the channels (Zhang & Sennrich 2019, arxiv.org/abs/1910.07467)."""

    def __init__(self, config: ModelConfig, n_channels: int) -> None:
        super().__init__(n_channels, eps=config.norm_eps)


NORMALIZATIONS: dict[str, type[LayerNorm] | type[RMSNorm]] = {"layernorm": LayerNorm, "rmsnorm": RMSNorm}
