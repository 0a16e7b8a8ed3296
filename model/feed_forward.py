"""Feed-forward: what a block computes for every position on its own, (B, T, C) → (B, T, C).

To add a variant: one class here, one line in FEED_FORWARDS, its name in `ModelConfig.feed_forward`.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ModelConfig


class _TwoLayers(nn.Module):
    """Widen, bend, narrow: `down(activation(up(x)))`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.n_embd, config.feed_forward_width, bias=config.feed_forward_has_bias)
        self.down = nn.Linear(config.feed_forward_width, config.n_embd, bias=config.feed_forward_has_bias)


class GELU(_TwoLayers):
    """Gaussian error linear unit (Hendrycks & Gimpel 2016, arxiv.org/abs/1606.08415)."""

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, T, C) → (B, T, C)."""
        return self.down(F.gelu(self.up(inputs)))  # type: ignore[no-any-return]


class TanhGELU(_TwoLayers):
    """GELU in the tanh approximation that GPT-2 was trained with."""

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, T, C) → (B, T, C)."""
        return self.down(F.gelu(self.up(inputs), approximate="tanh"))  # type: ignore[no-any-return]


class ReLUSquared(_TwoLayers):
    """Squared rectifier: cheaper than GELU and a little better (So et al. 2021, arxiv.org/abs/2109.08668)."""

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, T, C) → (B, T, C)."""
        return self.down(F.relu(self.up(inputs)).square())  # type: ignore[no-any-return]


class SwiGLU(nn.Module):
    """A gate beside the values, `down(silu(gate(x)) · up(x))` (Shazeer 2020, arxiv.org/abs/2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.n_embd, config.feed_forward_width, bias=config.feed_forward_has_bias)
        self.up = nn.Linear(config.n_embd, config.feed_forward_width, bias=config.feed_forward_has_bias)
        self.down = nn.Linear(config.feed_forward_width, config.n_embd, bias=config.feed_forward_has_bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, T, C) → (B, T, C)."""
        return self.down(F.silu(self.gate(inputs)) * self.up(inputs))  # type: ignore[no-any-return]


FEED_FORWARDS: dict[str, type[nn.Module]] = {
    "gelu": GELU,
    "gelu_tanh": TanhGELU,
    "relu_squared": ReLUSquared,
    "swiglu": SwiGLU,
}
