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


class NextTokenHead(nn.Module):
    """Class logits behind prefix + x for any next token x: what the prefix says + what x says + what both say together.

    L labels, C channels of the language model, V tokens; the product of prefix and token has rank R.
    """

    def __init__(self, n_embd: int, vocab_size: int, n_labels: int, rank: int) -> None:
        super().__init__()
        self.prefix = nn.Linear(n_embd, n_labels)
        self.token = nn.Embedding(vocab_size, n_labels)
        self.queries = nn.Linear(n_embd, n_labels * rank, bias=False)
        self.vectors = nn.Embedding(vocab_size, rank)
        # Before training every label is equally probable, whatever comes next.
        for weight in (self.prefix.weight, self.prefix.bias, self.token.weight, self.queries.weight):
            nn.init.zeros_(weight)
        nn.init.normal_(self.vectors.weight, std=rank**-0.5)

    def forward(self, hidden: Tensor, candidates: Tensor) -> Tensor:
        """Hidden states of prefixes (…, C) and k candidates for each (…, k) → class logits (…, k, L)."""
        n_labels = self.prefix.out_features
        queries = self.queries(hidden).unflatten(-1, (n_labels, -1))  # (…, L, R)
        together = self.vectors(candidates) @ queries.transpose(-2, -1)  # (…, k, L)
        return self.prefix(hidden).unsqueeze(-2) + self.token(candidates) + together  # type: ignore[no-any-return]

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
    """Log-odds behind prefix + x as one product: token table · (weight · hidden state + bias).

    In a step of a small model every operation costs as much as its arithmetic, so fewer of them are faster.
    """

    weight: Tensor
    """(R + 2, C)"""
    bias: Tensor
    """(R + 2,)"""
    table: Tensor
    """(V, R + 2)"""

    def log_odds(self, hidden: Tensor, candidates: Tensor) -> Tensor:
        """(B, C) and (B, k) → (B, k)."""
        queries = F.linear(hidden, self.weight, self.bias).unsqueeze(-1)  # (B, R + 2, 1)
        return (F.embedding(candidates, self.table) @ queries).squeeze(-1)


def next_token_head_like(state_dict: Mapping[str, Tensor]) -> NextTokenHead | None:
    """A fresh head of the sizes that a discriminator's state dict gives it; None when it has none."""
    prefix, vectors = state_dict.get("next_token.prefix.weight"), state_dict.get("next_token.vectors.weight")
    if prefix is None or vectors is None or prefix.ndim != 2 or vectors.ndim != 2:
        return None
    (n_labels, n_embd), (vocab_size, rank) = prefix.shape, vectors.shape
    return NextTokenHead(n_embd, vocab_size, n_labels, rank)
