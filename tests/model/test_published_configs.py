"""The config.json files that well-known models are published with: read field by field, with the published sizes."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from model.config import ModelConfig
from model.cost import count_parameters
from model.huggingface import read_config
from model.layouts.registry import read_model_config

_GPT2: dict[str, Any] = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}
_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "model_type": "llama",
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.31.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
_LLAMA3_SCALING = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


def llama(n_embd: int, n_feed_forward: int, n_layer: int, n_head: int, n_kv_head: int, **fields: Any) -> dict[str, Any]:
    sizes = {"hidden_size": n_embd, "intermediate_size": n_feed_forward, "num_hidden_layers": n_layer}
    return {**_LLAMA, **sizes, "num_attention_heads": n_head, "num_key_value_heads": n_kv_head, **fields}


# Name → config.json, published number of parameters, and fields whose value decides what the model computes.
PUBLISHED: dict[str, tuple[dict[str, Any], int, dict[str, Any]]] = {
    "gpt2": ({**_GPT2, "n_embd": 768, "n_head": 12, "n_layer": 12}, 124_439_808, {"tied_head": True}),
    "gpt2-medium": (
        {**_GPT2, "n_embd": 1024, "n_head": 16, "n_layer": 24, "n_special": 0, "predict_special_tokens": True},
        354_823_168,
        {},
    ),
    "gpt2-large": ({**_GPT2, "n_embd": 1280, "n_head": 20, "n_layer": 36}, 774_030_080, {}),
    "gpt2-xl": (
        {**_GPT2, "n_embd": 1600, "n_head": 25, "n_layer": 48, "output_past": True},
        1_557_611_200,
        {"feed_forward": "gelu_tanh", "norm_eps": 1e-5},
    ),
    "llama-2-7b": (
        llama(4096, 11008, 32, 32, 32, max_position_embeddings=4096),
        6_738_415_616,
        {"rope_theta": 10_000.0, "tied_head": False, "bias": False},
    ),
    "llama-2-70b": (llama(8192, 28672, 80, 64, 8, max_position_embeddings=4096), 68_976_648_192, {}),
    "tinyllama-1.1b": (
        llama(2048, 5632, 22, 32, 4, max_position_embeddings=2048, attention_bias=False, rope_theta=10000.0),
        1_100_048_384,
        {"n_kv_head": 4},
    ),
    "llama-3.2-1b": (
        llama(
            *(2048, 8192, 16, 32, 8),
            vocab_size=128256,
            head_dim=64,
            max_position_embeddings=131072,
            attention_bias=False,
            attention_dropout=0.0,
            mlp_bias=False,
            rope_scaling=_LLAMA3_SCALING,
            rope_theta=500000.0,
            tie_word_embeddings=True,
            bos_token_id=128000,
            eos_token_id=[128001, 128008, 128009],
        ),
        1_235_814_400,
        {"rope_scaling": "llama3", "rope_scaling_factor": 32.0, "rope_theta": 500_000.0, "tied_head": True},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_config_gives_the_published_number_of_parameters(name: str, tmp_path: Path) -> None:
    values, n_parameters, expected = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(values))
    layout, config = read_config(tmp_path)
    assert layout.architecture == values["architectures"][0]
    assert count_parameters(config) == n_parameters
    assert {field: getattr(config, field) for field in expected} == expected


MINIMAL: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 60, "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2},
    "llama": {
        **dict.fromkeys(("hidden_size", "intermediate_size", "max_position_embeddings", "vocab_size"), 32),
        **dict.fromkeys(("num_hidden_layers", "num_attention_heads"), 2),
    },
}


@pytest.mark.parametrize("family", MINIMAL)
def test_a_field_that_is_left_out_means_what_it_means_in_transformers(family: str) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    filled = transformers.AutoConfig.for_model(family, **MINIMAL[family]).to_dict()
    (_, short), (_, full) = (
        read_model_config(values, "config.json") for values in ({"model_type": family, **MINIMAL[family]}, filled)
    )
    assert meaning(short) == meaning(full)


def meaning(config: ModelConfig) -> ModelConfig:
    """A config with its derived widths spelled out, without dropout, which transformers adds where none is named."""
    return dataclasses.replace(
        config,
        n_feed_forward=config.feed_forward_width,
        n_kv_head=config.key_value_heads,
        head_width=config.channels_per_head,
        dropout=0.0,
    )
