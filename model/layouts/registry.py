"""The families that models come from and go to, and whether one of ours has a place in them."""

from collections.abc import Mapping
from typing import Any

from command_line import UserError, closest
from model.config import ModelConfig
from model.layouts.base import Fields, Layout
from model.layouts.gpt2 import GPT2
from model.layouts.llama import LLAMA

LAYOUTS = {layout.name: layout for layout in (GPT2, LLAMA)}


def layout_for(config: ModelConfig) -> Layout:
    """The family that a config resembles most: its positions decide."""
    return GPT2 if config.positions == "learned" else LLAMA


def why_not_exportable(config: ModelConfig) -> list[str]:
    """What keeps a model from being opened by transformers and llama.cpp: one reason a part, none when nothing does."""
    layout = layout_for(config)
    reasons = [
        f"{name} {getattr(config, name)} (a {layout.name} model has {' or '.join(map(str, allowed))})"
        for name, allowed in layout.parts.items()
        if getattr(config, name) not in allowed
    ]
    if config.qk_norm:
        reasons.append(f"qk_norm (a {layout.name} model does not normalise queries and keys)")
    if config.bigram_rows or config.trigram_rows:
        reasons.append(f"n-gram embeddings (a {layout.name} model embeds single tokens)")
    if config.n_embd != config.n_head * config.channels_per_head and (layout is GPT2 or config.n_embd % config.n_head):
        reasons.append(f"head_width {config.channels_per_head} (a {layout.name} model divides n_embd among its heads)")
    if layout is GPT2 and config.key_value_heads != config.n_head:
        reasons.append("n_kv_head (in a gpt2 model every head has its own keys and values)")
    return reasons


def why_not_gguf(config: ModelConfig) -> list[str]:
    """What keeps a model that transformers opens from llama.cpp: one reason a part, none when nothing does."""
    if config.feed_forward == "gelu":
        return ["feed_forward gelu (llama.cpp has its tanh approximation, gelu_tanh)"]
    return []


def check_exportable(config: ModelConfig) -> None:
    """Raise UserError naming each part of a model that has no counterpart outside, and the presets that have."""
    reasons = why_not_exportable(config)
    if reasons:
        raise UserError(
            f"this model cannot be exported: {'; '.join(reasons)}; "
            "train one that can with --preset mini-llama (Llama parts) or --preset gpt2"
        )


def read_model_config(values: Mapping[str, Any], where: str) -> tuple[Layout, ModelConfig]:
    """The layout and our config of a config.json; raises UserError naming the field that is unknown or impossible."""
    name = values.get("model_type")
    layout = LAYOUTS.get(name) if isinstance(name, str) else None
    if layout is None:
        hint = closest(str(name), list(LAYOUTS))
        raise UserError(f"{where}: model_type must be one of {', '.join(LAYOUTS)}, but is {name!r}{hint}")
    architectures = values.get("architectures") or [layout.architecture]
    if architectures != [layout.architecture]:
        raise UserError(f"{where}: architectures must be [{layout.architecture!r}], but is {architectures!r}")
    fields = Fields(values, where)
    config = layout.read_config(fields)
    fields.finish()
    try:
        return layout, ModelConfig(**config)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
