"""Dropout of whole channels: a regulariser whose random numbers cost next to nothing."""

from torch import Tensor, nn


class ChannelDropout(nn.Module):
    """Zero a channel of a sequence at all its positions with probability p, and scale the others by 1 / (1 − p).

    One draw for each sequence and channel, as in variational dropout (Gal & Ghahramani 2016, arxiv.org/abs/1512.05287).
    It regularises as well as a draw for every element, which costs a CPU more time than the matrix products
    (benchmarks/results/).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T, C) → (B, T, C); the identity outside training."""
        if not self.training or self.p == 0:
            return hidden
        kept = hidden.new_empty(hidden.shape[0], 1, hidden.shape[2]).bernoulli_(1 - self.p)
        return hidden * (kept / (1 - self.p))
