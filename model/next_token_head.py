"""The cheap discriminator: what every possible next token would say of the class, read off a language model's state.

One product in place of a pass through a second network: NADO's output layer (Meng et al. 2022,
arxiv.org/abs/2205.14219) on the hidden states that the language model has computed anyway. So it belongs to that one
language model, and learns from a discriminator what to answer (`training/distillation.py`).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


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

    def sharpen(self, factor: float) -> None:
        """Multiply all class logits by a factor."""
        with torch.no_grad():
            for weight in (self.prefix.weight, self.prefix.bias, self.token.weight, self.queries.weight):
                weight.mul_(factor)


def next_token_head_like(state_dict: Mapping[str, Tensor]) -> NextTokenHead | None:
    """A fresh head of the sizes that a discriminator's state dict gives it; None when it has none."""
    prefix, vectors = state_dict.get("next_token.prefix.weight"), state_dict.get("next_token.vectors.weight")
    if prefix is None or vectors is None or prefix.ndim != 2 or vectors.ndim != 2:
        return None
    (n_labels, n_embd), (vocab_size, rank) = prefix.shape, vectors.shape
    return NextTokenHead(n_embd, vocab_size, n_labels, rank)
