"""Teach a small network to tell your texts apart, so that it can steer a GPT: `generate.py --discriminator FILE`."""

from __future__ import annotations

import dataclasses
import os
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from command_line import ArgumentParser, MissingPackageError, UserError, add_options, given_options, run_program
from training.discriminator_config import DiscriminatorConfig

if TYPE_CHECKING:
    from generation.text_generator import TextGenerator
    from model.discriminator import Discriminator
    from training.discriminator_trainer import HeldOutQuality
    from training.labels import LabelledTexts

EXAMPLES = """examples:
  python -m training.train_discriminator --desired data/tales/en/gloomy.txt --undesired data/tales/en/bright.txt
  python -m training.train_discriminator --rule training/attributes.py:asks_a_question --samples 2000
"""


def build_parser() -> ArgumentParser:
    """All flags of training.train_discriminator."""
    parser = ArgumentParser(prog="python -m training.train_discriminator", description=__doc__, epilog=EXAMPLES)
    add_options(parser, DiscriminatorConfig, "discriminator")
    return parser


def main() -> None:
    """Flags → config → labelled texts → discriminator, its report on stderr, its file's name on stdout."""
    config = DiscriminatorConfig(**given_options(build_parser().parse(), DiscriminatorConfig))

    from model.checkpoint_choice import newest_run_checkpoint

    language_model = Path(config.checkpoint) if config.checkpoint else newest_run_checkpoint(Path("checkpoints"))
    if config.output is not None:
        _check_output(Path(config.output), config)
    print(run(config, language_model, shlex.join(["python", "-m", "training.train_discriminator", *sys.argv[1:]])))


def run(config: DiscriminatorConfig, language_model: Path, command: str) -> Path:
    """Train as the config says and save; returns the file. Everything a user can cause is a UserError."""
    from generation.text_generator import TextGenerator
    from training.labels import read_labelled_texts
    from training.own_samples import label_by_rule, with_own_samples

    generator = TextGenerator.load(language_model, config.device, "fp32", notify=_say)
    if config.rule is not None:
        _say(f"sampling    {config.samples:,} texts of at most {config.sample_tokens} tokens from {language_model}")
        texts = label_by_rule(config, generator)
    else:
        texts = read_labelled_texts(config, generator.tokenizer)
    if config.own_samples:
        _say(f"sampling    {config.own_samples:,} texts of at most {config.sample_tokens} tokens from {language_model}")
        texts = with_own_samples(texts, config, generator)
    suffix = ".pt" if config.body is None else ""
    output = Path(config.output or Path("checkpoints", "discriminators", f"{texts.labels[0]}{suffix}"))
    _check_output(output, config)
    if config.body is not None:
        return fit_text_classifier(config, generator, texts, output, command)
    return fit(config, generator, texts, output, command)


def fit(
    config: DiscriminatorConfig, generator: TextGenerator, texts: LabelledTexts, output: Path, command: str
) -> Path:
    """Train a discriminator on labelled texts, report on it, save it; returns the file."""
    import torch

    from training.calibration import quality_table
    from training.discriminator_trainer import build_discriminator, load_body, train_discriminator
    from training.distillation import distil_next_token_head
    from training.guided_samples import with_guided_samples

    _say_texts(texts)
    torch.manual_seed(config.seed)
    body = None if config.init is None else load_body(Path(config.init), generator.tokenizer)
    discriminator = build_discriminator(config, generator.tokenizer.vocab_size, len(texts.labels), body)
    discriminator.to(generator.model.token_embedding.weight.device)
    quality = train_discriminator(discriminator, texts, config, _say)
    if config.n_guided_samples:
        _say(f"sampling    {config.n_guided_samples:,} texts that begin under its guidance")
        texts = with_guided_samples(texts, discriminator, config, generator)
        quality = train_discriminator(discriminator, texts, config, _say)
    _report(quality)
    if config.next_token_rank:
        discriminator.next_token, fast = distil_next_token_head(
            discriminator, generator.model, texts, config.next_token_rank, config.batch_texts, config.seed, _say
        )
        _say(quality_table([fast])[1])
    _save(output, discriminator, generator, texts, quality, command)
    _plot(Path(config.plot or output.with_suffix(".png")), quality, texts)
    return output


