"""What training a model costs before it is built: parameters, floating-point operations and memory, in closed form.

The preflight of a run shows parameters and memory; `benchmarks/gpu_gpt2.py` divides by the operations. Everything is
counted for the code of this room, and compared with it by the tests.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from model.config import ModelConfig

Precision = Literal["fp32", "bf16"]

_BYTES: dict[str, int] = {"fp32": 4, "bf16": 2}

# What the system's memory grows by for a byte of short-lived tensors: an allocator cannot reuse every gap. Measured
# 1.3 to 1.5 with glibc (tests/model/test_cost.py compares the sum with a process's true peak).
_ALLOCATOR_OVERHEAD = 1.4


# ---- parameters --------------------------------------------------------------------------------------------------


def parameters_by_part(config: ModelConfig) -> dict[str, int]:
    """Trainable numbers of each part of a model; a tied head has none of its own."""
    C, L = config.n_embd, config.n_layer
    gains = C * (2 if config.normalization == "layernorm" and config.bias else 1)
    return {
        "token_embedding": config.vocab_size * C,
        "position_embedding": config.context_length * C if config.positions == "learned" else 0,
        "ngram_embedding": (config.bigram_rows + config.trigram_rows) * C,
        "attention": L * (_attention_matrices(config) + _attention_biases(config)),
        "feed_forward": L * (_feed_forward_matrices(config) + _feed_forward_biases(config)),
        "normalization": (2 * L + 1) * gains,
        "head": 0 if config.tied_head else config.vocab_size * C,
    }


def count_parameters(config: ModelConfig) -> int:
    """Trainable numbers of a model, equal to the sum over `GPT(config).parameters()`."""
    return sum(parameters_by_part(config).values())


def block_matrices(config: ModelConfig) -> int:
    """Numbers in the weight matrices of all blocks: what Muon moves, and what every token is multiplied by."""
    return config.n_layer * (_attention_matrices(config) + _feed_forward_matrices(config))


def adapter_parameters(config: ModelConfig, rank: int, matrices: str) -> int:
    """Trainable numbers of the low-rank adapters of `model/lora.py`: rank times both sides of every adapted matrix."""
    C = config.n_embd
    sides = {
        "attention": C + _qkv_width(config) + config.n_head * config.channels_per_head + C,
        "feed_forward": (3 if config.feed_forward == "swiglu" else 2) * (C + config.feed_forward_width),
    }
    return config.n_layer * rank * sum(sides[part] for part in sides if matrices in ("all", part))


def _qkv_width(config: ModelConfig) -> int:
    return (config.n_head + 2 * config.key_value_heads) * config.channels_per_head


def _attention_matrices(config: ModelConfig) -> int:
    return config.n_embd * (_qkv_width(config) + config.n_head * config.channels_per_head)


def _attention_biases(config: ModelConfig) -> int:
    return _qkv_width(config) + config.n_embd if config.bias else 0


def _feed_forward_matrices(config: ModelConfig) -> int:
    return (3 if config.feed_forward == "swiglu" else 2) * config.n_embd * config.feed_forward_width


def _feed_forward_biases(config: ModelConfig) -> int:
    if not config.feed_forward_has_bias:
        return 0
    return (2 if config.feed_forward == "swiglu" else 1) * config.feed_forward_width + config.n_embd


# ---- floating-point operations -----------------------------------------------------------------------------------


def flops_per_token(config: ModelConfig, context: int, *, training: bool) -> int:
    """Floating-point operations of the matrix products for one token that attends to `context` positions.

    Two for every weight it is multiplied by and four for every channel of every position attended to; training adds
    twice as much for the backward pass: 6 N + 12 L H D T (Kaplan et al. 2020, arxiv.org/abs/2001.08361; Chowdhery et
    al. 2022, "PaLM", appendix B, arxiv.org/abs/2204.02311). As there, the masked half of attention counts too.
    """
    weights = block_matrices(config) + config.vocab_size * config.n_embd
    attention = config.n_layer * config.n_head * config.channels_per_head * context
    return (6 if training else 2) * weights + (12 if training else 4) * attention


# ---- memory ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of a training step at its peak, by what they hold."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """Bytes in all, without the program itself (torch and its libraries take about 300 MB)."""
        return sum(dataclasses.astuple(self))


def training_memory(
    config: ModelConfig,
    micro_batch_size: int,
    context: int,
    optimizer: Literal["muon", "adamw"] = "muon",
    precision: Precision = "fp32",
    *,
    device: str = "cpu",
    n_adapters: int = 0,
) -> TrainingMemory:
    """Peak bytes of training on one device without compilation; weights, gradients and optimizer stay in fp32.

    With `n_adapters` numbers in low-rank adapters, only these are trained.
    """
    n_parameters = count_parameters(config)
    n_trained = n_adapters or n_parameters
    n_muon = (n_adapters or block_matrices(config)) if optimizer == "muon" else 0
    tokens = micro_batch_size * context
    kept = tokens * _kept_per_token(config, context, precision, device)
    if n_adapters:  # the product of an adapter, until it is added to that of its frozen matrix
        kept += tokens * _BYTES[precision] * max(_qkv_width(config), config.feed_forward_width)
    # Autocast keeps a bf16 copy of every matrix until the backward pass has used it.
    copies = 2 * (block_matrices(config) + config.vocab_size * config.n_embd) if precision == "bf16" else 0
    # When the optimizer works, the activations are gone: what counts is the larger of the two.
    passing = max(kept + copies + _loss_buffers(config, tokens, is_frozen=n_adapters > 0), _muon_buffers(n_muon))
    return TrainingMemory(
        weights=4 * (n_parameters + n_adapters),
        gradients=4 * n_trained,
        optimizer=8 * (n_trained - n_muon) + 4 * n_muon,
        activations=int(passing * _ALLOCATOR_OVERHEAD),
    )


def _kept_per_token(config: ModelConfig, context: int, precision: Precision, device: str) -> int:
    """Bytes a token leaves behind for the backward pass: what the layers save, added up in their order.

    The residual stream and what a norm keeps stay in fp32; with bf16, what enters a matrix product is a bf16 copy.
    """
    C, size = config.n_embd, _BYTES[precision]
    # An RMSNorm keeps its input and the normalised input, a LayerNorm only the former.
    norm = 4 * C * (2 if config.normalization == "rmsnorm" else 1)
    n_wide = 4 if config.feed_forward == "swiglu" else 2
    feed_forward = size * (C + n_wide * config.feed_forward_width)
    block = 2 * norm + size * C + _kept_by_attention(config, context, precision, device) + feed_forward
    # 8 bytes of token id, and 8 more for each n-gram's row.
    ids = 8 * (1 + bool(config.bigram_rows) + bool(config.trigram_rows))
    return ids + config.n_layer * block + norm


def _kept_by_attention(config: ModelConfig, context: int, precision: Precision, device: str) -> int:
    """Bytes a token leaves behind between the fused projection and the output projection."""
    size, D = _BYTES[precision], config.channels_per_head
    mixed = size * config.n_head * D
    heads = (config.n_head + config.key_value_heads) * D
    if precision == "bf16" and device == "cpu":
        # Plain products (model/attention.py): scaled queries, keys, values, weights, all in bf16.
        kept = 2 * config.n_head * (3 * D + context)
        return kept + mixed + (4 * heads if config.qk_norm else 0)
    # The values are a view of the fused projection's output and keep the whole of it.
    changed = size * heads if config.positions == "rotary" or config.qk_norm else 0
    return size * _qkv_width(config) + changed + mixed + 4 * config.n_head


def _loss_buffers(config: ModelConfig, tokens: int, *, is_frozen: bool) -> int:
    """Bytes of the final hidden states, their gradient, three chunks of logits, the head's unscaled gradient."""
    chunk = min(tokens, max(16, 2**22 // config.vocab_size)) * config.vocab_size
    head_gradient = 0 if is_frozen else config.vocab_size * config.n_embd
    return 4 * (2 * tokens * config.n_embd + 3 * chunk + head_gradient)


def _muon_buffers(n_muon: int) -> int:
    """Bytes of the matrices that Muon orthogonalises at once (training/muon.py), in four fp32 copies."""
    return 4 * 4 * min(n_muon, 2**24)
