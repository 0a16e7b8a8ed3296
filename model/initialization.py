"""How weights start, chosen by config.

`gpt2`: normal with standard deviation 0.02, projections into the residual stream scaled by 1/√(2 layers), so that its
variance does not grow with depth (Radford et al. 2019, section 2.3).

`zero_projection`: every block starts as the identity, since what it adds begins at zero (Zhang et al. 2019, "Fixup",
arxiv.org/abs/1901.09321; used in modded-nanogpt); the head starts at zero too, so the first loss is exactly ln V.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from model.attention import CausalAttention
from model.config import ModelConfig
from model.ngram_embedding import NgramEmbedding


def initialize(model: nn.Module, config: ModelConfig) -> None:
    """Fill all weights of a GPT from torch's global random state; biases start at zero, norm gains at one."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            std = 0.02 if config.initialization == "gpt2" else 1 / math.sqrt(module.in_features)
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
    for module in model.modules():
        if isinstance(module, NgramEmbedding):
            for table in module.tables.values():
                nn.init.zeros_(table.weight)  # type: ignore[arg-type]
    for weight in residual_projections(model):
        if config.initialization == "gpt2":
            nn.init.normal_(weight, std=0.02 / math.sqrt(2 * config.n_layer))
        else:
            nn.init.zeros_(weight)
    head = getattr(model, "head", None)
    if config.initialization == "zero_projection" and isinstance(head, nn.Linear) and not config.tied_head:
        nn.init.zeros_(head.weight)


@contextlib.contextmanager
def outlined() -> Iterator[None]:
    """Modules made within have shapes on the "meta" device, but no memory, no values, and draw no random numbers."""
    with torch.device("meta"), _NoInitialization():
        yield


class _NoInitialization(TorchFunctionMode):
    """Skips `torch.nn.init`: on "meta" it fills nothing, yet its first call loads the compiler for two seconds."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        settings = dict(kwargs or {})
        if getattr(func, "__module__", None) == "torch.nn.init":
            return settings["tensor"] if "tensor" in settings else args[0]
        return func(*args, **settings)


def residual_projections(model: nn.Module) -> list[torch.Tensor]:
    """The weights whose product is added to the residual stream: two a block."""
    weights: list[torch.Tensor] = []
    for module in model.modules():
        if isinstance(module, CausalAttention):
            weights.append(module.projection.weight)
        elif isinstance(getattr(module, "down", None), nn.Linear):
            weights.append(module.down.weight)  # type: ignore[arg-type, union-attr]
    return weights
