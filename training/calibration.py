"""How right a discriminator is and how honest its probabilities are, by the length of the prefix it has seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from command_line import MissingPackageError
from model.discriminator import NO_LABEL
from training.labels import LabelledText

N_BINS = 10
_SHARPNESS = [2 ** (step / 8) for step in range(-24, 17)]
"""Factors tried for the class logits, from 1/8 to 4: temperatures from 8 to 1/4."""


@dataclass(frozen=True)
class PrefixQuality:
    """Quality over all prefixes whose number of tokens lies in a range."""

    lengths: str
    n_prefixes: int
    accuracy: float
    """Share of prefixes whose most probable label is the true one."""
    calibration_error: float
    """Expected calibration error: mean |share true − mean probability| over ten bins of probability."""


def pad_texts(texts: Sequence[LabelledText], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and labels of all prefixes, twice (B, T); NO_LABEL and id 0 behind the shorter texts.

    Prefixes before a text's `first` have NO_LABEL too.
    """
    rows = [text.token_ids for text in texts]
    width = max(len(row) for row in rows)
    token_ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    columns = torch.arange(width, device=device)
    first = torch.tensor([[text.first] for text in texts], device=device)
    n_tokens = torch.tensor([[len(row)] for row in rows], device=device)
    labels = torch.tensor([[text.label] for text in texts], device=device).expand(-1, width)
    return token_ids, labels.where((columns >= first) & (columns < n_tokens), NO_LABEL)


@torch.inference_mode()
def score_prefixes(
    classify: Callable[[Tensor], Tensor],
    texts: Sequence[LabelledText],
    *,
    device: torch.device | str = "cpu",
    first: int = 0,
    batch_texts: int = 64,
) -> tuple[Tensor, Tensor, Tensor]:
    """Class logits (N, L), labels (N,) and lengths in tokens, the start not counted, (N,) of all prefixes.

    `classify` gives the class logits of token ids (B, T), at the positions from `first` on: (B, T − first, L).
    """
    parts = []
    for start in range(0, len(texts), batch_texts):
        token_ids, labels = pad_texts(texts[start : start + batch_texts], torch.device(device))
        lengths = torch.arange(token_ids.shape[1], device=device).expand_as(token_ids)[:, first:]
        labels = labels[:, first:]
        counted = labels != NO_LABEL
        parts.append((classify(token_ids)[counted].float(), labels[counted], lengths[counted]))
    logits, labels, lengths = (torch.cat(column) for column in zip(*parts, strict=True))
    return logits, labels, lengths


def prefix_qualities(logits: Tensor, labels: Tensor, lengths: Tensor) -> list[PrefixQuality]:
    """Quality by prefix length, each range twice as wide as the one before: 0, 1, 2–3, 4–7, … tokens."""
    ranges = lengths.clamp(min=0).add(1).log2().floor().long()
    qualities = []
    for number in range(int(ranges.max()) + 1):
        chosen = ranges == number
        if chosen.any():
            first, last = 2**number - 1, 2 ** (number + 1) - 2
            qualities.append(
                quality(logits[chosen], labels[chosen], f"{first}" if first == last else f"{first}–{last}")
            )
    return qualities


def quality(logits: Tensor, labels: Tensor, lengths: str) -> PrefixQuality:
    """Accuracy and calibration error of class logits (N, L) for labels (N,)."""
    accuracy = (logits.argmax(-1) == labels).double().mean().item()
    return PrefixQuality(lengths, len(labels), accuracy, calibration_error(logits.softmax(-1), labels))


def calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Expected calibration error of (N, L) probabilities, the mean over the labels (Nixon et al. 2019,
    arxiv.org/abs/1904.01685; for two labels, that of either): (N, L), (N,) → number from 0 to 1.
    """
    errors = []
    for label in range(probabilities.shape[1]):
        given = probabilities[:, label].double()
        true = (labels == label).double()
        bins = (given * N_BINS).long().clamp(max=N_BINS - 1)
        # |Σ (true − given)| of a bin is its size times the difference of its means.
        differences = torch.zeros(N_BINS, dtype=torch.float64, device=given.device).index_add_(0, bins, true - given)
        errors.append(differences.abs().sum().item() / len(labels))
    return sum(errors) / len(errors)


def best_sharpness(logits: Tensor, labels: Tensor) -> float:
    """The factor of the class logits with the lowest loss: temperature scaling (Guo et al. 2017,
    arxiv.org/abs/1706.04599); (N, L), (N,) → factor.
    """
    return min(_SHARPNESS, key=lambda factor: F.cross_entropy(logits * factor, labels).item())


def quality_table(qualities: Sequence[PrefixQuality]) -> list[str]:
    """The qualities as lines of text under a heading."""
    lines = [f"{'prefix tokens':>13}  {'prefixes':>8}  {'accuracy':>8}  {'ECE':>6}"]
    for entry in qualities:
        numbers = f"{entry.n_prefixes:>8,}  {entry.accuracy:>8.1%}  {entry.calibration_error:>6.3f}"
        lines.append(f"{entry.lengths:>13}  {numbers}")
    return lines


def plot_qualities(qualities: Sequence[PrefixQuality], path: Path, title: str) -> None:
    """Draw accuracy and calibration error by prefix length into a PNG file; raises MissingPackageError."""
    try:
        # The object interface: no global figure, and no window system is ever touched.
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError("matplotlib", "the picture of the calibration") from error
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    names = [entry.lengths for entry in qualities]
    axes.plot(names, [entry.accuracy for entry in qualities], marker="o", label="accuracy")
    axes.plot(names, [entry.calibration_error for entry in qualities], marker="o", label="calibration error (ECE)")
    axes.set(xlabel="tokens of the prefix", ylabel="held-out texts", ylim=(0, 1), title=title)
    axes.legend()
    figure.savefig(path, dpi=120)
