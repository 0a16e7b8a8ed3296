"""Texts measured: whether they have an attribute by a judge that no guide knows, how varied, how repetitive."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch

from training.bag_of_words import BagOfWords, words, words_and_pairs

LabelledText = tuple[str, bool]


def distinct(texts: Iterable[str], n: int) -> float:
    """Different n-grams of words per n-gram, over all texts together."""
    grams = [gram for text in texts for gram in _ngrams(words(text), n)]
    return len(set(grams)) / max(1, len(grams))


def repetition(texts: Iterable[str], n: int = 4) -> float:
    """Share of the n-grams of words that their own text has held before, over all texts together."""
    grams = [list(_ngrams(words(text), n)) for text in texts]
    return 1 - sum(len(set(of_text)) for of_text in grams) / max(1, sum(map(len, grams)))


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of n (Wilson 1927)."""
    z = 1.96
    centre, spread = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)


def _ngrams(tokens: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
    return zip(*(tokens[start:] for start in range(n)), strict=False)


def character_features(text: str) -> set[str]:
    """Strings of two to five characters."""
    padded = f" {text.lower()} "
    return {padded[start : start + n] for n in range(2, 6) for start in range(len(padded) - n + 1)}


class Judge:
    """Two linear judges, of words and of characters, whose log-odds are added; both have learned the same texts."""

    def __init__(self, texts: Sequence[LabelledText]) -> None:
        labels = [int(label) for _, label in texts]
        self._judges = [
            BagOfWords([text for text, _ in texts], labels, 2, features)
            for features in (words_and_pairs, character_features)
        ]

    def holds(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text has the attribute."""
        logits = torch.stack([judge.logits(texts) for judge in self._judges]).sum(0)  # (N, 2)
        return [bool(has_it) for has_it in logits[:, 1] > logits[:, 0]]


def judge_accuracy(texts: Sequence[Sequence[LabelledText]], folds: int = 5) -> list[float]:
    """Share of right answers on texts that the judge was not trained on, by cross-validation.

    Each entry of `texts` holds the forms of one text, such as the whole and its beginning; forms stay together, and the
    accuracy is given for each form.
    """
    right = [0] * len(texts[0])
    for fold in range(folds):
        judge = Judge([form for number, forms in enumerate(texts) if number % folds != fold for form in forms])
        held_out = texts[fold::folds]
        for form in range(len(right)):
            answers = judge.holds([forms[form][0] for forms in held_out])
            right[form] += sum(answer == forms[form][1] for answer, forms in zip(answers, held_out, strict=True))
    return [count / len(texts) for count in right]