def fit_text_classifier(
    config: DiscriminatorConfig, generator: TextGenerator, texts: LabelledTexts, output: Path, command: str
) -> Path:
    """The same for a body of Hugging Face's; the result is a folder."""
    import torch

    from model import durable_files
    from model.text_classifier import TextClassifier
    from training.calibration import quality_table
    from training.text_classifier_trainer import train_text_classifier

    assert config.body is not None
    _say_texts(texts)
    torch.manual_seed(config.seed)
    device = generator.model.token_embedding.weight.device
    classifier = TextClassifier.from_body(Path(config.body), texts.labels, device)
    qualities = train_text_classifier(classifier, texts, generator.tokenizer, config, _say)
    for line in quality_table(qualities):
        _say(line)
    durable_files.make_folder(output)
    held_out = [dataclasses.asdict(quality) for quality in qualities]
    classifier.save(output, {"label_shares": texts.shares, "held_out": held_out, "command": command})
    return output


def _say_texts(texts: LabelledTexts) -> None:
    shares = ", ".join(f"{label} {share:.1%}" for label, share in zip(texts.labels, texts.shares, strict=True))
    n_held_out = len(texts.tuning) + len(texts.held_out)
    _say(f"texts       {len(texts.training):,} to learn from, {n_held_out:,} held out: {shares}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _check_output(path: Path, config: DiscriminatorConfig) -> None:
    """Before the long work: may the result be written there, and can it be?"""
    from model import durable_files

    if path.exists() and not config.overwrite:
        raise UserError(f"{path} is there already; replace it with --overwrite, or name another with --output")
    if config.body is None and path.suffix != ".pt":
        raise UserError(f"--output must be the name of a .pt file, but is {str(path)!r}")
    if config.body is not None and path.exists() and not path.is_dir():
        raise UserError(f"with --body, --output must be a folder, but {path} is a file")
    try:
        durable_files.make_folder(path.parent)
    except OSError as error:
        raise durable_files.StorageError("make the folder", path.parent, error) from error
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"nothing can be written to {path.parent}; name another place with --output")


def _report(quality: HeldOutQuality) -> None:
    from training.calibration import quality_table

    _say("held-out texts that neither training nor calibration has seen:")
    rows = [*quality.by_length, quality.all_prefixes, quality.whole_texts]
    for line in quality_table(rows):
        _say(line)
    _say(f"epoch {quality.best_epoch} was the best; its logits were multiplied by {quality.sharpness:.2f} to be honest")


def _save(
    path: Path,
    discriminator: Discriminator,
    generator: TextGenerator,
    texts: LabelledTexts,
    quality: HeldOutQuality,
    command: str,
) -> None:
    import torch

    from data.tokenizers.registry import tokenizer_hash
    from model.checkpoint import save_checkpoint
    from model.discriminator import KIND

    save_checkpoint(
        path,
        model_config=discriminator.config,
        state_dict=discriminator.state_dict(),
        tokenizer=generator.tokenizer.state(),
        provenance={
            "labels": texts.labels,
            "label_shares": texts.shares,
            "tokenizer_hash": tokenizer_hash(generator.tokenizer),
            "language_model": generator.checkpoint_sha256,
            "training_texts": len(texts.training),
            "held_out": dataclasses.asdict(quality),
            "command": command,
            "versions": {
                "python": platform.python_version(),
                "torch": str(torch.__version__),
                "tiktoken": version("tiktoken"),
                "tokenizers": version("tokenizers"),
            },
        },
        kind=KIND,
    )


def _plot(path: Path, quality: HeldOutQuality, texts: LabelledTexts) -> None:
    from model.durable_files import StorageError
    from training.calibration import plot_qualities

    try:
        plot_qualities(quality.by_length, path, " / ".join(texts.labels))
    except MissingPackageError as error:
        _say(f"note: no picture: {error}")
    except OSError as error:
        _say(f"note: no picture: {StorageError('draw', path, error)}")


if __name__ == "__main__":
    run_program(main)
