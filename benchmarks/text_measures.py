"""Texts measured: whether they have an attribute by a judge that no guide knows, how varied, how repetitive."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

LabelledText = tuple[str, bool]


def words(text: str) -> list[str]:
    """Lower-case words and marks that end a sentence."""
    return re.findall(r"[a-z']+|[.!?]", text.lower())


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


def word_features(text: str) -> set[str]:
    """Words and pairs of neighbouring words."""
    tokens = words(text)
    return {*tokens, *(" ".join(pair) for pair in itertools.pairwise(tokens))}


def character_features(text: str) -> set[str]:
    """Strings of two to five characters."""
    padded = f" {text.lower()} "
    return {padded[start : start + n] for n in range(2, 6) for start in range(len(padded) - n + 1)}


class LinearJudge:
    """Whether a text has an attribute, by all its words at once: it shares neither texts nor workings with a guide.

    Logistic regression on binary features scaled by their log-count ratios (Wang & Manning 2012, "Baselines and
    bigrams", aclanthology.org/P12-2018).
    """

    PENALTY = 0.003
    """Of the squared weights; chosen by cross-validation within the judge's own texts."""

    def __init__(self, texts: Sequence[LabelledText], features: Callable[[str], set[str]]) -> None:
        self._features = features
        counts = Counter(feature for text, _ in texts for feature in features(text))
        frequent = [feature for feature, count in counts.items() if count > 1]
        self._numbers = {feature: number for number, feature in enumerate(frequent)}
        labels = torch.tensor([float(label) for _, label in texts])
        rows, columns = self._places([text for text, _ in texts])
        with_it, without = (
            torch.ones(len(frequent)).index_add_(0, columns, weights) for weights in (labels[rows], 1 - labels[rows])
        )
        self._ratios = (with_it / with_it.sum()).log() - (without / without.sum()).log()
        self._weights = torch.zeros(len(frequent), requires_grad=True)
        self._bias = torch.zeros(1, requires_grad=True)
        optimizer = torch.optim.LBFGS([self._weights, self._bias], max_iter=60, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            scores = self._score(rows, columns, len(texts))
            penalty = self.PENALTY / len(texts) * self._weights.square().sum()
            total = F.binary_cross_entropy_with_logits(scores, labels) + penalty
            total.backward()  # type: ignore[no-untyped-call]
            return total

        optimizer.step(loss)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def scores(self, texts: Sequence[str]) -> Tensor:
        """Log-odds of the attribute, (N,)."""
        rows, columns = self._places(texts)
        return self._score(rows, columns, len(texts))

    def _places(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Text and number of every known feature of every text."""
        pairs = [
            (row, self._numbers[feature])
            for row, text in enumerate(texts)
            for feature in sorted(self._features(text))
            if feature in self._numbers
        ]
        rows, columns = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).unbind(1)
        return rows, columns

    def _score(self, rows: Tensor, columns: Tensor, n_texts: int) -> Tensor:
        evidence = (self._ratios * self._weights)[columns]
        counts = torch.zeros(n_texts).index_add_(0, rows, torch.ones(len(rows)))
        return torch.zeros(n_texts).index_add(0, rows, evidence) / counts.clamp(min=1).sqrt() + self._bias


class Judge:
    """Two linear judges, of words and of characters, whose log-odds are added."""

    def __init__(self, texts: Sequence[LabelledText]) -> None:
        self._judges = [LinearJudge(texts, features) for features in (word_features, character_features)]

    def holds(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text has the attribute."""
        return [score > 0 for score in sum(judge.scores(texts) for judge in self._judges).tolist()]  # type: ignore[union-attr]


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
