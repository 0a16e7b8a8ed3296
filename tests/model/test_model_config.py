"""What a model config allows, derives and refuses, and in which words."""

from typing import Any

import pytest

from command_line import UserError, config_from_dict, config_to_dict
from model.config import PRESETS, ModelConfig, preset_config


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_embd": 100, "n_head": 8}, r"--n-embd \(100\) must be a multiple of --n-head \(8\); try --n-embd 96"),
        ({"n_embd": 3, "n_head": 8}, r"try --n-embd 8"),
        ({"n_head": 6, "n_kv_head": 4}, r"--n-head \(6\) must be a multiple of --n-kv-head \(4\).* 1 or 2 or 3 or 6"),
        ({"n_head": 6, "n_kv_head": 12}, r"must be a multiple of --n-kv-head \(12\)"),
        ({"n_embd": 9, "n_head": 3, "positions": "rotary"}, "turn channels in pairs, but a head has 3"),
        ({"head_width": 5, "positions": "rotary"}, "but a head has 5; try --head-width 6, or --positions learned"),
        ({"vocab_size": 0}, "--vocab-size must be a whole number at least 1, but is 0"),
        ({"n_layer": 0}, "--n-layer must be a whole number at least 1"),
        ({"dropout": 1.0}, "--dropout must be a finite number at least 0 and below 1, but is 1.0"),
        ({"norm_eps": 0.0}, "--norm-eps must be a finite number at most 1 and above 0, but is 0.0"),
        ({"rope_theta": float("inf")}, "--rope-theta must be a finite number above 1"),
        (
            {"feed_forward": "relu"},
            "--feed-forward must be one of gelu, gelu_tanh, swiglu, relu_squared, but is 'relu'",
        ),
        ({"n_layer": 2.0}, "--n-layer must be a whole number .*, but is 2.0"),
        ({"n_layer": True}, "--n-layer must be a whole number"),
        ({"bias": 1}, "--bias must be true or false, but is 1"),
        ({"rope_scaling_factor": 2.0}, "needs --rope-scaling"),
        (
            {"rope_scaling": "llama3", "rope_low_frequency_factor": 4.0},
            r"--rope-low-frequency-factor \(4.0\) must be below --rope-high-frequency-factor \(4.0\)",
        ),
    ],
    ids=str,
)
def test_an_impossible_model_is_refused_in_words_that_help(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ModelConfig(**{"vocab_size": 100, **options})


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_survives_a_checkpoint(preset: str) -> None:
    config = preset_config(preset, **({} if "vocab_size" in PRESETS[preset] else {"vocab_size": 100}))
    assert config_from_dict(ModelConfig, config_to_dict(config)) == config


def test_an_unknown_preset_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"--preset must be one of .*, but is 'minni' \(did you mean mini\?\)"):
        preset_config("minni", vocab_size=100)


def test_a_preset_without_vocabulary_asks_for_it() -> None:
    with pytest.raises(UserError, match="preset mini needs vocab-size"):
        preset_config("mini")


def test_options_override_a_preset() -> None:
    assert preset_config("gpt2", n_layer=3).n_layer == 3
    assert preset_config("gpt2", n_layer=3).n_head == 12


def test_derived_sizes() -> None:
    assert ModelConfig(vocab_size=9, n_embd=96, n_head=6).channels_per_head == 16
    assert ModelConfig(vocab_size=9, n_embd=96, n_head=6, head_width=7).channels_per_head == 7
    assert ModelConfig(vocab_size=9, n_head=6, n_kv_head=2).key_value_heads == 2
    assert ModelConfig(vocab_size=9, n_embd=96).feed_forward_width == 384
    # Llama's rule: two thirds of 4 C, rounded up to a multiple of 64; for 4096 channels that is 10,944.
    assert ModelConfig(vocab_size=9, n_embd=4096, n_head=32, feed_forward="swiglu").feed_forward_width == 10_944
    assert ModelConfig(vocab_size=9, n_embd=96, n_feed_forward=7).feed_forward_width == 7
