"""Low-rank adapters: nothing at first, then exactly a product beside each frozen matrix, and gone when merged."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.cost import adapter_parameters
from model.gpt import GPT
from model.lora import LowRankLinear, add_adapters, merged, unmerged

Build = Callable[[ModelConfig], GPT]
RANK, ALPHA = 3, 5.0


def token_ids() -> Tensor:
    return torch.randint(0, 50, (3, 13), generator=torch.Generator().manual_seed(1))


def adapted(model: GPT, matrices: str = "all") -> GPT:
    """A model with adapters that do something."""
    add_adapters(model, RANK, ALPHA, matrices)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_b"):
            nn.init.normal_(parameter, std=0.2)
    return model


def test_new_adapters_change_not_one_bit_of_the_logits(config: ModelConfig, build: Build) -> None:
    model = build(config)
    before = model(token_ids())
    add_adapters(model, RANK, ALPHA, "all")
    assert torch.equal(model(token_ids()), before)


def test_an_adapted_layer_adds_the_scaled_product() -> None:
    layer = LowRankLinear(nn.Linear(4, 6).double(), rank=2, alpha=5.0)
    nn.init.normal_(layer.lora_b)
    inputs = torch.randn(7, 4, dtype=torch.float64)
    a, b = layer.lora_a.detach(), layer.lora_b.detach()
    for row, output in zip(inputs, layer(inputs), strict=True):
        expected = layer.weight @ row + layer.bias + 5.0 / 2 * (b @ (a @ row))
        torch.testing.assert_close(output, expected)


def test_merged_weights_make_an_ordinary_model_with_the_same_logits(config: ModelConfig, build: Build) -> None:
    base = build(config)
    original = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    before = base(token_ids())
    model = adapted(base)
    ordinary = GPT(config).eval()
    ordinary.load_state_dict(merged(model, model.state_dict()))
    logits = model(token_ids())
    torch.testing.assert_close(ordinary(token_ids()), logits, rtol=0, atol=1e-4)
    assert (logits - before).abs().max() > 0.01
    for name, tensor in model.state_dict().items():
        assert name not in original or torch.equal(tensor, original[name]), name


def test_only_adapters_learn_and_by_the_chain_rule_of_the_merged_matrix(config: ModelConfig, build: Build) -> None:
    """d loss / dB = alpha/rank · dW Aᵀ and d loss / dA = alpha/rank · Bᵀ dW, dW being that of the ordinary model."""
    model = adapted(build(config)).double()
    ordinary = GPT(config).double().eval()
    ordinary.load_state_dict(merged(model, model.state_dict()))
    tokens = token_ids()
    for each in (model, ordinary):
        each.loss(tokens[:, :-1], tokens[:, 1:]).backward()  # type: ignore[no-untyped-call]
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert set(gradients) == {name for name, _ in model.named_parameters() if "lora_" in name}
    for name, layer in model.named_modules():
        if isinstance(layer, LowRankLinear):
            (full,) = (parameter.grad for key, parameter in ordinary.named_parameters() if key == f"{name}.weight")
            assert full is not None
            torch.testing.assert_close(gradients[f"{name}.lora_b"], ALPHA / RANK * full @ layer.lora_a.T)
            torch.testing.assert_close(gradients[f"{name}.lora_a"], ALPHA / RANK * layer.lora_b.T @ full)


@pytest.mark.parametrize(
    ("matrices", "expected"),
    [
        ("attention", {"attention.qkv", "attention.projection"}),
        ("feed_forward", {"feed_forward.gate", "feed_forward.up", "feed_forward.down"}),
        (
            "all",
            {
                "attention.qkv",
                "attention.projection",
                "feed_forward.gate",
                "feed_forward.up",
                "feed_forward.down",
            },
        ),
    ],
)
@pytest.mark.parametrize("feed_forward", ["swiglu", "gelu"])
def test_the_chosen_matrices_of_every_block_are_adapted_and_counted(
    matrices: str, expected: set[str], feed_forward: Any, build: Build
) -> None:
    config = ModelConfig(
        50, n_layer=2, n_head=4, n_embd=32, n_kv_head=2, head_width=12, n_feed_forward=40, feed_forward=feed_forward
    )
    model = adapted(build(config), matrices)
    layers = {name for name, module in model.named_modules() if isinstance(module, LowRankLinear)}
    present = expected - (set() if feed_forward == "swiglu" else {"feed_forward.gate"})
    assert layers == {f"blocks.{layer}.{name}" for layer in range(2) for name in present}
    n_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert n_trained == adapter_parameters(config, RANK, matrices)


def test_what_merging_changed_is_kept_beside_it_bit_for_bit(config: ModelConfig, build: Build) -> None:
    model = adapted(build(config), "attention")
    state_dict = model.state_dict()
    restored = {**merged(model, state_dict), **unmerged(model, state_dict)}
    assert sorted(restored) == sorted(state_dict)
    for name, tensor in state_dict.items():
        assert torch.equal(restored[name], tensor), name


def test_a_model_without_adapters_is_merged_already(config: ModelConfig, build: Build) -> None:
    model = build(config)
    state_dict = model.state_dict()
    assert merged(model, state_dict) == state_dict
    assert unmerged(model, state_dict) == {}
