"""What is different when training starts from a trained model: gentler, smaller steps, and adapters if asked for."""

from __future__ import annotations

import dataclasses

from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.gpt import GPT
from model.lora import add_adapters
from training.config import TrainConfig
from training.optimizers import DEFAULT_WEIGHT_DECAY, learning_rates

FINE_TUNING_RATE = 0.1
"""A trained model goes on at a tenth of the rates: larger steps would undo what it knows."""
ADAPTER_RATE = 0.25
"""Adapters start from nothing and hold little, so they go on at a quarter.

`nano`, trained for 500 steps on the bright English tales, then 120 steps of adapters of rank 8 with Muon (a fresh run's
rate is 0.02) on another text; validation loss in nats per token:

    rate                 0.001   0.002   0.005   0.01    0.02
    the gloomy tales     4.092   4.074   4.061   4.062   4.065
    tinyshakespeare      5.748   5.359   5.145   5.100   5.086

Higher rates win only where the new text is far from the old one, and the more a model knows, the more they undo.
"""
FINE_TUNING_BATCH_TOKENS = 2048
"""Tokens of an optimizer step: the batch that suits the first training of GPT-2 124M (65,536 tokens) is more than many
a text to fine-tune on holds, and takes a laptop minutes."""


def fine_tuning(config: TrainConfig, model_config: ModelConfig, world_size: int) -> TrainConfig:
    """The config with the lower rates, the mild decay and the small batch that suit, where none were given."""
    rate, embedding_rate = learning_rates(config)
    share = ADAPTER_RATE if config.lora_rank else FINE_TUNING_RATE
    unit = model_config.context_length * world_size
    return dataclasses.replace(
        config,
        weight_decay=DEFAULT_WEIGHT_DECAY if config.weight_decay is None else config.weight_decay,
        # What the new text does not mention is not to fade.
        embedding_weight_decay=config.embedding_weight_decay or 0.0,
        learning_rate=config.learning_rate or rate * share,
        embedding_learning_rate=config.embedding_learning_rate or embedding_rate * share,
        batch_tokens=config.batch_tokens or max(1, FINE_TUNING_BATCH_TOKENS // unit) * unit,
    )


def starting_model(
    model_config: ModelConfig, train_config: TrainConfig, initial: Checkpoint | None, *, resumed: bool
) -> GPT:
    """The model that a run begins with or goes on with: fresh, or the checkpoint's, with adapters if asked for.

    A step checkpoint holds merged weights, so that it is an ordinary model, and beside them, under `adapters`, the
    matrices as they were and their adapters: taking a product off again would not give the same bits.
    """
    model = GPT(model_config) if initial is None else initial.build_model()
    if train_config.lora_rank:
        add_adapters(model, train_config.lora_rank, train_config.lora_alpha, train_config.lora_matrices)
        if initial is not None and resumed:
            assert initial.training_state is not None
            model.load_state_dict({**initial.state_dict, **initial.training_state["adapters"]})
    return model.train()
