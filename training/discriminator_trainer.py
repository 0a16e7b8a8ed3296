"""Train a discriminator on every prefix of labelled texts, keep its best epoch, calibrate and judge it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from command_line import EXIT_DIVERGED, UserError
from data.tokenizers.base import Tokenizer
from data.tokenizers.registry import tokenizer_from_state, tokenizer_hash
from model.checkpoint import load_checkpoint
from model.config import preset_config
from model.discriminator import NO_LABEL, Discriminator
from model.gpt import GPT
from training.calibration import (
    PrefixQuality,
    best_sharpness,
    pad_texts,
    prefix_qualities,
    quality,
    score_prefixes,
)
from training.config import TrainConfig
from training.discriminator_config import DiscriminatorConfig
from training.labels import LabelledText, LabelledTexts, shuffled_batches
from training.optimizers import build_optimizer
from training.schedules import learning_rate_factor

AVERAGING_RATE = 0.02
"""Share of the newest weights in their running average, which spans about 50 steps. Few texts make noisy steps, and
the average answers with far more honest probabilities (Izmailov et al. 2018, arxiv.org/abs/1803.05407)."""


class DivergedDiscriminatorError(UserError):
    """The loss is no number any more."""

    exit_code = EXIT_DIVERGED


@dataclass(frozen=True)
class HeldOutQuality:
    """What the held-out texts say, after calibration on others."""

    whole_texts: PrefixQuality
    all_prefixes: PrefixQuality
    by_length: list[PrefixQuality]
    best_epoch: int
    sharpness: float
    """Factor of the class logits that calibration chose; 1 leaves them as they are."""


def load_body(path: Path, tokenizer: Tokenizer) -> GPT:
    """The language model of a checkpoint; raises UserError when it knows other tokens than `tokenizer`."""
    checkpoint = load_checkpoint(path)
    own = tokenizer_from_state(checkpoint.tokenizer)
    if tokenizer_hash(own) != tokenizer_hash(tokenizer):
        raise UserError(
            f"--init {path} has another tokenizer ({own.name}, {own.vocab_size} tokens) than the language model to be "
            f"guided ({tokenizer.name}, {tokenizer.vocab_size} tokens); name a model with the same one"
        )
    return checkpoint.build_model()


def build_discriminator(
    config: DiscriminatorConfig, vocab_size: int, n_labels: int, language_model: GPT | None
) -> Discriminator:
    """A small fresh network, or a copy of the language model when there is one."""
    if language_model is not None:
        return Discriminator.from_language_model(language_model, n_labels, config.dropout)
    # Learned positions: what decides may stand anywhere, or at a certain token, and both are easier to see with them.
    body = preset_config(
        "nano",
        positions="learned",
        vocab_size=vocab_size,
        context_length=config.context_length,
        n_layer=config.n_layer,
        n_head=config.n_head,
        n_embd=config.n_embd,
        dropout=config.dropout,
    )
    return Discriminator(body, n_labels)


def train_discriminator(
    discriminator: Discriminator,
    texts: LabelledTexts,
    config: DiscriminatorConfig,
    say: Callable[[str], None],
) -> HeldOutQuality:
    """Train in place; the best epoch by the loss on the tuning texts stays. `say` gets a line for each epoch.

    Raises DivergedDiscriminatorError.
    """
    rate = config.peak_learning_rate
    settings = TrainConfig(
        learning_rate=rate, embedding_learning_rate=rate / 4, weight_decay=config.weight_decay, seed=config.seed
    )
    texts = texts.in_windows(discriminator.config.context_length)
    optimizer = build_optimizer(discriminator, settings)
    order = torch.Generator().manual_seed(config.seed)
    n_batches = -(-len(texts.training) // config.batch_texts)
    averaged = copy.deepcopy(discriminator).eval()
    best_loss, best_epoch, best_state = float("inf"), 0, _copy_state(averaged)
    step = 0
    for epoch in range(config.epochs):
        discriminator.train()
        # At first nothing but the labels can say what there is to learn.
        trace = 1 - (1 - config.last_trace) * epoch / max(1, config.epochs - 1)
        total = 0.0
        for batch in shuffled_batches(texts.training, config.batch_texts, order):
            optimizer.set_learning_rate_factor(learning_rate_factor(step, config.epochs * n_batches, settings))
            optimizer.zero_grad()
            loss = training_loss(discriminator, batch, config.noise, averaged, trace)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(discriminator.parameters(), settings.gradient_clip)
            optimizer.step()
            step += 1
            _average(averaged, discriminator, max(AVERAGING_RATE, 1 / step))
            total += loss.item() / n_batches
        tuning_loss, accuracy = _judge(averaged, texts.tuning)
        if not tuning_loss < float("inf"):
            raise DivergedDiscriminatorError(
                f"the loss is no number (NaN) in epoch {epoch + 1}; try a lower --learning-rate than {rate:g}"
            )
        say(
            f"epoch {epoch + 1:>3} of {config.epochs}  loss {total:.3f}  tuning {tuning_loss:.3f}, {accuracy:.1%} right"
        )
        if tuning_loss < best_loss:
            best_loss, best_epoch, best_state = tuning_loss, epoch + 1, _copy_state(averaged)
    discriminator.load_state_dict(best_state)
    return _finish(discriminator.eval(), texts, best_epoch)


def training_loss(
    discriminator: Discriminator,
    texts: Sequence[LabelledText],
    token_noise: float = 0.0,
    teacher: Discriminator | None = None,
    trace: float = 1.0,
) -> Tensor:
    """Cross-entropy in nats at every prefix, of the label of its text or, with a teacher, of `expected_labels`.

    A share `token_noise` of the tokens is replaced by random ones, so that no text can be learned by heart.
    """
    device = discriminator.token_embedding.weight.device
    token_ids, labels = pad_texts(texts, device)
    if token_noise:
        replaced = torch.rand(token_ids.shape, device=device) < token_noise
        replaced[:, 0] = False  # the start token stands before every text
        token_ids = torch.where(replaced, torch.randint_like(token_ids, discriminator.config.vocab_size), token_ids)
    class_logits = discriminator(token_ids)  # (B, T, L)
    targets = F.one_hot(labels.clamp(min=0), discriminator.n_labels).to(class_logits.dtype)  # (B, T, L)
    if teacher is not None and trace < 1:
        with torch.no_grad():
            targets = expected_labels(teacher(token_ids).softmax(dim=-1), targets, labels != NO_LABEL, trace)
    losses = F.cross_entropy(class_logits.transpose(1, 2), targets.transpose(1, 2), reduction="none")  # (B, T)
    weights = prefix_weights(labels)
    return (losses * weights).sum() / weights.sum()


def expected_labels(answers: Tensor, labels: Tensor, is_text: Tensor, trace: float) -> Tensor:
    """What each prefix shall answer, judged by the answers to longer ones: three times (B, T, L), `is_text` (B, T).

    p(label | prefix) is the mean of p(label | prefix + x) over the tokens x that may come next. So an answer given one
    token later is as right a target on average as the label of the whole text, and much less noisy: a small set of
    texts has to be learned by heart to foretell labels from first words. The target is the answer one token later by a
    share of 1 − trace, by the rest the target there; only the last prefix of a text learns its label as it is. TD(λ):
    Sutton 1988, "Learning to predict by the methods of temporal differences", doi.org/10.1007/BF00115009.
    """
    targets = labels.clone()
    for t in range(labels.shape[1] - 2, -1, -1):
        mixed = torch.lerp(answers[:, t + 1], targets[:, t + 1], trace)
        targets[:, t] = torch.where(is_text[:, t + 1, None], mixed, labels[:, t])
    return targets


def prefix_weights(labels: Tensor) -> Tensor:
    """How much each prefix counts, (B, T) → (B, T): 1 / √(its tokens), 0 for padding.

    Neighbouring long prefixes say nearly the same, so they count less. A weight may depend on the prefix, but never on
    the whole text: with 1 / (tokens of the text) it would tell of the future, and p(label | prefix) would be off.
    """
    lengths = torch.arange(1, labels.shape[1] + 1, device=labels.device)
    return (labels != NO_LABEL) * lengths.rsqrt()


@torch.no_grad()
def _average(averaged: Discriminator, newest: Discriminator, rate: float) -> None:
    for mean, parameter in zip(averaged.parameters(), newest.parameters(), strict=True):
        mean.lerp_(parameter, rate)


def _copy_state(discriminator: Discriminator) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in discriminator.state_dict().items()}


def _judge(discriminator: Discriminator, texts: Sequence[LabelledText]) -> tuple[float, float]:
    """Loss in nats, that of all prefixes and that of whole texts in equal parts, and accuracy over all prefixes.

    What decides may stand in one token: what is gained there is little among all prefixes, but steers the most.
    """
    logits, labels, _ = _score(discriminator, texts)
    whole = _whole_texts(texts)
    loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits[whole], labels[whole])) / 2
    return loss.item(), quality(logits, labels, "all").accuracy


def _whole_texts(texts: Sequence[LabelledText]) -> Tensor:
    """The places of the whole texts among all prefixes, which come text by text, each from the shortest on."""
    return torch.tensor([len(text.token_ids) - text.first for text in texts]).cumsum(0) - 1


def _score(discriminator: Discriminator, texts: Sequence[LabelledText]) -> tuple[Tensor, Tensor, Tensor]:
    return score_prefixes(discriminator, texts, device=discriminator.token_embedding.weight.device)


def _finish(discriminator: Discriminator, texts: LabelledTexts, best_epoch: int) -> HeldOutQuality:
    """Calibrate on the tuning texts, then judge on those that nothing was chosen by."""
    logits, labels, _ = _score(discriminator, texts.tuning)
    sharpness = best_sharpness(logits, labels)
    discriminator.sharpen(sharpness)
    logits, labels, lengths = _score(discriminator, texts.held_out)
    whole = _whole_texts(texts.held_out)
    return HeldOutQuality(
        whole_texts=quality(logits[whole], labels[whole], "whole texts"),
        all_prefixes=quality(logits, labels, "all"),
        by_length=prefix_qualities(logits, labels, lengths),
        best_epoch=best_epoch,
        sharpness=sharpness,
    )
