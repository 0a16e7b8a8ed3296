"""Embeddings of the last two and three tokens, looked up by hash: knowledge of common pairs without a matrix product.

A small model spends much of its depth on learning which token follows which; a table does that at once and costs a CPU
next to nothing. Different pairs may share a row; training sorts out who needs it most. Hash embeddings: Svenstrup et
al. 2017 (arxiv.org/abs/1709.03933); n-grams as model input: Clark et al. 2022, "CANINE" (arxiv.org/abs/2103.06874).
"""

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.kv_cache import HISTORY

# Large odd multipliers spread neighbouring ids over the table (Knuth, The Art of Computer Programming, vol. 3, 6.4).
_MULTIPLIERS = (2_654_435_761, 2_246_822_519, 3_266_489_917)


class NgramEmbedding(nn.Module):
    """The sum of a bigram and a trigram embedding of every position."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        orders = {2: config.bigram_rows, 3: config.trigram_rows}
        self.tables = nn.ModuleDict(
            {str(order): nn.Embedding(rows, config.n_embd) for order, rows in orders.items() if rows}
        )

    def forward(self, with_history: Tensor) -> Tensor:
        """(B, HISTORY + T) token ids, NO_TOKEN before the first → (B, T, C)."""
        embedded = [table(self.rows(with_history, int(order))) for order, table in self.tables.items()]
        return torch.stack(embedded).sum(dim=0) if len(embedded) > 1 else embedded[0]

    def rows(self, with_history: Tensor, order: int) -> Tensor:
        """The table row of every position's last `order` tokens: (B, HISTORY + T) → (B, T)."""
        T = with_history.shape[1] - HISTORY
        mixed = torch.zeros_like(with_history[:, HISTORY:])
        for back, multiplier in zip(range(order), _MULTIPLIERS, strict=False):
            # + 2 makes NO_TOKEN (−1) an id of its own, distinct from every token.
            mixed = mixed + (with_history[:, HISTORY - back : HISTORY - back + T] + 2) * multiplier
        mixed = mixed ^ (mixed >> 15)
        return mixed % self.tables[str(order)].num_embeddings  # type: ignore[operator]
