"""Attention against its formula, written out head by head and position by position."""

from typing import Any

import pytest
import torch
from torch import Tensor

from model.attention import CausalAttention, attend
from model.config import ModelConfig
from model.positions import RotaryPositions, rotate

B, T, C = 2, 7, 24


def attention(**options: Any) -> CausalAttention:
    torch.manual_seed(0)
    return CausalAttention(ModelConfig(vocab_size=10, context_length=16, n_embd=C, **options), layer=0).double()


def inputs() -> Tensor:
    return torch.randn(B, T, C, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def by_hand(layer: CausalAttention, stream: Tensor) -> Tensor:
    """Softmax of scaled products, one row, head and position at a time."""
    config = layer.config
    D, H, K = config.channels_per_head, config.n_head, config.key_value_heads
    q_weight, k_weight, v_weight = layer.qkv.weight.tensor_split((H * D, (H + K) * D))
    biases = layer.qkv.bias if layer.qkv.bias is not None else torch.zeros((H + 2 * K) * D)
    q_bias, k_bias, v_bias = biases.tensor_split((H * D, (H + K) * D))
    result = torch.zeros(B, T, H * D, dtype=torch.float64)
    for b in range(B):
        queries, keys = stream[b] @ q_weight.mT + q_bias, stream[b] @ k_weight.mT + k_bias
        values = stream[b] @ v_weight.mT + v_bias
        for h in range(H):
            shared = h // (H // K)  # neighbouring query heads share a key/value head
            own, other = slice(h * D, (h + 1) * D), slice(shared * D, (shared + 1) * D)
            for t in range(T):
                query, past = queries[t, own], keys[: t + 1, other]
                if config.qk_norm:
                    query = query / query.square().mean().sqrt()
                    past = past / past.square().mean(dim=-1, keepdim=True).sqrt()
                scores = past @ query / D**0.5
                weights = scores.exp() / scores.exp().sum()
                result[b, t, own] = weights @ values[: t + 1, other]
    projected = result @ layer.projection.weight.mT
    return projected if layer.projection.bias is None else projected + layer.projection.bias


@pytest.mark.parametrize(
    "options",
    [
        {"n_head": 3},
        {"n_head": 3, "bias": False},
        {"n_head": 4, "n_kv_head": 2},
        {"n_head": 4, "n_kv_head": 1},
        {"n_head": 2, "head_width": 5},
        {"n_head": 3, "qk_norm": True},
    ],
    ids=str,
)
def test_equals_the_formula_written_out_per_head(options: dict[str, Any]) -> None:
    layer = attention(**options)
    # torch's qk-norm adds the machine epsilon of float64 under the root: nothing at this tolerance.
    torch.testing.assert_close(layer(inputs()), by_hand(layer, inputs()), rtol=0, atol=1e-12)


def test_grouped_queries_equal_many_heads_with_repeated_keys_and_values() -> None:
    grouped, full = attention(n_head=4, n_kv_head=2), attention(n_head=4)
    D = 6
    for name in ("weight", "bias"):
        queries, keys, values = getattr(grouped.qkv, name).tensor_split((4 * D, 6 * D))
        repeated = [part.unflatten(0, (2, D)).repeat_interleave(2, dim=0).flatten(0, 1) for part in (keys, values)]
        getattr(full.qkv, name).data = torch.cat((queries, *repeated))
        getattr(full.projection, name).data = getattr(grouped.projection, name).data
    torch.testing.assert_close(grouped(inputs()), full(inputs()), rtol=0, atol=1e-12)


def test_rotated_queries_and_keys_score_by_their_distance_alone() -> None:
    config = ModelConfig(vocab_size=10, context_length=512, n_head=2, n_embd=32, positions="rotary")
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 16, generator=generator, dtype=torch.float64)
    rotary = RotaryPositions(config)
    scores = []
    for offset in (0, 1, 100, 400):
        turned_query = rotate(query, *rotary(torch.tensor([offset + 12]), 511))
        turned_key = rotate(key, *rotary(torch.tensor([offset]), 511))
        scores.append((turned_query * turned_key).sum())
    # The table of angles is kept in float32: seven digits.
    torch.testing.assert_close(torch.stack(scores), scores[0].expand(4), rtol=0, atol=1e-5)
    elsewhere = (rotate(query, *rotary(torch.tensor([13]), 511)) * rotate(key, *rotary(torch.tensor([0]), 511))).sum()
    assert abs(elsewhere - scores[0]) > 1e-2


@pytest.mark.parametrize("n_kv_head", [4, 2])
@pytest.mark.parametrize("is_causal", [True, False])
def test_plain_products_in_bfloat16_equal_float32_within_their_rounding(n_kv_head: int, is_causal: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(2, 4, 9, 8, generator=generator).bfloat16()
    keys, values = torch.randn(2, 2, n_kv_head, 9, 8, generator=generator).bfloat16()
    mixed = attend(queries, keys, values, mask=None, is_causal=is_causal)
    precise = attend(queries.float(), keys.float(), values.float(), mask=None, is_causal=is_causal)
    torch.testing.assert_close(mixed.float(), precise, rtol=0.02, atol=0.02)
