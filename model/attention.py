"""Causal attention: every position reads from the positions before it, (B, T, C) → (B, T, C)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ModelConfig
from model.kv_cache import KVCache
from model.normalization import rms_norm
from model.positions import rotate


class CausalAttention(nn.Module):
    """Multi-head or grouped-query attention (Vaswani et al. 2017, arxiv.org/abs/1706.03762; Ainslie et al. 2023,
    arxiv.org/abs/2305.13245): H query heads share K key/value heads.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.layer = layer
        D, H, K = config.channels_per_head, config.n_head, config.key_value_heads
        self.qkv = nn.Linear(config.n_embd, (H + 2 * K) * D, bias=config.bias)
        self.projection = nn.Linear(H * D, config.n_embd, bias=config.bias)

    def forward(
        self, inputs: Tensor, rotation: tuple[Tensor, Tensor] | None = None, kv_cache: KVCache | None = None
    ) -> Tensor:
        """(B, T, C) → (B, T, C); `rotation` holds cosines and sines of the positions, `kv_cache` earlier keys."""
        B, T, _ = inputs.shape
        D, H, K = self.config.channels_per_head, self.config.n_head, self.config.key_value_heads
        heads = self.qkv(inputs).view(B, T, H + 2 * K, D).transpose(1, 2)  # (B, H + 2 K, T, D)
        compared, values = heads.split((H + K, K), dim=1)
        if self.config.qk_norm:
            # Keeps attention logits bounded at high learning rates (Henry et al. 2020, arxiv.org/abs/2010.04245).
            compared = rms_norm(compared)
        if rotation is not None:
            compared = rotate(compared, *rotation)
        queries, keys = compared.split((H, K), dim=1)
        mask, is_causal = None, True
        if kv_cache is not None:
            keys, values = kv_cache.append(self.layer, keys, values)  # (B, K, S, D)
            mask, is_causal = kv_cache.mask, kv_cache.is_causal
        mixed = attend(queries, keys, values, mask=mask, is_causal=is_causal)  # (B, H, T, D)
        return self.projection(mixed.transpose(1, 2).reshape(B, T, H * D))  # type: ignore[no-any-return]


def attend(queries: Tensor, keys: Tensor, values: Tensor, *, mask: Tensor | None, is_causal: bool) -> Tensor:
    """Softmax-weighted values, (B, H, T, D) and twice (B, K, S, D) → (B, H, T, D); `mask` is true where allowed.

    On a CPU in bf16 the plain product is 3 to 5 times as fast as torch's fused kernel, which computes its blocks
    without the processor's bf16 instructions (benchmarks/results/); its (T, T) weights fit the cache at our sizes.
    """
    H, K = queries.shape[1], keys.shape[1]
    if queries.dtype != torch.bfloat16 or queries.device.type != "cpu" or mask is not None:
        return F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=is_causal, enable_gqa=H != K
        )
    if H != K:
        keys, values = keys.repeat_interleave(H // K, dim=1), values.repeat_interleave(H // K, dim=1)
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-2, -1)  # (B, H, T, S)
    if is_causal:
        T = queries.shape[2]
        scores = scores + torch.full((T, T), -torch.inf, dtype=scores.dtype).triu(1)
    mixed: Tensor = scores.softmax(dim=-1) @ values  # (B, H, T, D)
    return mixed
