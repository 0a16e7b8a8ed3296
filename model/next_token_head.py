"""The cheap discriminator: what every possible next token would say of the class, read off a language model's state.

One product in place of a pass through a second network: NADO's output layer (Meng et al. 2022,
arxiv.org/abs/2205.14219) on the hidden states that the language model has computed anyway. So it belongs to that one
language model, and learns from a discriminator what to answer (`training/distillation.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def prefix_features(hidden: Tensor, total: Tensor, lengths: Tensor) -> Tensor:
    """What the head reads of a prefix: hidden state of its last token (…, C), sum over all its tokens (…, C), their
    number (…) → (…, 2 C).

    The last state alone was made to predict one token and has forgotten most of what speaks for a mood; the evidence of
    t tokens grows like √t, since neighbours say nearly the same.
    """
    return torch.cat((hidden, total * lengths.rsqrt().unsqueeze(-1)), dim=-1)


class NextTokenHead(nn.Module):
    """Class logits behind prefix + x for any next token x: what the prefix says + what x says + what both say together.

    L labels, F features of a prefix, V tokens; the product of prefix and token has rank R.
    """

    def __init__(self, n_features: int, vocab_size: int, n_labels: int, rank: int) -> None:
        super().__init__()
        self.prefix = nn.Linear(n_features, n_labels)
        self.token = nn.Embedding(vocab_size, n_labels)
        self.queries = nn.Linear(n_features, n_labels * rank, bias=False)
        self.vectors = nn.Embedding(vocab_size, rank)
        # Before training every label is equally probable, whatever comes next.
        for weight in (self.prefix.weight, self.prefix.bias, self.token.weight, self.queries.weight):
            nn.init.zeros_(weight)
        nn.init.normal_(self.vectors.weight, std=rank**-0.5)

    def forward(self, features: Tensor, candidates: Tensor) -> Tensor:
        """Features of prefixes (…, F) and k candidates for each (…, k) → class logits (…, k, L)."""
        n_labels = self.prefix.out_features
        queries = self.queries(features).unflatten(-1, (n_labels, -1))  # (…, L, R)
        together = self.vectors(candidates) @ queries.transpose(-2, -1)  # (…, k, L)
        return self.prefix(features).unsqueeze(-2) + self.token(candidates) + together  # type: ignore[no-any-return]

    def folded(self, label: int) -> FoldedHead:
        """The log-odds of one of two labels as one product; raises ValueError for more labels."""
        if self.prefix.out_features != 2:
            raise ValueError(f"only a head of two labels folds into one product, not one of {self.prefix.out_features}")
        sign = torch.tensor([1.0, -1.0] if label == 0 else [-1.0, 1.0], device=self.prefix.weight.device)
        queries = torch.einsum("l,lrc->rc", sign, self.queries.weight.view(2, -1, self.queries.in_features))  # (R, C)
        token = self.token.weight @ sign.unsqueeze(1)  # (V, 1)
        constant = queries.new_zeros(1, queries.shape[1])
        return FoldedHead(
            torch.cat((queries, (sign @ self.prefix.weight).unsqueeze(0), constant)),
            torch.cat((queries.new_zeros(len(queries)), (sign @ self.prefix.bias).unsqueeze(0), sign.new_ones(1))),
            torch.cat((self.vectors.weight, torch.ones_like(token), token), dim=1),
        )

    def sharpen(self, factor: float) -> None:
        """Multiply all class logits by a factor."""
        with torch.no_grad():
            for weight in (self.prefix.weight, self.prefix.bias, self.token.weight, self.queries.weight):
                weight.mul_(factor)


@dataclass(frozen=True)
class FoldedHead:
    """Log-odds behind prefix + x as one product: token table · (weight · features + bias).

    In a step of a small model every operation costs as much as its arithmetic, so fewer of them are faster.
    """

    weight: Tensor
    """(R + 2, F)"""
    bias: Tensor
    """(R + 2,)"""
    table: Tensor
    """(V, R + 2)"""

    def log_odds(self, features: Tensor, candidates: Tensor) -> Tensor:
        """(B, F) and (B, k) → (B, k)."""
        queries = F.linear(features, self.weight, self.bias).unsqueeze(-1)  # (B, R + 2, 1)
        return (F.embedding(candidates, self.table) @ queries).squeeze(-1)


def next_token_head_like(state_dict: Mapping[str, Tensor]) -> NextTokenHead | None:
    """A fresh head of the sizes that a discriminator's state dict gives it; None when it has none."""
    prefix, vectors = state_dict.get("next_token.prefix.weight"), state_dict.get("next_token.vectors.weight")
    if prefix is None or vectors is None or prefix.ndim != 2 or vectors.ndim != 2:
        return None
    (n_labels, n_features), (vocab_size, rank) = prefix.shape, vectors.shape
    return NextTokenHead(n_features, vocab_size, n_labels, rank)
