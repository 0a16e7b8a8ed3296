"""GPT-2 (Radford et al. 2019), as openai-community/gpt2 is stored."""

from typing import Any

from model.config import ModelConfig
from model.layouts.base import Fields, Layout

# Their names of the activation → our feed-forward layer.
_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}


def _read_gpt2(fields: Fields) -> dict[str, Any]:
    fields.same("n_ctx", "n_positions")
    config = {
        "vocab_size": fields.size("vocab_size"),
        "context_length": fields.size("n_positions"),
        "n_layer": fields.size("n_layer"),
        "n_head": fields.size("n_head"),
        "n_embd": fields.size("n_embd"),
        "n_feed_forward": fields.get("n_inner", None, int),
        "feed_forward": fields.choice("activation_function", "gelu_new", _ACTIVATIONS),
        "norm_eps": fields.number("layer_norm_epsilon", 1e-5),
        "tied_head": fields.get("tie_word_embeddings", True, bool),
        # They have three rates, of which ours is the residual stream's; all three concern training only.
        "dropout": fields.number("resid_pdrop", 0.0),
    }
    fields.get("embd_pdrop", 0.0, int, float)
    fields.get("attn_pdrop", 0.0, int, float)
    return config


def _write_gpt2(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "n_inner": config.feed_forward_width,
        "activation_function": {"gelu_tanh": "gelu_new", "gelu": "gelu"}[config.feed_forward],
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tied_head,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": 0.0,
    }


GPT2 = Layout(
    name="gpt2",
    architecture="GPT2LMHeadModel",
    parts={"positions": ("learned",), "normalization": ("layernorm",), "feed_forward": ("gelu_tanh", "gelu")},
    tensors={
        "token_embedding": ("transformer.wte",),
        "position_embedding": ("transformer.wpe",),
        "blocks.#.attention_norm": ("transformer.h.#.ln_1",),
        "blocks.#.attention.qkv": ("transformer.h.#.attn.c_attn",),
        "blocks.#.attention.projection": ("transformer.h.#.attn.c_proj",),
        "blocks.#.feed_forward_norm": ("transformer.h.#.ln_2",),
        "blocks.#.feed_forward.up": ("transformer.h.#.mlp.c_fc",),
        "blocks.#.feed_forward.down": ("transformer.h.#.mlp.c_proj",),
        "final_norm": ("transformer.ln_f",),
        "head": ("lm_head",),
    },
    gguf_tensors={
        "token_embedding": ("token_embd",),
        "position_embedding": ("position_embd",),
        "blocks.#.attention_norm": ("blk.#.attn_norm",),
        "blocks.#.attention.qkv": ("blk.#.attn_qkv",),
        "blocks.#.attention.projection": ("blk.#.attn_output",),
        "blocks.#.feed_forward_norm": ("blk.#.ffn_norm",),
        "blocks.#.feed_forward.up": ("blk.#.ffn_up",),
        "blocks.#.feed_forward.down": ("blk.#.ffn_down",),
        "final_norm": ("output_norm",),
        "head": ("output",),
    },
    transposed=("qkv.weight", "projection.weight", "up.weight", "down.weight"),
    read_config=_read_gpt2,
    write_config=_write_gpt2,
)
