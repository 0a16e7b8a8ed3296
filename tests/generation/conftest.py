"""Tiny models with random weights, shared by the tests of this room."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from data.tokenizers.utf8_bytes import ByteTokenizer
from generation.text_generator import TextGenerator
from model.config import ModelConfig
from model.gpt import GPT

TINY: dict[str, Any] = {"vocab_size": 257, "context_length": 16, "n_layer": 2, "n_head": 2, "n_embd": 16}
VARIANTS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {"positions": "rotary", "normalization": "rmsnorm", "feed_forward": "swiglu", "n_kv_head": 1},
    "ours": {
        "positions": "rotary",
        "normalization": "rmsnorm",
        "feed_forward": "relu_squared",
        "qk_norm": True,
        "bias": False,
        "tied_head": False,
        "bigram_rows": 64,
        "trigram_rows": 64,
    },
}

BuildModel = Callable[..., GPT]


@pytest.fixture
def build_model() -> BuildModel:
    """A function that builds a tiny model whose next token is far from certain and far from uniform."""

    def build(variant: str = "gpt2", **overrides: Any) -> GPT:
        torch.manual_seed(1)
        model = GPT(ModelConfig(**{**TINY, **VARIANTS[variant], **overrides})).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.25)
        return model

    return build


@pytest.fixture
def generator(build_model: BuildModel) -> TextGenerator:
    """A tiny model over UTF-8 bytes."""
    return TextGenerator(build_model(), ByteTokenizer())
