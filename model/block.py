"""One transformer block: attention mixes positions, the feed-forward layer works on each, both added to the stream."""

from torch import Tensor, nn

from model.attention import CausalAttention
from model.config import ModelConfig
from model.dropout import ChannelDropout
from model.feed_forward import FEED_FORWARDS
from model.kv_cache import KVCache
from model.normalization import NORMALIZATIONS


class Block(nn.Module):
    """Pre-norm block (Xiong et al. 2020, arxiv.org/abs/2002.04745): x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        normalization = NORMALIZATIONS[config.normalization]
        self.attention_norm = normalization(config, config.n_embd)
        self.attention = CausalAttention(config, layer)
        self.feed_forward_norm = normalization(config, config.n_embd)
        self.feed_forward = FEED_FORWARDS[config.feed_forward](config)
        self.dropout = ChannelDropout(config.dropout)

    def forward(
        self, inputs: Tensor, rotation: tuple[Tensor, Tensor] | None = None, kv_cache: KVCache | None = None
    ) -> Tensor:
        """(B, T, C) → (B, T, C)."""
        mixed = inputs + self.dropout(self.attention(self.attention_norm(inputs), rotation, kv_cache))
        return mixed + self.dropout(self.feed_forward(self.feed_forward_norm(mixed)))  # type: ignore[no-any-return]
