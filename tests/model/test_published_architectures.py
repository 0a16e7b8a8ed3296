"""A GPT-2 and a Llama of random weights, copied here by hand, give the logits of transformers' own classes."""

from typing import Any

import pytest
import torch
from torch import Tensor

from model.config import PRESETS, ModelConfig
from model.gpt import GPT

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

TOKENS = torch.randint(0, 90, (2, 16), generator=torch.Generator().manual_seed(0))


def randomise(model: torch.nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "ln" in name or "norm" in name else 0.0, std=0.2)
    return {name: tensor.detach() for name, tensor in model.named_parameters()}


def check(theirs: torch.nn.Module, options: dict[str, Any], weights: dict[str, Tensor]) -> None:
    model = GPT(ModelConfig(**options)).eval()
    model.load_state_dict(weights)
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS), theirs.eval()(TOKENS).logits, rtol=1e-4, atol=1e-4)


def test_gpt2_gives_the_logits_of_transformers() -> None:
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=90, n_positions=16, n_embd=32, n_layer=2, n_head=4)
    )
    w = randomise(theirs)
    ours = {
        "token_embedding.weight": w["transformer.wte.weight"],
        "position_embedding.weight": w["transformer.wpe.weight"],
        "head.weight": w["transformer.wte.weight"],
        "final_norm.weight": w["transformer.ln_f.weight"],
        "final_norm.bias": w["transformer.ln_f.bias"],
    }
    parts = {
        "attention_norm": "ln_1",
        "attention.qkv": "attn.c_attn",
        "attention.projection": "attn.c_proj",
        "feed_forward_norm": "ln_2",
        "feed_forward.up": "mlp.c_fc",
        "feed_forward.down": "mlp.c_proj",
    }
    for layer in range(2):
        for mine, their in parts.items():
            weight = w[f"transformer.h.{layer}.{their}.weight"]
            # GPT-2 keeps its matrices as (inputs, outputs), the other way round than torch's Linear.
            ours[f"blocks.{layer}.{mine}.weight"] = weight.T if weight.ndim == 2 else weight
            ours[f"blocks.{layer}.{mine}.bias"] = w[f"transformer.h.{layer}.{their}.bias"]
    sizes = {"vocab_size": 90, "context_length": 16, "n_embd": 32, "n_layer": 2, "n_head": 4}
    check(theirs, {**PRESETS["gpt2"], **sizes}, ours)


@pytest.mark.parametrize("n_kv_head", [4, 2])
def test_llama_gives_the_logits_of_transformers(n_kv_head: int) -> None:
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=90,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=n_kv_head,
            max_position_embeddings=16,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
        )
    )
    w = randomise(theirs)
    ours = {
        "token_embedding.weight": w["model.embed_tokens.weight"],
        "final_norm.weight": w["model.norm.weight"],
        "head.weight": w["lm_head.weight"],
    }
    parts = {
        "attention_norm": "input_layernorm",
        "attention.projection": "self_attn.o_proj",
        "feed_forward_norm": "post_attention_layernorm",
        "feed_forward.gate": "mlp.gate_proj",
        "feed_forward.up": "mlp.up_proj",
        "feed_forward.down": "mlp.down_proj",
    }
    for layer in range(2):
        for mine, their in parts.items():
            ours[f"blocks.{layer}.{mine}.weight"] = w[f"model.layers.{layer}.{their}.weight"]
        qkv = [w[f"model.layers.{layer}.self_attn.{part}_proj.weight"] for part in "qkv"]
        ours[f"blocks.{layer}.attention.qkv.weight"] = torch.cat(qkv)
    sizes = {"vocab_size": 90, "context_length": 16, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_feed_forward": 48}
    check(theirs, {**PRESETS["mini-llama"], **sizes, "n_kv_head": n_kv_head}, ours)
