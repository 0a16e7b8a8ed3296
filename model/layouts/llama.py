"""Llama 1 to 3 (Touvron et al. 2023, arxiv.org/abs/2302.13971 and 2307.09288) and what shares their parts.

Queries and keys lie in the half-split order that Hugging Face and `model/positions.py` rotate.
"""

from typing import Any

from command_line import UserError
from model.config import ModelConfig
from model.layouts.base import Fields, Layout


def _read_llama(fields: Fields) -> dict[str, Any]:
    fields.number("attention_dropout", 0.0)  # concerns training only, and ours drops elsewhere
    fields.choice("hidden_act", "silu", {"silu": "swiglu", "swish": "swiglu"})
    return {
        "vocab_size": fields.size("vocab_size"),
        "context_length": fields.size("max_position_embeddings"),
        "n_layer": fields.size("num_hidden_layers"),
        "n_head": fields.size("num_attention_heads"),
        "n_kv_head": fields.get("num_key_value_heads", None, int),
        "n_embd": fields.size("hidden_size"),
        "head_width": fields.get("head_dim", None, int),
        "n_feed_forward": fields.size("intermediate_size"),
        "norm_eps": fields.number("rms_norm_eps", 1e-6),
        "tied_head": fields.get("tie_word_embeddings", False, bool),
        "bias": fields.get("attention_bias", False, bool),
        "feed_forward_bias": fields.get("mlp_bias", False, bool),
        "normalization": "rmsnorm",
        "positions": "rotary",
        "feed_forward": "swiglu",
        **_read_rope(fields),
    }


def _read_rope(fields: Fields) -> dict[str, Any]:
    """Both spellings: `rope_theta` beside `rope_scaling` (transformers 4), or all of it in `rope_parameters` (5)."""
    theta = fields.number("rope_theta", 10_000.0)
    old, new = (
        _read_rope_table(Fields(fields.get(name, {}, dict), f"{fields.where}: {name}"), theta)
        for name in ("rope_scaling", "rope_parameters")
    )
    given = [fields.values.get(name) is not None for name in ("rope_theta", "rope_scaling", "rope_parameters")]
    if given[2] and ((given[0] and new["rope_theta"] != theta) or (given[1] and old != new)):
        raise UserError(f"{fields.where} contradicts itself: rope_parameters differs from rope_theta or rope_scaling")
    return new if given[2] else old


def _read_rope_table(rope: Fields, theta: float) -> dict[str, Any]:
    kind = "type" if "type" in rope.values else "rope_type"
    rope.same("rope_type", kind)
    scaling = rope.choice(kind, "default", {"default": "none", "linear": "linear", "llama3": "llama3"})
    config: dict[str, Any] = {"rope_theta": rope.number("rope_theta", theta), "rope_scaling": scaling}
    if scaling != "none":
        config["rope_scaling_factor"] = rope.number("factor", 1.0)
    if scaling == "llama3":
        config["rope_low_frequency_factor"] = rope.number("low_freq_factor", 1.0)
        config["rope_high_frequency_factor"] = rope.number("high_freq_factor", 4.0)
        config["rope_original_context"] = rope.size("original_max_position_embeddings")
    rope.finish()
    return config


def _write_llama(config: ModelConfig) -> dict[str, Any]:
    # In both spellings, so that transformers 4 and programs that read the older fields open it too.
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling != "none":
        rope |= {"rope_type": config.rope_scaling, "factor": config.rope_scaling_factor}
    if config.rope_scaling == "llama3":
        rope["low_freq_factor"] = config.rope_low_frequency_factor
        rope["high_freq_factor"] = config.rope_high_frequency_factor
        rope["original_max_position_embeddings"] = config.rope_original_context
    scaling = None if config.rope_scaling == "none" else {k: v for k, v in rope.items() if k != "rope_theta"}
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.key_value_heads,
        "hidden_size": config.n_embd,
        "head_dim": config.channels_per_head,
        "intermediate_size": config.feed_forward_width,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_head,
        "attention_bias": config.bias,
        "mlp_bias": config.feed_forward_has_bias,
        "attention_dropout": 0.0,
        "rope_parameters": rope,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
    }


LLAMA = Layout(
    name="llama",
    architecture="LlamaForCausalLM",
    parts={"positions": ("rotary",), "normalization": ("rmsnorm",), "feed_forward": ("swiglu",)},
    tensors={
        "token_embedding": ("model.embed_tokens",),
        "blocks.#.attention_norm": ("model.layers.#.input_layernorm",),
        "blocks.#.attention.qkv": tuple(f"model.layers.#.self_attn.{part}_proj" for part in "qkv"),
        "blocks.#.attention.projection": ("model.layers.#.self_attn.o_proj",),
        "blocks.#.feed_forward_norm": ("model.layers.#.post_attention_layernorm",),
        "blocks.#.feed_forward.gate": ("model.layers.#.mlp.gate_proj",),
        "blocks.#.feed_forward.up": ("model.layers.#.mlp.up_proj",),
        "blocks.#.feed_forward.down": ("model.layers.#.mlp.down_proj",),
        "final_norm": ("model.norm",),
        "head": ("lm_head",),
    },
    gguf_tensors={
        "token_embedding": ("token_embd",),
        "blocks.#.attention_norm": ("blk.#.attn_norm",),
        "blocks.#.attention.qkv": ("blk.#.attn_q", "blk.#.attn_k", "blk.#.attn_v"),
        "blocks.#.attention.projection": ("blk.#.attn_output",),
        "blocks.#.feed_forward_norm": ("blk.#.ffn_norm",),
        "blocks.#.feed_forward.gate": ("blk.#.ffn_gate",),
        "blocks.#.feed_forward.up": ("blk.#.ffn_up",),
        "blocks.#.feed_forward.down": ("blk.#.ffn_down",),
        "final_norm": ("output_norm",),
        "head": ("output",),
    },
    transposed=(),
    read_config=_read_llama,
    write_config=_write_llama,
)
