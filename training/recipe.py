"""How hard a fresh run is kept from learning its text by heart, where nothing was named: by how often it reads it."""

from __future__ import annotations

import dataclasses

from training.config import TrainConfig
from training.optimizers import DEFAULT_WEIGHT_DECAY

_MANY_EPOCHS = 4.0
_DECAY_OF_AN_EPOCH = 0.1
_ROOM_TO_MEMORISE = 4.0
"""Numbers in the matrices of the blocks for each token of the text."""
_EMBEDDINGS_TO_MATRICES = 4.0
"""Muon's rate is four times that of AdamW: with this, both take the same share off a weight in a step."""


def with_decays(config: TrainConfig, epochs: float) -> TrainConfig:
    """The config with the decays of a fresh run, where none were given."""
    matrices, embeddings = config.weight_decay, config.embedding_weight_decay
    return dataclasses.replace(
        config,
        weight_decay=weight_decay_for(epochs) if matrices is None else matrices,
        embedding_weight_decay=embedding_decay_for(epochs) if embeddings is None else embeddings,
    )


def weight_decay_for(epochs: float) -> float:
    """The weight decay of the matrices in a fresh run that reads its corpus so many times.

    A text that is read many times over wants more decay than one that is read once (Kim et al. 2025, "Pre-training
    under infinite compute", arxiv.org/abs/2509.14786). `small`, over ten epochs of the English tales, wanted even more:
    1.509, 1.485 and 1.475 bits per byte with 0.1, 0.4 and 1. That was while embeddings did not decay; with them, `mini`
    was better with 0.4 than with 1 (1.461, 1.469), and `small` has not been tried.
    """
    return max(DEFAULT_WEIGHT_DECAY, _DECAY_OF_AN_EPOCH * min(epochs, _MANY_EPOCHS))


def embedding_decay_for(epochs: float) -> float:
    """The weight decay of embeddings and head in such a run: they are what learns a text by heart first.

    `mini` after eight epochs of the English tales ended at 1.457 bits per byte with 1.6, and at 1.487 with none and
    a decay of 1 for the matrices; within a quarter of an epoch of another text, 0.4 was 0.3 % worse than none.
    """
    return _EMBEDDINGS_TO_MATRICES * _DECAY_OF_AN_EPOCH * min(epochs, _MANY_EPOCHS)


def dropout_for(epochs: float, numbers_per_token: float, of_preset: float) -> float:
    """The dropout of a fresh run: the preset's where a large model reads a small text many times, else none.

    Bits per byte without dropout and with that of the preset, by the numbers in its blocks for each token of the text
    (a run each, not all with the same decays):

        `small`, the English tales, less than three epochs         15    1.569   1.633 (0.2)
        `small`, a quarter of the tales, nine epochs               52    1.832   1.810 (0.2)
        `nano`, a short story, 33 epochs                            5    2.566   2.419 (0.1)
        `mini`, the English tales, eight epochs                     3    1.469   1.483 (0.1)
        `nano`, the English tales, six epochs                     0.5    1.559   1.596 (0.1)
    """
    return of_preset if epochs > _MANY_EPOCHS and numbers_per_token > _ROOM_TO_MEMORISE else 0.0
