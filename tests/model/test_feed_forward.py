"""Feed-forward variants against their formulas."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from model.config import ModelConfig
from model.feed_forward import FEED_FORWARDS


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def relu_squared(x: Tensor) -> Tensor:
    return torch.where(x > 0, x * x, 0.0)


def layer(name: str, **options: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=10, n_head=2, n_embd=16, feed_forward=name, **options)  # type: ignore[arg-type]
    module = FEED_FORWARDS[name](config).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


def stream() -> Tensor:
    return torch.randn(2, 3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [gelu, gelu_tanh, relu_squared])
def test_two_layers_equal_their_formula(activation: Callable[[Tensor], Tensor], bias: bool) -> None:
    module = layer(activation.__name__, bias=bias)
    p = dict(module.named_parameters())
    wide = stream() @ p["up.weight"].mT + p.get("up.bias", torch.zeros(()))
    expected = activation(wide) @ p["down.weight"].mT + p.get("down.bias", torch.zeros(()))
    torch.testing.assert_close(module(stream()), expected, rtol=0, atol=1e-10)
    assert p["up.weight"].shape == (64, 16)
    assert ("up.bias" in p) == bias


def test_swiglu_equals_its_formula() -> None:
    module = layer("swiglu", bias=False, n_feed_forward=40)
    p = dict(module.named_parameters())
    gate, up = stream() @ p["gate.weight"].mT, stream() @ p["up.weight"].mT
    expected = (gate / (1 + torch.exp(-gate)) * up) @ p["down.weight"].mT
    torch.testing.assert_close(module(stream()), expected, rtol=0, atol=1e-10)


def test_every_variant_works_on_each_position_alone() -> None:
    for name in FEED_FORWARDS:
        module = layer(name)
        apart = torch.stack([module(stream()[:, t]) for t in range(3)], dim=1)
        torch.testing.assert_close(module(stream()), apart, rtol=0, atol=1e-10, msg=name)


def test_feed_forward_bias_can_differ_from_the_rest() -> None:
    names = {name for name, _ in layer("gelu", bias=True, feed_forward_bias=False).named_parameters()}
    assert names == {"up.weight", "down.weight"}
