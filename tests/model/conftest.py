"""Small configs of every architecture option, and models whose weights are all random."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from model.config import PRESETS, ModelConfig
from model.gpt import GPT

SMALL: dict[str, Any] = {"vocab_size": 50, "context_length": 24, "n_layer": 2, "n_head": 4, "n_embd": 32}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "no-bias": {"bias": False},
    "untied": {"tied_head": False},
    "rmsnorm": {"normalization": "rmsnorm"},
    "rotary": {"positions": "rotary"},
    "exact-gelu": {"feed_forward": "gelu"},
    "swiglu": {"feed_forward": "swiglu"},
    "relu-squared": {"feed_forward": "relu_squared"},
    "grouped-query": {"n_kv_head": 2, "positions": "rotary"},
    "multi-query": {"n_kv_head": 1},
    "qk-norm": {"qk_norm": True, "positions": "rotary"},
    "wide-heads": {"head_width": 12},
    "bigrams": {"bigram_rows": 97},
    "trigrams": {"bigram_rows": 31, "trigram_rows": 61},
    "ours": {**PRESETS["mini"], "bigram_rows": 97, "trigram_rows": 61},
    "llama": {**PRESETS["mini-llama"], "n_kv_head": 2},
}


@pytest.fixture(params=list(ARCHITECTURES.values()), ids=list(ARCHITECTURES))
def config(request: pytest.FixtureRequest) -> ModelConfig:
    """A small config; a test that asks for it runs once for every architecture option."""
    return ModelConfig(**{**request.param, **SMALL})


@pytest.fixture
def build() -> Callable[[ModelConfig], GPT]:
    """Builds a model in evaluation mode whose every weight is random, so that no part is silent or the identity."""

    def build_random(config: ModelConfig) -> GPT:
        torch.manual_seed(0)
        model = GPT(config)
        for name, parameter in model.named_parameters():
            centre = 1.0 if name.endswith("norm.weight") else 0.0
            torch.nn.init.normal_(parameter, mean=centre, std=0.25)
        return model.eval()

    return build_random
