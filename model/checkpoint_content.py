"""Does what a checkpoint says about itself make sense: entries, model config, names and shapes of the weights?

`checkpoint_reader` has made sure that every tensor lies within the file; here the card is compared with itself.
"""

from __future__ import annotations

import math
from typing import Any

from command_line import config_from_dict
from model.checkpoint_format import Card, CheckpointError, TensorEntry
from model.checkpoint_reader import check_names, checked, holds_tensor
from model.config import ModelConfig


def check_content(card: Card, weights: bool = True) -> ModelConfig:
    """The model config of a card, after checking everything in the card against it.

    `weights=False` skips the one check that needs PyTorch: the names and shapes of the weights.
    """
    content = card.content
    try:
        check_names(content, {"kind", "model_config", "state_dict", "tokenizer", "provenance", "training_state"})
        kind = checked(content, "kind", str)
        checked(content, "provenance", dict)
        checked(content, "training_state", dict, type(None))
        checked(checked(content, "tokenizer", dict), "kind", str)
        config = _model_config(checked(content, "model_config", dict))
        state_dict = checked(content, "state_dict", dict)
        if not all(isinstance(entry, TensorEntry) for entry in state_dict.values()):
            raise ValueError("its state dict holds something else than tensors")
        for name in ("tokenizer", "provenance"):
            if holds_tensor(content[name]):
                raise ValueError(f"its {name} holds a tensor")
        if content["tokenizer"].get("vocab_size", config.vocab_size) != config.vocab_size:
            raise ValueError(f"its tokenizer's vocabulary does not have the {config.vocab_size} entries of its model")
        if kind == "gpt" and weights:
            _check_weights(state_dict, config)
    except (ValueError, OverflowError) as error:
        raise CheckpointError(f"{card.path} contradicts itself: {error}") from None
    return config


def _model_config(values: dict[Any, Any]) -> ModelConfig:
    if not all(isinstance(name, str) for name in values):
        raise ValueError("its model config is malformed")
    return config_from_dict(ModelConfig, values)  # a field added later has its default: older files stay readable


def _check_weights(state_dict: dict[str, TensorEntry], config: ModelConfig) -> None:
    """Raise ValueError unless names, shapes and types are exactly those of a GPT of this config."""
    from model.gpt import GPT
    from model.initialization import outlined

    # Every one of these widths is a side of some weight; checked first, so that no absurd model is even outlined.
    n_elements = sum(math.prod(entry.shape) for entry in state_dict.values())
    widths = (config.vocab_size, config.n_embd, config.head_width, config.n_feed_forward)
    if config.n_layer > len(state_dict) or any(
        width > n_elements for width in (*widths, config.bigram_rows, config.trigram_rows) if width
    ):
        raise ValueError("its model config asks for more weights than it holds")
    with outlined():
        expected = GPT(config).state_dict()
    different = set(state_dict) ^ set(expected)
    if different:
        verb = "misses" if min(different) in expected else "has the unknown"
        raise ValueError(f"its state dict {verb} weight {min(different)!r}")
    for name, weight in expected.items():
        if state_dict[name].shape != tuple(weight.shape):
            raise ValueError(
                f"weight {name} has shape {list(state_dict[name].shape)}, its model config asks for "
                f"{list(weight.shape)}"
            )
    dtypes = {entry.dtype for entry in state_dict.values()}
    if len(dtypes) != 1 or not dtypes <= {"float64", "float32", "bfloat16", "float16"}:
        raise ValueError(f"its weights are of type {', '.join(sorted(dtypes))} instead of one floating-point type")
    if config.tied_head and state_dict["head.weight"] is not state_dict["token_embedding.weight"]:
        raise ValueError("its head is not tied to its token embedding, as its model config asks")
