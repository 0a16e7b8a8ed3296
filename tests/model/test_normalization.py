"""Normalizations against their formulas."""

import pytest
import torch

from model.config import ModelConfig
from model.normalization import LayerNorm, RMSNorm

EPS = 1e-3


def config(bias: bool = True) -> ModelConfig:
    return ModelConfig(vocab_size=10, norm_eps=EPS, bias=bias)


def stream() -> torch.Tensor:
    return 3 + 2 * torch.randn(4, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_rms_norm_divides_by_the_root_mean_square_and_scales() -> None:
    norm, x = RMSNorm(config(), 16).double(), stream()
    torch.nn.init.normal_(norm.weight)
    expected = x / (x.square().mean(dim=-1, keepdim=True) + EPS).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm_subtracts_the_mean_divides_by_the_deviation_scales_and_shifts(bias: bool) -> None:
    norm, x = LayerNorm(config(bias), 16).double(), stream()
    torch.nn.init.normal_(norm.weight)
    shift = torch.nn.init.normal_(norm.bias) if bias else 0.0
    centred = x - x.mean(dim=-1, keepdim=True)
    expected = centred / (centred.square().mean(dim=-1, keepdim=True) + EPS).sqrt() * norm.weight + shift
    torch.testing.assert_close(norm(x), expected, rtol=0, atol=1e-12)
    assert (norm.bias is not None) == bias
