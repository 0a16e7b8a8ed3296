"""Samples of the language model as texts for a discriminator, labelled by the user's rule or by a bag of words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from command_line import UserError
from generation.config import SamplingConfig
from generation.discriminators import text_start
from generation.logits_processors.base import LogitsProcessor
from generation.text_generator import Result, TextGenerator
from model.discriminator import NO_LABEL
from training.bag_of_words import BagOfWords
from training.calibration import best_sharpness
from training.discriminator_config import DiscriminatorConfig
from training.labels import LabelledText, LabelledTexts, load_rule, split_texts


def label_by_rule(config: DiscriminatorConfig, generator: TextGenerator) -> LabelledTexts:
    """Samples of the language model, labelled by the rule that `--rule` names; raises UserError.

    They are drawn from the very distribution that guidance will change, and their shares are its true prior.
    """
    assert config.rule is not None
    rule = load_rule(config.rule)
    results = draw_samples(config.samples, config, generator)
    return label_by(rule, results, generator, config.validation_fraction)


def draw_samples(
    n_samples: int,
    config: DiscriminatorConfig,
    generator: TextGenerator,
    processors: Sequence[LogitsProcessor] = (),
    seed: int | None = None,
) -> list[Result]:
    """Samples of the language model as the config describes them."""
    sampling = SamplingConfig(
        max_new_tokens=config.sample_tokens,
        num_samples=n_samples,
        temperature=config.sample_temperature,
        seed=config.seed if seed is None else seed,
    )
    return generator.generate(config.sample_prompt, sampling, processors=processors)


def sample_tokens(results: Sequence[Result], generator: TextGenerator) -> list[list[int]]:
    """The tokens of finished samples as a discriminator reads them: start token, prompt, what was drawn."""
    start = text_start(generator.tokenizer)
    prompts = {result.prompt: generator.encode_prompt(result.prompt) for result in results}
    return [[start, *(token for token in prompts[r.prompt] if token != start), *r.token_ids] for r in results]


def with_own_samples(texts: LabelledTexts, config: DiscriminatorConfig, generator: TextGenerator) -> LabelledTexts:
    """The same texts and, to learn from beside them, `--own-samples` samples that a bag of words labels.

    The bag of words needs few texts, but sees only whole ones; the samples pass on what it knows to a network that
    sees prefixes, in the very texts that guidance will change (learning from one's own labels: Scudder 1965,
    doi.org/10.1109/TIT.1965.1053799), and their shares are the true prior there. It learns from the training texts
    alone, so that the report stays honest, and from their beginnings too, for samples end early. A label is drawn with
    the probability that the bag of words gives it, honest on the tuning texts: what it doubts, it teaches to doubt.
    """
    tokenizer = generator.tokenizer

    def forms(part: Sequence[LabelledText]) -> tuple[list[str], list[int]]:
        widths = (None, config.sample_tokens)
        beginnings = [tokenizer.decode(text.token_ids[1:][:width]) for text in part for width in widths]
        return beginnings, [text.label for text in part for _ in widths]

    teacher = BagOfWords(*forms(texts.training), len(texts.labels))
    tuning, tuning_labels = forms(texts.tuning)
    sharpness = best_sharpness(teacher.logits(tuning), torch.tensor(tuning_labels))
    chance = torch.Generator().manual_seed(config.seed)

    def labels_of(samples: Sequence[str]) -> list[int]:
        probabilities = (sharpness * teacher.logits(samples)).softmax(dim=1)
        return torch.multinomial(probabilities, 1, generator=chance).squeeze(1).tolist()

    results = draw_samples(config.own_samples, config, generator)
    labels = labels_of([result.prompt + result.text for result in results])
    own = [LabelledText(*pair) for pair in zip(sample_tokens(results, generator), labels, strict=True)]
    return replace(texts, training=[*texts.training, *own], label_samples=labels_of)


def label_by(
    rule: Callable[[str], str], results: Sequence[Result], generator: TextGenerator, validation_fraction: float
) -> LabelledTexts:
    """Finished samples with the labels that a rule gives to their whole texts; raises UserError."""
    found = [rule(result.prompt + result.text) for result in results]
    labels = sorted(set(found), key=lambda label: (label.startswith("not-"), label))
    if len(labels) < 2:
        raise UserError(
            f"the rule gives all {len(results)} samples the label {labels[0]!r}, so there is nothing to learn; draw "
            "more --samples, or longer ones with --sample-tokens"
        )
    numbers = {label: number for number, label in enumerate(labels)}

    def labels_of(samples: Sequence[str]) -> list[int]:
        return [numbers.get(rule(sample), NO_LABEL) for sample in samples]

    tokens = sample_tokens(results, generator)
    texts = [LabelledText(ids, numbers[label]) for ids, label in zip(tokens, found, strict=True)]
    return replace(split_texts(labels, texts, validation_fraction), label_samples=labels_of)
