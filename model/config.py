"""The shape of a GPT as one frozen dataclass, and the presets as a table of differences."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from command_line import UserError, check_options, closest, flag_name, option


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides which parameters a GPT has and what it computes; raises UserError when it cannot be."""

    vocab_size: int = option(dataclasses.MISSING, "number of token ids, set by the tokenizer", at_least=1, flag=False)
    context_length: int = option(256, "tokens the model sees at once", at_least=1, at_most=2**24)
    n_layer: int = option(6, "transformer blocks", at_least=1, at_most=1024)
    n_head: int = option(6, "query heads of attention", at_least=1, at_most=4096)
    n_kv_head: int | None = option(None, "key/value heads; fewer than n_head shares them (default: n_head)", at_least=1)
    n_embd: int = option(384, "channels of the residual stream", at_least=1, at_most=2**20)
    head_width: int | None = option(None, "channels per head (default: n_embd / n_head)", at_least=1)
    n_feed_forward: int | None = option(
        None, "width of the feed-forward layer (default: 4 n_embd; swiglu: 8/3 n_embd, rounded up to 64)", at_least=1
    )
    feed_forward: Literal["gelu", "gelu_tanh", "swiglu", "relu_squared"] = option("gelu_tanh", "feed-forward variant")
    normalization: Literal["layernorm", "rmsnorm"] = option("layernorm", "normalization before each part")
    norm_eps: float = option(1e-5, "added to the variance before its root is taken", above=0, at_most=1)
    positions: Literal["learned", "rotary"] = option("learned", "how the model knows the order of tokens")
    rope_theta: float = option(10_000.0, "rotary: base of the wavelengths", above=1)
    rope_scaling: Literal["none", "linear", "llama3"] = option(
        "none", "rotary: how wavelengths were stretched for a longer context, see model/positions.py", flag=False
    )
    rope_scaling_factor: float = option(
        1.0, "rotary: times by which wavelengths were stretched", at_least=1, flag=False
    )
    rope_low_frequency_factor: float = option(
        1.0, "llama3: fewer turns than this in the original context are stretched", above=0, flag=False
    )
    rope_high_frequency_factor: float = option(
        4.0, "llama3: more turns than this in the original context stay as they are", above=0, flag=False
    )
    rope_original_context: int = option(8192, "llama3: context length before the stretching", at_least=1, flag=False)
    bias: bool = option(True, "bias in linear layers and layer norms (the head has none)")
    feed_forward_bias: bool | None = option(None, "bias in the feed-forward layers (default: bias)", flag=False)
    tied_head: bool = option(True, "the head shares its weights with the token embedding")
    qk_norm: bool = option(False, "normalise queries and keys before their product")
    bigram_rows: int = option(
        0, "rows of the hashed embedding of the last 2 tokens; 0: none", at_least=0, at_most=2**26
    )
    trigram_rows: int = option(
        0, "rows of the hashed embedding of the last 3 tokens; 0: none", at_least=0, at_most=2**26
    )
    initialization: Literal["gpt2", "zero_projection"] = option(
        "gpt2", "how weights start, see model/initialization.py"
    )
    dropout: float = option(0.0, "share of channels dropped while training", at_least=0, below=1)

    def __post_init__(self) -> None:
        check_options(self)
        if self.head_width is None and self.n_embd % self.n_head:
            nearest = max(1, round(self.n_embd / self.n_head)) * self.n_head
            raise UserError(
                f"--n-embd ({self.n_embd}) must be a multiple of --n-head ({self.n_head}); try --n-embd {nearest}"
            )
        if self.n_kv_head is not None and self.n_head % self.n_kv_head:
            divisors = [str(n) for n in range(1, self.n_head + 1) if self.n_head % n == 0]
            raise UserError(
                f"--n-head ({self.n_head}) must be a multiple of --n-kv-head ({self.n_kv_head}); "
                f"try --n-kv-head {' or '.join(divisors[-4:])}"
            )
        if self.positions == "rotary" and self.channels_per_head % 2:
            advice = "choose --n-embd and --n-head so that their ratio is even"
            if self.head_width is not None:
                advice = f"try --head-width {self.head_width + 1}"
            raise UserError(
                f"rotary positions turn channels in pairs, but a head has {self.channels_per_head}; {advice}, or "
                f"--positions learned"
            )
        if self.rope_scaling == "none" and self.rope_scaling_factor != 1:
            raise UserError(f"--rope-scaling-factor ({self.rope_scaling_factor}) needs --rope-scaling linear or llama3")
        if self.rope_scaling == "llama3" and self.rope_low_frequency_factor >= self.rope_high_frequency_factor:
            raise UserError(
                f"--rope-low-frequency-factor ({self.rope_low_frequency_factor}) must be below "
                f"--rope-high-frequency-factor ({self.rope_high_frequency_factor})"
            )

    @property
    def channels_per_head(self) -> int:
        """D: channels of one head."""
        return self.head_width or self.n_embd // self.n_head

    @property
    def key_value_heads(self) -> int:
        """K: key/value heads."""
        return self.n_kv_head or self.n_head

    @property
    def feed_forward_has_bias(self) -> bool:
        """Whether the feed-forward layers have biases."""
        return self.bias if self.feed_forward_bias is None else self.feed_forward_bias

    @property
    def feed_forward_width(self) -> int:
        """F: width of the feed-forward layer."""
        if self.n_feed_forward is not None:
            return self.n_feed_forward
        if self.feed_forward == "swiglu":
            # Three matrices in place of two: 8/3 keeps the parameters of 4 (Shazeer 2020, arxiv.org/abs/2002.05202).
            return -(-8 * self.n_embd // (3 * 64)) * 64
        return 4 * self.n_embd


_GPT2: dict[str, Any] = {"vocab_size": 50_257, "context_length": 1024}
_LLAMA: dict[str, Any] = {
    "normalization": "rmsnorm",
    "positions": "rotary",
    "feed_forward": "swiglu",
    "bias": False,
    "tied_head": False,
}
_OURS: dict[str, Any] = {
    "normalization": "rmsnorm",
    "positions": "rotary",
    "feed_forward": "relu_squared",
    "bias": False,
    "tied_head": False,
    "qk_norm": True,
    "initialization": "zero_projection",
    "dropout": 0.2,
}

DEFAULT_PRESET = "mini"
PRESETS: dict[str, dict[str, Any]] = {
    # Ours, for the best quality per minute of a CPU: seconds, minutes, an hour, more (benchmarks/results/).
    "nano": {**_OURS, "n_layer": 2, "n_head": 2, "n_embd": 64, "context_length": 64, "dropout": 0.1},
    "mini": {
        **_OURS,
        "n_layer": 3,
        "n_head": 2,
        "n_embd": 128,
        "context_length": 128,
        "dropout": 0.1,
        "bigram_rows": 2**14,
    },
    "small": {**_OURS, "n_layer": 4, "n_head": 4, "n_embd": 256, "context_length": 256},
    "medium": {**_OURS, "n_layer": 6, "n_head": 6, "n_embd": 384, "context_length": 256},
    # Llama-2 (Touvron et al. 2023, arxiv.org/abs/2307.09288), and small ones of the same parts.
    "nano-llama": {**_LLAMA, "n_layer": 2, "n_head": 2, "n_embd": 64, "context_length": 64},
    "mini-llama": {**_LLAMA, "n_layer": 3, "n_head": 2, "n_embd": 128, "context_length": 128},
    "small-llama": {**_LLAMA, "n_layer": 4, "n_head": 4, "n_embd": 256, "context_length": 256},
    "llama2-7b": {
        **_LLAMA,
        "vocab_size": 32_000,
        "context_length": 4096,
        "n_layer": 32,
        "n_head": 32,
        "n_embd": 4096,
        "n_feed_forward": 11_008,
    },
    # GPT-2 (Radford et al. 2019); the fields not named here are the defaults of ModelConfig.
    "gpt2": {**_GPT2, "n_layer": 12, "n_head": 12, "n_embd": 768},
    "gpt2-medium": {**_GPT2, "n_layer": 24, "n_head": 16, "n_embd": 1024},
    "gpt2-large": {**_GPT2, "n_layer": 36, "n_head": 20, "n_embd": 1280},
    "gpt2-xl": {**_GPT2, "n_layer": 48, "n_head": 25, "n_embd": 1600},
}


def preset_config(name: str, **overrides: Any) -> ModelConfig:
    """The config of a preset, with any field replaced; `vocab_size` is needed where the preset names none.

    Raises UserError for an unknown preset or an impossible combination.
    """
    if name not in PRESETS:
        raise UserError(f"--preset must be one of {', '.join(PRESETS)}, but is {name!r}{closest(name, list(PRESETS))}")
    values = {**PRESETS[name], **overrides}
    if "vocab_size" not in values:
        raise UserError(f"preset {name} needs {flag_name('vocab_size')[2:]}: its tokenizer decides it")
    return ModelConfig(**values)
