"""A model over several processes: copied to each of them (DDP) or cut into shards (FSDP2), and back into one piece.

Both compute what one process would: the gradient of the mean loss of the whole batch. DDP (Li et al. 2020,
arxiv.org/abs/2006.15704) keeps weights, gradients and optimizer state whole everywhere. FSDP (Zhao et al. 2023,
arxiv.org/abs/2304.11277) keeps a slice of each in every process and collects one block at a time while it works.

A checkpoint holds whole tensors, however a run was spread: `whole` collects them in rank 0, `spread` hands them out.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from model.checkpoint import Checkpoint
from model.gpt import GPT
from training.distributed import Workers
from training.interruption import Interruption


def place(model: GPT, device: torch.device, workers: Workers, parallel: str) -> GPT:
    """Bring a model to its device: all of it, or with `fsdp` this process's shard of what rank 0 holds."""
    if workers.world_size == 1 or parallel != "fsdp":
        return model.to(device)
    # Kept apart, since sharding replaces the parameters; only those of rank 0 are read.
    whole_weights = {name: parameter.data for name, parameter in model.named_parameters()}
    mesh = init_device_mesh(device.type, (workers.world_size,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for method in ("loss", "token_losses"):
        register_fsdp_forward_method(model, method)
    for name, parameter in model.named_parameters():
        assert isinstance(parameter.data, DTensor)
        received = receive(whole_weights[name], workers)
        parameter.data.to_local().copy_(_shard_like(received, parameter.data).to_local())
    return model


def is_sharded(model: nn.Module) -> bool:
    """Whether this process holds only a part of the model, so that every forward pass needs all processes."""
    return any(isinstance(parameter.data, DTensor) for parameter in model.parameters())


def receive(tensor: Tensor, workers: Workers) -> Tensor:
    """Rank 0's tensor in every process, in main memory; the others pass one of equal shape and type."""
    if workers.world_size == 1:
        return tensor
    whole_tensor = tensor.cpu().contiguous() if workers.is_main else torch.empty_like(tensor, device="cpu")
    dist.broadcast(whole_tensor, 0, group=workers.control)
    return whole_tensor


def _shard_like(tensor: Tensor, parameter: DTensor) -> DTensor:
    """This process's shard of a whole tensor, cut as the parameter is."""
    mesh = parameter.device_mesh
    return distribute_tensor(tensor.to(mesh.device_type), mesh, parameter.placements, src_data_rank=None)


def spread(values: Any, parameters: Mapping[str, Tensor], workers: Workers) -> Any:
    """Hand out the tensors of an optimizer state from rank 0: {optimizer: {parameter: {entry: tensor}}}.

    What belongs to a sharded parameter and has its shape is sharded in the same way.
    """
    if workers.world_size == 1:
        return values
    result: dict[str, Any] = {}
    for kind, states in values.items():
        if not isinstance(states, dict):
            result[kind] = states
            continue
        result[kind] = {}
        for name, entries in states.items():
            result[kind][name] = {}
            for entry, tensor in entries.items():
                received, parameter = receive(tensor, workers), parameters[name].data
                if isinstance(parameter, DTensor) and tensor.shape == parameter.shape:
                    received = _shard_like(received, parameter)
                result[kind][name][entry] = received
    return result


def whole(values: Any, workers: Workers) -> Any:
    """Nested plain data with every sharded tensor in one piece in rank 0's main memory; the others get empty ones.

    All processes must call it, in the same order.
    """
    if isinstance(values, dict):
        return {name: whole(value, workers) for name, value in values.items()}
    if isinstance(values, DTensor):
        tensor = values.full_tensor()
        return tensor.cpu() if workers.is_main else torch.empty(0)
    return values


def read_once(read: Callable[[], Checkpoint | None], workers: Workers, interruption: Interruption) -> Checkpoint | None:
    """A checkpoint that rank 0 reads; the others are told all but its tensors, which the Trainer hands out."""
    found: Checkpoint | None = None
    with workers.together(interruption):
        if workers.is_main:
            found = read()
    told = workers.share(None if found is None else _with_tensors(found, _outline))
    return found if workers.is_main or told is None else _with_tensors(told, _blank)


def _with_tensors(checkpoint: Checkpoint, change: Callable[[Any], Any]) -> Checkpoint:
    return dataclasses.replace(
        checkpoint, state_dict=change(checkpoint.state_dict), training_state=change(checkpoint.training_state)
    )


def _outline(values: Any) -> Any:
    """Nested plain data with tensors that have shape and type but no content, to tell other processes about."""
    if isinstance(values, dict):
        return {name: _outline(value) for name, value in values.items()}
    return torch.empty_like(values, device="meta") if isinstance(values, Tensor) else values


def _blank(values: Any) -> Any:
    """An outline with room for content, which takes no memory until something is written there."""
    if isinstance(values, dict):
        return {name: _blank(value) for name, value in values.items()}
    return torch.empty_like(values, device="cpu") if isinstance(values, Tensor) else values


class _Loss(nn.Module):
    """The loss as a forward pass, which is what DistributedDataParallel watches."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, token_ids: Tensor, target_ids: Tensor) -> Tensor:
        """(B, T), (B, T) → scalar."""
        return self.model.loss(token_ids, target_ids)  # type: ignore[operator, no-any-return]


class LossFunction:
    """Computes the loss of a micro-batch; with DDP the gradients of all processes meet at the last one of a step."""

    def __init__(self, model: nn.Module, workers: Workers, *, compiled: bool) -> None:
        module: nn.Module = _Loss(model)
        self._copies: nn.parallel.DistributedDataParallel | None = None
        if workers.world_size > 1 and not is_sharded(model):
            # The only buffers are tables of positions, which every process computes alike and lets grow.
            module = self._copies = nn.parallel.DistributedDataParallel(module, forward_sync_buffers=False)
        if compiled:
            module.compile()
        self._module = module

    def __call__(self, token_ids: Tensor, target_ids: Tensor) -> Tensor:
        """Mean loss in nats of a micro-batch, (B, T), (B, T) → scalar."""
        return self._module(token_ids, target_ids)  # type: ignore[no-any-return]

    def accumulating(self, is_last: bool) -> AbstractContextManager[None]:
        """Around every micro-batch of a step: only after the last one do copies exchange gradients.

        Shards do so after each: whole gradients, kept for later, would need the memory that sharding saves.
        """
        if self._copies is None or is_last:
            return contextlib.nullcontext()
        return self._copies.no_sync()
