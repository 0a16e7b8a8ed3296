"""Next-token cross-entropy that never holds the logits of all positions at once.

With 50,257 tokens and 8,192 positions the logits alone would take 1.6 GB, three times over in a usual backward pass.
Here a chunk of positions at a time gets its logits, its loss and, at once, its gradients, which are kept instead
(the idea of Liger's fused linear cross-entropy, Hsu et al. 2024, arxiv.org/abs/2410.10989).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK_LOGITS = 2**22
"""Logits held at once: 16 MB in fp32, about the size of a last-level cache."""


def _chunk_size(vocab_size: int) -> int:
    return max(16, CHUNK_LOGITS // vocab_size)


class _LinearCrossEntropy(torch.autograd.Function):
    """Mean of −log softmax(hidden · weightᵀ)[target] with gradients computed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """(N, C), (V, C), (N,) → scalar in float32 (float64 for float64 input)."""
        n_positions = hidden.shape[0]
        precise = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        total = torch.zeros((), dtype=precise, device=hidden.device)
        hidden_gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        weight_gradient = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        step = _chunk_size(weight.shape[0])
        # Under autocast the product runs in bf16, while the weight's gradient adds up in the weight's own precision.
        operand = weight.to(hidden.dtype)
        for start in range(0, n_positions, step):
            part, part_targets = hidden[start : start + step], targets[start : start + step, None]
            logits = (part @ operand.T).to(precise)
            log_total = logits.logsumexp(dim=-1, keepdim=True)
            total += (log_total - logits.gather(1, part_targets)).sum()
            # d loss / d logits = softmax − one-hot, divided by the number of positions.
            errors = logits.sub_(log_total).exp_()
            errors.scatter_add_(1, part_targets, errors.new_full((1, 1), -1.0).expand_as(part_targets))
            errors = errors.div_(n_positions).to(hidden.dtype)
            if hidden_gradient is not None:
                torch.mm(errors, operand, out=hidden_gradient[start : start + step])
            if weight_gradient is not None:
                weight_gradient += errors.T @ part
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        return total / n_positions

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Scale the stored gradients by the gradient of the result."""
        (gradient,) = gradients
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return (
            None if hidden_gradient is None else hidden_gradient * gradient,
            None if weight_gradient is None else weight_gradient * gradient,
            None,
        )


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean loss in nats of predicting `targets` (N,) from `hidden` (N, C) through the head's `weight` (V, C)."""
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    result: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
    return result


@torch.no_grad()
def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Loss in nats of every single position, (N, C), (V, C), (N,) → (N,), without gradients."""
    step = _chunk_size(weight.shape[0])
    parts = [
        F.cross_entropy(
            F.linear(hidden[start : start + step], weight).float(), targets[start : start + step], reduction="none"
        )
        for start in range(0, hidden.shape[0], step)
    ]
    return torch.cat(parts)
