"""Low-rank adapters (Hu et al. 2021, "LoRA", arxiv.org/abs/2106.09685): fine-tune small matrices beside frozen ones.

    W x  →  W x + alpha / rank · B (A x)        A (rank, in) starts random, B (out, rank) starts at zero

So an adapted model starts as exactly the model that it was. `merged` adds every product to its matrix, which gives the
weights of an ordinary model; `unmerged` is what only a run that goes on needs beside them.
"""

import math
from collections.abc import Iterator, Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from model.initialization import outlined


class LowRankLinear(nn.Linear):
    """A linear layer with an adapter; its own weight and bias keep their names and stay as they are."""

    def __init__(self, layer: nn.Linear, rank: int, alpha: float) -> None:
        with outlined():
            super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None)
        self.weight, self.bias = layer.weight, layer.bias
        self.scale = alpha / rank
        std = 1 / math.sqrt(layer.in_features)
        self.lora_a = nn.Parameter(nn.init.normal_(layer.weight.new_empty(rank, layer.in_features), std=std))
        self.lora_b = nn.Parameter(layer.weight.new_zeros(layer.out_features, rank))

    def forward(self, inputs: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        # Scaled where it is narrow, added in place: no other tensor of the width of the output.
        adapted = F.linear(self.scale * F.linear(inputs, self.lora_a), self.lora_b)
        return super().forward(inputs).add_(adapted)


def add_adapters(model: nn.Module, rank: int, alpha: float, matrices: str) -> None:
    """Freeze a GPT and give its linear layers adapters, which start from torch's global random state.

    `matrices`: `attention`, `feed_forward` or `all` of every block. The fused queries, keys and values share one A.
    """
    model.requires_grad_(False)
    for name, layer in list(model.named_modules()):
        owner, _, last = name.rpartition(".")
        part = owner.rpartition(".")[2]
        if owner.startswith("blocks.") and isinstance(layer, nn.Linear) and matrices in ("all", part):
            setattr(model.get_submodule(owner), last, LowRankLinear(layer, rank, alpha))


def merged(model: nn.Module, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of an ordinary model that computes the same as an adapted one with this state dict."""
    weights = dict(state_dict)
    for name, layer in _adapted_layers(model):
        a, b = weights.pop(f"{name}.lora_a"), weights.pop(f"{name}.lora_b")
        weights[f"{name}.weight"] = weights[f"{name}.weight"] + layer.scale * (b @ a)
    return weights


def unmerged(model: nn.Module, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries that merging changes or drops: with them laid over it, a merged state dict is exactly as before."""
    names = [f"{name}.{part}" for name, _ in _adapted_layers(model) for part in ("weight", "lora_a", "lora_b")]
    return {name: state_dict[name] for name in names}


def _adapted_layers(model: nn.Module) -> Iterator[tuple[str, LowRankLinear]]:
    for name, module in model.named_modules():
        if isinstance(module, LowRankLinear):
            yield name, module
