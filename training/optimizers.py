"""Which optimizer moves which parameter, at which rate, and whether it decays: decided by the parameter's role."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from model.attention import CausalAttention
from training.config import TrainConfig
from training.muon import Muon

Role = Literal["matrices", "embeddings", "ngrams", "head", "vectors"]

DEFAULT_LEARNING_RATE = {"muon": 0.02, "adamw": 0.001}
DEFAULT_EMBEDDING_LEARNING_RATE = 0.005
DEFAULT_WEIGHT_DECAY = 0.1
NGRAM_DECAY = 12.5
"""How much faster the rows of n-grams decay than those of tokens."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are treated alike; `row_blocks` are the rows of the matrices that share one parameter."""

    role: Role
    optimizer: Literal["muon", "adamw"]
    parameters: dict[str, Tensor]
    learning_rate: float
    weight_decay: float
    row_blocks: tuple[int, ...] = ()


def learning_rates(train_config: TrainConfig) -> tuple[float, float]:
    """Peak rates of the matrices of the blocks and of everything else, defaults filled in."""
    rate, other_rate = train_config.learning_rate, train_config.embedding_learning_rate
    if rate is None:
        rate = DEFAULT_LEARNING_RATE[train_config.optimizer]
    if other_rate is None:
        other_rate = DEFAULT_EMBEDDING_LEARNING_RATE if train_config.optimizer == "muon" else rate
    return rate, other_rate


def parameter_groups(model: nn.Module, train_config: TrainConfig) -> list[ParameterGroup]:
    """Sort all trainable parameters by role; gains and biases do not decay.

    Embeddings and the head stay with AdamW: their rows belong to single tokens, most of which are absent from a
    batch, so there is no direction to share strength with (Jordan et al. 2024). A tied head counts as an embedding.

    AdamW moves a row that is seen rarely as far, each time, as one that is seen often. Decay makes up for that: a row
    comes to rest where the two are in balance, at a length that grows with its frequency, so that what was seen a few
    times counts little. N-grams are seen more rarely than tokens and decay faster (benchmarks/README.md).
    """
    rate, other_rate = learning_rates(train_config)
    decays = _decays(train_config)
    splits = _row_blocks(model) if train_config.optimizer == "muon" else {}
    sorted_parameters: dict[tuple[Role, tuple[int, ...]], dict[str, Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (_role(model, name, parameter), splits.get(name, ()))
            sorted_parameters.setdefault(key, {})[name] = parameter
    return [
        ParameterGroup(
            role,
            train_config.optimizer if role == "matrices" else "adamw",
            parameters,
            learning_rate=rate if role == "matrices" else other_rate,
            weight_decay=decays[role],
            row_blocks=row_blocks,
        )
        for (role, row_blocks), parameters in sorted_parameters.items()
    ]


def _decays(train_config: TrainConfig) -> dict[Role, float]:
    """The decay of every role, in units of its learning rate, defaults filled in."""
    matrices, embeddings = train_config.weight_decay, train_config.embedding_weight_decay or 0.0
    return {
        "matrices": DEFAULT_WEIGHT_DECAY if matrices is None else matrices,
        "embeddings": embeddings,
        "ngrams": NGRAM_DECAY * embeddings,
        "head": embeddings,
        "vectors": 0.0,
    }


def _role(model: nn.Module, name: str, parameter: Tensor) -> Role:
    owner, _, _ = name.rpartition(".")
    if parameter.ndim < 2:
        return "vectors"
    if "ngram_embedding" in owner.split("."):
        return "ngrams"
    if isinstance(model.get_submodule(owner), nn.Embedding):
        return "embeddings"
    return "matrices" if "blocks" in owner.split(".") else "head"


def _row_blocks(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The rows of queries, keys and values in every fused projection, by parameter name."""
    return {
        f"{name}.qkv.weight": tuple(
            heads * module.config.channels_per_head
            for heads in (module.config.n_head, module.config.key_value_heads, module.config.key_value_heads)
        )
        for name, module in model.named_modules()
        if isinstance(module, CausalAttention)
    }


class CombinedOptimizer:
    """Muon and AdamW as one optimizer: one step, one learning-rate factor, one state by parameter name."""

    def __init__(self, groups: list[ParameterGroup], train_config: TrainConfig) -> None:
        self.groups = groups
        self._factor = 1.0
        self._optimizers: dict[str, torch.optim.Optimizer] = {}
        self._names: dict[str, list[str]] = {}
        for kind in ("muon", "adamw"):
            chosen = [group for group in groups if group.optimizer == kind]
            if chosen:
                self._optimizers[kind] = _build(kind, chosen, train_config)
                self._names[kind] = [name for group in chosen for name in group.parameters]

    def step(self) -> None:
        """Update all parameters from their gradients."""
        for optimizer in self._optimizers.values():
            optimizer.step()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for optimizer in self._optimizers.values():
            optimizer.zero_grad(set_to_none=True)

    def set_learning_rate_factor(self, factor: float) -> None:
        """Set every group's rate to its peak rate times `factor` (from `training.schedules`)."""
        self._factor = factor
        for optimizer in self._optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["peak_learning_rate"] * factor

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, as plain data; the tensors are the live ones, not copies.

        {"learning_rate_factor": float, "muon": {name: {entry: tensor}}, "adamw": {name: {entry: tensor}}}
        """
        state: dict[str, Any] = {"learning_rate_factor": self._factor}
        for kind, optimizer in self._optimizers.items():
            entries = optimizer.state_dict()["state"]
            state[kind] = {name: dict(entries[i]) for i, name in enumerate(self._names[kind]) if i in entries}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken; raises ValueError when it belongs to other parameters."""
        for kind in set(self._optimizers) | (set(state) - {"learning_rate_factor"}):
            known, given = set(self._names.get(kind, ())), set(state.get(kind, ()))
            if given - known or (given and known - given):
                raise ValueError(f"the saved {kind} state does not fit this model: {sorted(known ^ given)[0]}")
        for kind, optimizer in self._optimizers.items():
            entries = {i: state[kind][name] for i, name in enumerate(self._names[kind]) if name in state.get(kind, {})}
            optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
        self.set_learning_rate_factor(float(state["learning_rate_factor"]))


def _build(kind: str, groups: list[ParameterGroup], train_config: TrainConfig) -> torch.optim.Optimizer:
    settings: list[dict[str, Any]] = [
        {
            "params": list(group.parameters.values()),
            "lr": group.learning_rate,
            "peak_learning_rate": group.learning_rate,
            "weight_decay": group.weight_decay,
        }
        for group in groups
    ]
    if kind == "muon":
        for setting, group in zip(settings, groups, strict=True):
            setting["row_blocks"] = list(group.row_blocks)
        return Muon(settings, momentum=train_config.momentum)
    fused = all(p.device.type in ("cpu", "cuda", "mps") for group in groups for p in group.parameters.values())
    return torch.optim.AdamW(settings, betas=(train_config.beta1, train_config.beta2), fused=fused)


def build_optimizer(model: nn.Module, train_config: TrainConfig) -> CombinedOptimizer:
    """The optimizer that the config asks for, over all trainable parameters of a model."""
    return CombinedOptimizer(parameter_groups(model, train_config), train_config)
