"""Fine-tune a classifier of texts of another make, such as BERT, on beginnings of labelled texts."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from data.tokenizers.base import Tokenizer
from model.text_classifier import TextClassifier
from training.calibration import PrefixQuality, best_sharpness, quality
from training.discriminator_config import DiscriminatorConfig
from training.discriminator_trainer import DivergedDiscriminatorError
from training.labels import LabelledText, LabelledTexts, shuffled_batches

_PARTS = {"first quarter": 0.25, "first half": 0.5, "whole texts": 1.0}
"""Beginnings that are judged, as shares of the tokens of their texts."""


def train_text_classifier(
    classifier: TextClassifier,
    texts: LabelledTexts,
    tokenizer: Tokenizer,
    config: DiscriminatorConfig,
    say: Callable[[str], None],
) -> list[PrefixQuality]:
    """Train in place; the best epoch by the tuning texts stays, calibrated on them. Returns the held-out quality.

    A pass over a prefix costs as much as one over a whole text, so each epoch shows one prefix of every text, as long
    as chance will have it. `say` gets a line for each epoch. Raises DivergedDiscriminatorError.
    """
    optimizer = torch.optim.AdamW(
        classifier.model.parameters(), config.peak_learning_rate, weight_decay=config.weight_decay
    )
    n_steps = config.epochs * -(-len(texts.training) // config.batch_texts)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, n_steps)
    order, chance = torch.Generator().manual_seed(config.seed), random.Random(config.seed)
    best_loss, best_state = float("inf"), copy.deepcopy(classifier.model.state_dict())
    for epoch in range(config.epochs):
        classifier.model.train()
        for batch in shuffled_batches(texts.training, config.batch_texts, order):
            prefixes = [_beginning(text, tokenizer, chance.random()) for text in batch]
            losses = F.cross_entropy(classifier.class_logits(prefixes), _labels(batch, classifier), reduction="none")
            # A prefix of a text of T tokens is drawn once in T times; unweighted, that would tell of the future.
            weights = losses.new_tensor([len(text.token_ids) for text in batch])
            loss = (losses * weights).sum() / weights.sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(classifier.model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        logits, labels = _scored(classifier, texts.tuning, tokenizer)
        tuning_loss = F.cross_entropy(logits, labels).item()
        if not tuning_loss < float("inf"):
            raise DivergedDiscriminatorError(
                f"the loss is no number (NaN) in epoch {epoch + 1}; try a lower --learning-rate than "
                f"{config.peak_learning_rate:g}"
            )
        say(f"epoch {epoch + 1:>3} of {config.epochs}  tuning {tuning_loss:.3f}")
        if tuning_loss < best_loss:
            best_loss, best_state = tuning_loss, copy.deepcopy(classifier.model.state_dict())
    classifier.model.load_state_dict(best_state)
    classifier.sharpness = best_sharpness(*_scored(classifier, texts.tuning, tokenizer))
    return [
        quality(*_scored(classifier, texts.held_out, tokenizer, {name: share}), name) for name, share in _PARTS.items()
    ]


@torch.inference_mode()
def _scored(
    classifier: TextClassifier, texts: Sequence[LabelledText], tokenizer: Tokenizer, parts: dict[str, float] = _PARTS
) -> tuple[Tensor, Tensor]:
    """Class logits (N, L) and labels (N,) of the given beginnings of all texts."""
    classifier.model.eval()
    logits = [
        classifier.class_logits([_beginning(text, tokenizer, share) for text in texts]) for share in parts.values()
    ]
    return torch.cat(logits), _labels(texts, classifier).repeat(len(parts))


def _beginning(text: LabelledText, tokenizer: Tokenizer, share: float) -> str:
    """The first tokens of a text, at least one, as characters."""
    special = {tokenizer.end_of_text, tokenizer.begin_of_text}
    token_ids = [token for token in text.token_ids if token not in special]
    return tokenizer.decode(token_ids[: max(1, round(share * len(token_ids)))])


def _labels(texts: Sequence[LabelledText], classifier: TextClassifier) -> Tensor:
    device = next(classifier.model.parameters()).device
    return torch.tensor([text.label for text in texts], device=device)
