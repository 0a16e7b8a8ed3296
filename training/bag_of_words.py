"""Which label a whole text has, by all its words at once, in any order: little to learn, so that few texts teach it."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_WORDS = re.compile(r"[぀-ヿ㐀-鿿가-힣]|[^\W_]+(?:'[^\W_]+)*|[.!?…。！？]")
"""Words, each sign of a script without spaces by itself, and marks that end a sentence."""


def words(text: str) -> list[str]:
    """Lower-case words and marks that end a sentence."""
    return _WORDS.findall(text.lower())


def words_and_pairs(text: str) -> set[str]:
    """Words and pairs of neighbouring words."""
    tokens = words(text)
    return {*tokens, *(" ".join(pair) for pair in itertools.pairwise(tokens))}


class BagOfWords:
    """Logistic regression on the features a text has, scaled by their log-count ratios (Wang & Manning 2012,
    "Baselines and bigrams", aclanthology.org/P12-2018).
    """

    PENALTY = 0.003
    """Of the squared weights; chosen by cross-validation on half of the English tales."""

    def __init__(
        self,
        texts: Sequence[str],
        labels: Sequence[int],
        n_labels: int,
        features: Callable[[str], set[str]] = words_and_pairs,
    ) -> None:
        """Fit on texts and the numbers of their labels, each of which must occur."""
        self._features = features
        counts = Counter(feature for text in texts for feature in features(text))
        frequent = [feature for feature, count in counts.items() if count > 1]
        self._numbers = {feature: number for number, feature in enumerate(frequent)}
        targets = torch.tensor(labels)
        rows, columns = self._places(texts)
        of_label = F.one_hot(targets, n_labels).float()  # (N, L)
        with_it = torch.ones(len(frequent), n_labels).index_add_(0, columns, of_label[rows])  # (features, L)
        without = torch.ones(len(frequent), n_labels).index_add_(0, columns, 1 - of_label[rows])
        self._ratios = (with_it / with_it.sum(0)).log() - (without / without.sum(0)).log()
        self._weights = torch.zeros(len(frequent), n_labels, requires_grad=True)
        self._bias = torch.zeros(n_labels, requires_grad=True)
        optimizer = torch.optim.LBFGS([self._weights, self._bias], max_iter=60, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            penalty = self.PENALTY / len(texts) * self._weights.square().sum()
            total = F.cross_entropy(self._logits(rows, columns, len(texts)), targets) + penalty
            total.backward()  # type: ignore[no-untyped-call]
            return total

        optimizer.step(loss)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def logits(self, texts: Sequence[str]) -> Tensor:
        """Logits of the labels, (N, L)."""
        return self._logits(*self._places(texts), len(texts))

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

    def _logits(self, rows: Tensor, columns: Tensor, n_texts: int) -> Tensor:
        evidence = (self._ratios * self._weights)[columns]
        counts = torch.zeros(n_texts).index_add_(0, rows, torch.ones(len(rows)))
        summed = torch.zeros(n_texts, self._bias.numel()).index_add(0, rows, evidence)
        return summed / counts.clamp(min=1).sqrt().unsqueeze(1) + self._bias
