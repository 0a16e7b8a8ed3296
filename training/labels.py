"""Labelled texts for a discriminator: read from the user's files, split, cut into windows."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from command_line import UserError, flag_name
from data.sources import open_source
from data.split import in_validation
from data.tokenizers.base import Tokenizer
from generation.discriminators import text_start
from generation.extensions import load_name
from training.discriminator_config import DiscriminatorConfig

MIN_TEXTS = 20
"""Of each label: fewer can be learned by heart but not judged."""


@dataclass(frozen=True)
class LabelledText:
    """The tokens of a whole text, start token first, and the number of its label."""

    token_ids: list[int]
    label: int
    first: int = 0
    """Prefixes of fewer tokens, the start not counted, are neither learned from nor judged: guidance wrote them."""


@dataclass(frozen=True)
class LabelledTexts:
    """Texts in three parts: to learn from, to choose the best epoch and calibrate with, and to report on."""

    labels: list[str]
    training: list[LabelledText]
    tuning: list[LabelledText]
    held_out: list[LabelledText]
    label_samples: Callable[[Sequence[str]], list[int]] | None = None
    """The labels of other samples of the language model, NO_LABEL for an unknown one; None where only the given texts
    have labels."""

    @property
    def shares(self) -> list[float]:
        """Share of each label among all texts that nothing has guided: the prior, which stays as it is."""
        texts = [text for part in (self.training, self.tuning, self.held_out) for text in part if not text.first]
        counts = Counter(text.label for text in texts)
        return [counts[number] / len(texts) for number in range(len(self.labels))]

    def in_windows(self, context_length: int) -> LabelledTexts:
        """The same texts, the longer ones cut into windows that a discriminator sees at once."""
        return replace(
            self,
            training=_cut(self.training, context_length),
            tuning=_cut(self.tuning, context_length),
            held_out=_cut(self.held_out, context_length),
        )


def _cut(texts: Sequence[LabelledText], width: int) -> list[LabelledText]:
    return [
        LabelledText(text.token_ids[start : start + width], text.label, max(0, text.first - start))
        for text in texts
        for start in range(0, len(text.token_ids), width)
        if start + width > text.first
    ]


def read_labelled_texts(config: DiscriminatorConfig, tokenizer: Tokenizer) -> LabelledTexts:
    """The texts that `--desired` and `--undesired`, `--label` or `--labelled` name; raises UserError."""
    start, end = text_start(tokenizer), tokenizer.end_of_text
    pairs = list(_read_jsonl(config) if config.labelled is not None else _read_files(config))
    labels = list(dict.fromkeys(label for _, label in pairs))
    texts = [LabelledText([start, *tokenizer.encode(text), end], labels.index(label)) for text, label in pairs]
    return split_texts(labels, texts, config.validation_fraction)


def load_rule(spec: str) -> Callable[[str], str]:
    """A rule `PATH.py:FUNCTION` as a function from text to label: True is its name, False `not-` its name."""
    match = re.fullmatch(r"(?P<path>.+\.py):(?P<name>\w+)", spec, re.DOTALL)
    if match is None:
        raise UserError(f"--rule must look like PATH.py:FUNCTION, but is {spec!r}")
    function = load_name("--rule", Path(match["path"]), match["name"])
    name = match["name"].replace("_", "-")

    def label(text: str) -> str:
        answer = function(text)
        if isinstance(answer, bool):
            return name if answer else f"not-{name}"
        if not isinstance(answer, str):
            raise UserError(f"--rule {spec} must return True, False or the name of a label, but returned {answer!r}")
        return answer

    return label


def split_texts(labels: list[str], texts: Sequence[LabelledText], fraction: float) -> LabelledTexts:
    """Hold out a share of the texts by a hash of their place, half of it for tuning; raises UserError for too few."""
    for number, label in enumerate(labels):
        n_texts = sum(text.label == number for text in texts)
        if n_texts < MIN_TEXTS:
            raise UserError(f"only {n_texts} texts have the label {label!r}; a discriminator needs {MIN_TEXTS} or more")
    if len(labels) < 2:
        raise UserError(
            f"all texts have the label {labels[0] if labels else None!r}; a discriminator needs two or more"
        )
    chosen = [in_validation(number, fraction) for number in range(len(texts))]
    held_out = [text for text, is_held_out in zip(texts, chosen, strict=True) if is_held_out]
    training = [text for text, is_held_out in zip(texts, chosen, strict=True) if not is_held_out]
    if min(len(held_out), len(training)) < 4:
        raise UserError(f"--validation-fraction {fraction} leaves too few of {len(texts)} texts on one side; try 0.2")
    return LabelledTexts(labels, training, held_out[::2], held_out[1::2])


def shuffled_batches(texts: Sequence[LabelledText], size: int, order: torch.Generator) -> Iterator[list[LabelledText]]:
    """All texts once in a random order, those of similar length side by side, so that little is padded."""
    shuffled = [texts[number] for number in torch.randperm(len(texts), generator=order).tolist()]
    batches = []
    for first in range(0, len(shuffled), 16 * size):
        neighbours = sorted(shuffled[first : first + 16 * size], key=lambda text: len(text.token_ids))
        batches += [neighbours[at : at + size] for at in range(0, len(neighbours), size)]
    yield from (batches[number] for number in torch.randperm(len(batches), generator=order).tolist())


def _read_files(config: DiscriminatorConfig) -> Iterator[tuple[str, str]]:
    """Pairs of text and label, from the files of each label."""
    sides = {"desired": config.desired, "undesired": config.undesired}
    stems = {Path(specs[0]).stem for specs in sides.values() if len(specs) == 1}
    # Two files are called by their names, such as gloomy and bright; several by their side.
    files = [
        (Path(spec).stem if len(stems) == 2 else side, spec, flag_name(side))
        for side, specs in sides.items()
        for spec in specs
    ]
    for entry in config.label:
        label, separator, spec = entry.partition("=")
        if not separator or not label or not spec:
            raise UserError(f"--label must look like NAME=FILE, but is {entry!r}")
        files.append((label, spec, "--label"))
    for label, spec, flag in files:
        source = open_source(spec, text_field=config.text_field, encoding=config.encoding, flag=flag)
        yield from ((text, label) for text in source.documents())


def _read_jsonl(config: DiscriminatorConfig) -> Iterator[tuple[str, str]]:
    """Pairs of text and label, from the lines of one file."""
    path = Path(str(config.labelled))
    try:
        lines = path.read_text(encoding=config.encoding).split("\n")
    except (OSError, UnicodeDecodeError, LookupError) as error:
        raise UserError(f"--labelled {path} cannot be read ({getattr(error, 'strerror', None) or error})") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number} is not JSON ({error})") from None
        fields = record if isinstance(record, dict) else {}
        text, label = fields.get(config.text_field), fields.get(config.label_field)
        if not isinstance(text, str) or not isinstance(label, str | int | bool):
            raise UserError(
                f"{path}, line {number} needs a text in {config.text_field!r} and a label in {config.label_field!r}, "
                f"but has the fields {', '.join(map(repr, list(fields)[:8])) or 'none'}; name them with --text-field "
                "and --label-field"
            )
        yield text, str(label)
