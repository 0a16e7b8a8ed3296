"""Rotary angles against transformers and exact arithmetic, learned positions against their sum."""

import math
from typing import Any

import pytest
import torch

from model.config import ModelConfig
from model.gpt import GPT
from model.positions import RotaryPositions, rotary_frequencies, rotate

SIZES: dict[str, Any] = {"vocab_size": 50, "context_length": 64, "n_layer": 1, "n_head": 2, "n_embd": 32}


def rotary_config(**options: Any) -> ModelConfig:
    return ModelConfig(**SIZES, positions="rotary", **options)


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
def test_rotation_equals_transformers_llama(theta: float) -> None:
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    settings = {"rope_type": "default", "rope_theta": theta}
    reference = llama.LlamaRotaryEmbedding(
        llama.LlamaConfig(hidden_size=32, num_attention_heads=2, max_position_embeddings=64, rope_parameters=settings)
    )
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(2, 3, 2, 20, 16, generator=generator)
    positions = torch.arange(20)
    expected = llama.apply_rotary_pos_emb(queries, keys, *reference(queries, positions.expand(3, 20)))
    rotation = RotaryPositions(rotary_config(rope_theta=theta))(positions, 19)
    torch.testing.assert_close(rotate(queries, *rotation), expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(rotate(keys, *rotation), expected[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"rope_scaling": "linear", "rope_scaling_factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        (
            {"rope_scaling": "llama3", "rope_scaling_factor": 8.0, "rope_original_context": 512},
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 512,
            },
        ),
    ],
    ids=["linear", "llama3"],
)
def test_stretched_frequencies_equal_transformers(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    reference = llama.LlamaRotaryEmbedding(
        llama.LlamaConfig(
            hidden_size=32,
            num_attention_heads=2,
            max_position_embeddings=4096,
            rope_parameters={"rope_theta": 10_000.0, **theirs},
        )
    )
    frequencies = rotary_frequencies(rotary_config(**ours))
    torch.testing.assert_close(frequencies, reference.inv_freq.double(), rtol=1e-6, atol=0)
    assert not torch.allclose(frequencies, rotary_frequencies(rotary_config()))


def test_rotation_keeps_lengths_and_leaves_position_zero_alone() -> None:
    vectors = torch.randn(1, 1, 30, 16, generator=torch.Generator().manual_seed(0))
    turned = rotate(vectors, *RotaryPositions(rotary_config())(torch.arange(30), 29))
    torch.testing.assert_close(turned.norm(dim=-1), vectors.norm(dim=-1))
    assert torch.equal(turned[:, :, 0], vectors[:, :, 0])


def test_angles_are_right_far_beyond_the_context() -> None:
    cosines, _ = RotaryPositions(rotary_config())(torch.tensor([123_457]), 123_457)
    # Channel 0 turns by one radian a position; Python's own arithmetic is the reference.
    assert cosines[0, 0].item() == pytest.approx(math.cos(123_457), abs=1e-6)


def test_a_grown_table_holds_the_same_angles() -> None:
    rotary = RotaryPositions(rotary_config())
    before = rotary(torch.arange(64), 63)
    rotary(torch.tensor([1000]), 1000)
    after = rotary(torch.arange(64), 63)
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_a_table_grown_while_generating_still_serves_training() -> None:
    model = GPT(rotary_config())
    tokens = torch.arange(50)[None]
    with torch.inference_mode():
        model(tokens)
    model.loss(tokens, tokens).backward()  # type: ignore[no-untyped-call]
    assert model.blocks[0].attention.qkv.weight.grad is not None  # type: ignore[union-attr]


def test_rows_may_stand_at_positions_of_their_own() -> None:
    rotary = RotaryPositions(rotary_config())
    vectors = torch.randn(2, 3, 4, 16, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[0, 1, 2, 3], [7, 8, 9, 10]])
    together = rotate(vectors, *rotary(positions, 10))
    apart = torch.cat([rotate(row[None], *rotary(own, 10)) for row, own in zip(vectors, positions, strict=True)])
    assert torch.equal(together, apart)


def test_learned_positions_are_added_to_the_token_embedding() -> None:
    model = GPT(ModelConfig(**SIZES))
    tokens = torch.tensor([[3, 3, 8]])
    assert model.position_embedding is not None
    expected = model.token_embedding.weight[tokens] + model.position_embedding.weight[:3]
    torch.testing.assert_close(model.embed(tokens, torch.arange(3)), expected)
