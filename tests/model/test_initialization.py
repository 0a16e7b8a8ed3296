"""How a model starts: spreads of the weights, blocks that begin as the identity, a first loss of ln V."""

import math
from typing import Any

import pytest
import torch

from model.block import Block
from model.config import PRESETS, ModelConfig
from model.gpt import GPT

SIZES: dict[str, Any] = {"vocab_size": 300, "context_length": 32, "n_layer": 3, "n_head": 4, "n_embd": 128}


def build(preset: str, **options: Any) -> GPT:
    torch.manual_seed(0)
    return GPT(ModelConfig(**{**PRESETS[preset], **SIZES, **options}))


def test_gpt2_weights_have_the_published_spread() -> None:
    for name, parameter in build("gpt2").named_parameters():
        if name.endswith("bias"):
            assert parameter.abs().max() == 0, name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            into_stream = "projection" in name or "down" in name
            expected = 0.02 / math.sqrt(2 * 3) if into_stream else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name
            assert abs(parameter.mean().item()) < 0.001, name


@pytest.mark.parametrize("preset", ["nano", "mini", "small"])
def test_blocks_of_ours_begin_as_the_identity(preset: str) -> None:
    model = build(preset)
    stream = torch.randn(2, 8, 128)
    assert model.rotary is not None
    rotation = model.rotary(torch.arange(8), 7)
    for block in model.blocks:
        assert isinstance(block, Block)
        assert torch.equal(block(stream, rotation), stream)


@pytest.mark.parametrize("preset", ["nano", "mini", "small"])
def test_first_loss_of_ours_is_exactly_that_of_guessing(preset: str) -> None:
    tokens = torch.randint(0, 300, (2, 33))
    loss = build(preset).loss(tokens[:, :-1], tokens[:, 1:])
    assert loss.item() == pytest.approx(math.log(300), abs=1e-6)


@pytest.mark.parametrize("preset", ["gpt2", "mini-llama"])
def test_first_loss_of_the_others_is_close_to_that_of_guessing(preset: str) -> None:
    tokens = torch.randint(0, 300, (4, 33))
    assert build(preset).loss(tokens[:, :-1], tokens[:, 1:]).item() == pytest.approx(math.log(300), abs=0.15)


def test_zero_projections_leave_the_other_matrices_at_unit_gain() -> None:
    model = build("mini")
    for name, parameter in model.named_parameters():
        if name.endswith(("qkv.weight", "up.weight")):
            assert parameter.std().item() == pytest.approx(1 / math.sqrt(128), rel=0.05), name


def test_ngram_tables_begin_silent() -> None:
    weights = build("mini", bigram_rows=64, trigram_rows=64).state_dict()
    for order in (2, 3):
        assert weights[f"ngram_embedding.tables.{order}.weight"].abs().max() == 0


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second = build("mini").state_dict(), build("mini").state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
