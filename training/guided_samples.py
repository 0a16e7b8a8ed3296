"""Samples that begin as guidance would have them and go on without it, for a second round of a discriminator.

At first it learns from what the language model writes by itself, but it is asked about texts that it has steered: those
it has hardly seen, and of a rare label few at all. From where guidance lets go, such a text is the language model's
again, and p(label | prefix) is the same wherever the prefix came from. So from there on its label is as honest as any
other, and the prior of the labels stays what it is. Learning where one's own decisions lead: Ross et al. 2011,
"DAgger", arxiv.org/abs/1011.0686.
"""

from __future__ import annotations

import random
from dataclasses import replace

from torch import Tensor

from generation.discriminators import DiscriminatorScorer, text_start
from generation.guidance import Guidance, Guide
from generation.logits_processors.base import Stage
from generation.logits_processors.row_history import n_new_tokens
from generation.text_generator import TextGenerator
from model.discriminator import NO_LABEL, Discriminator
from training.discriminator_config import DiscriminatorConfig
from training.labels import LabelledText, LabelledTexts
from training.own_samples import draw_samples, sample_tokens

STRENGTHS = (1.0, 2.0, 4.0)
"""Those with which people decode."""
PART = 64
"""Texts that are drawn side by side; guidance lets go of them at the same token."""


class Beginning:
    """Guidance of the first `n_tokens` tokens of a text."""

    stage: Stage = "guidance"

    def __init__(self, guidance: Guidance, n_tokens: int) -> None:
        self.name = f"beginning({guidance.name}, {n_tokens} tokens)"
        self._guidance = guidance
        self._n_tokens = n_tokens

    def __call__(self, token_ids: Tensor, logits: Tensor, prompt_lengths: Tensor) -> Tensor:
        """(B, V) → (B, V)."""
        if n_new_tokens(token_ids, prompt_lengths) >= self._n_tokens:
            return logits
        return self._guidance(token_ids, logits, prompt_lengths)


def with_guided_samples(
    texts: LabelledTexts, discriminator: Discriminator, config: DiscriminatorConfig, generator: TextGenerator
) -> LabelledTexts:
    """The same texts and `config.n_guided_samples` others, guided to each label the more often, the rarer it is.

    A tenth of them, as of the others, is for tuning; the report stays with texts that nothing has guided.
    """
    assert texts.label_samples is not None
    chance = random.Random(config.seed)
    rarity = [1 - share for share in texts.shares]
    drawn: list[LabelledText] = []
    for part, start in enumerate(range(0, config.n_guided_samples, PART)):
        label = chance.choices(range(len(rarity)), rarity)[0]
        scorer = DiscriminatorScorer(discriminator, label, text_start(generator.tokenizer), name=texts.labels[label])
        n_guided = chance.randint(1, max(1, config.sample_tokens - 1))
        beginning = Beginning(Guidance([Guide(scorer, chance.choice(STRENGTHS))]), n_guided)
        n_texts = min(PART, config.n_guided_samples - start)
        results = draw_samples(n_texts, config, generator, [beginning], config.seed + 1 + part)
        labels = texts.label_samples([result.prompt + result.text for result in results])
        for result, ids, found in zip(results, sample_tokens(results, generator), labels, strict=True):
            n_before = len(ids) - len(result.token_ids)
            if found != NO_LABEL:
                drawn.append(LabelledText(ids, found, min(n_before - 1 + n_guided, len(ids) - 1)))
    every = round(2 / config.validation_fraction)
    tuning = drawn[::every]
    training = [text for number, text in enumerate(drawn) if number % every]
    return replace(texts, training=[*texts.training, *training], tuning=[*texts.tuning, *tuning])
