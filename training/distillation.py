"""Teach a language model's hidden states to answer what a discriminator would: the head of the fast mode.

The discriminator's opinion of every prefix says more than the label of the text (Hinton et al. 2015,
arxiv.org/abs/1503.02531). Neither the language model nor the discriminator moves.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from model.discriminator import Discriminator
from model.gpt import GPT
from model.next_token_head import NextTokenHead, prefix_features
from training.calibration import PrefixQuality, best_sharpness, pad_texts, quality, score_prefixes
from training.labels import LabelledText, LabelledTexts, shuffled_batches

STEPS, LEARNING_RATE, WEIGHT_DECAY = 200, 1e-2, 0.01
"""However many texts there are: the head is small, and its teacher answers at every prefix."""


def distil_next_token_head(
    discriminator: Discriminator,
    language_model: GPT,
    texts: LabelledTexts,
    rank: int,
    batch_texts: int,
    seed: int,
    say: Callable[[str], None],
) -> tuple[NextTokenHead, PrefixQuality]:
    """A head of this rank for this language model, calibrated on the tuning texts, and its quality on the held-out."""
    config, device = language_model.config, language_model.token_embedding.weight.device
    texts = texts.in_windows(min(config.context_length, discriminator.config.context_length))
    head = NextTokenHead(2 * config.n_embd, discriminator.config.vocab_size, discriminator.n_labels, rank).to(device)
    optimizer = torch.optim.AdamW(head.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    order = torch.Generator().manual_seed(seed)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    epochs = (shuffled_batches(texts.training, batch_texts, order) for _ in itertools.count())
    losses = []
    for batch in itertools.islice(itertools.chain.from_iterable(epochs), STEPS):
        optimizer.zero_grad()
        loss = distillation_loss(head, discriminator, language_model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    say(f"fast mode   loss {statistics.mean(losses[:10]):.3f} → {statistics.mean(losses[-10:]):.3f}")

    def guess(token_ids: Tensor) -> Tensor:
        return next_token_logits(head, language_model, token_ids)

    logits, labels, _ = score_prefixes(guess, texts.tuning, device=device, first=1)
    head.sharpen(best_sharpness(logits, labels))
    logits, labels, _ = score_prefixes(guess, texts.held_out, device=device, first=1)
    return head, quality(logits, labels, "all, fast")


def next_token_logits(head: NextTokenHead, language_model: GPT, token_ids: Tensor) -> Tensor:
    """What the head guesses of each prefix from the one before it: (B, T) → (B, T − 1, L)."""
    with torch.no_grad():
        hidden = language_model.hidden_states(token_ids[:, :-1]).to(head.prefix.weight.dtype)  # (B, T − 1, C)
        lengths = torch.arange(1, token_ids.shape[1], device=hidden.device).to(hidden.dtype)
        features = prefix_features(hidden, hidden.cumsum(dim=1), lengths.expand(hidden.shape[:2]))
    return head(features, token_ids[:, 1:, None]).squeeze(2)  # type: ignore[no-any-return]


def distillation_loss(
    head: NextTokenHead, discriminator: Discriminator, language_model: GPT, texts: Sequence[LabelledText]
) -> Tensor:
    """Cross-entropy of the head's guesses and the discriminator's answers one token later, in nats."""
    token_ids, _ = pad_texts(texts, language_model.token_embedding.weight.device)
    with torch.no_grad():
        answers = discriminator(token_ids)[:, 1:].float().softmax(-1)  # (B, T − 1, L)
    guessed = next_token_logits(head, language_model, token_ids)
    lengths = torch.tensor([len(text.token_ids) for text in texts], device=token_ids.device)
    counted = torch.arange(1, token_ids.shape[1], device=token_ids.device) < lengths.unsqueeze(1)  # (B, T − 1)
    return F.cross_entropy(guessed[counted], answers[counted])
