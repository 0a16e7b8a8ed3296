"""Muon: gradient descent in which every matrix gets an update of equal strength in all directions.

The momentum of a weight matrix is replaced by the nearest (semi-)orthogonal matrix, found by a few Newton–Schulz
iterations, which need nothing but matrix products (Jordan et al. 2024, kellerjordan.github.io/posts/muon; scaling to
large models: Liu et al. 2025, arxiv.org/abs/2502.16982). The rule is that of `torch.optim.Muon`; here all matrices of
equal shape go through the iterations as one batch, since one small product after the other leaves a CPU half idle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

# The quintic a·x + b·x³ + c·x⁵ with the steepest slope at zero that still keeps singular values near 1: after five
# rounds they lie between about 0.7 and 1.2 (Jordan et al. 2024).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
N_ITERATIONS = 5
_EPSILON = 1e-7

MAX_BATCH_ELEMENTS = 2**24
"""Elements that go through the iterations at once (64 MB in fp32): beyond that, batching gains nothing but memory."""

Scaling = Literal["original", "match_rms_adamw"]


def update_scale(n_rows: int, n_columns: int, scaling: Scaling = "original") -> float:
    """What multiplies the learning rate of an orthogonalised update of this shape (as in `torch.optim.Muon`)."""
    if scaling == "original":
        return math.sqrt(max(1.0, n_rows / n_columns))
    return 0.2 * math.sqrt(max(n_rows, n_columns))


def iteration_dtype(device: torch.device) -> torch.dtype:
    """The number format of the iterations on a device: bfloat16 where the hardware multiplies it natively.

    Their result needs only a few bits. Measured on a 2-core AMD EPYC with AVX-512 bf16: 0.7 TFLOP/s in bfloat16, 0.2
    in float32; a CPU without such instructions only emulates bfloat16, at a fraction of float32's speed.
    """
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        native = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "arm_bf16"))
        return torch.bfloat16 if native else torch.float32
    return torch.bfloat16


def orthogonalize(matrices: Tensor, n_iterations: int = N_ITERATIONS, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bring all singular values of each matrix near 1 by Newton–Schulz: (N, rows, columns), rows ≤ columns → same."""
    a, b, c = COEFFICIENTS
    # The Frobenius norm bounds the spectral norm, so the iterations start with singular values of at most 1.
    norms = torch.linalg.matrix_norm(matrices, keepdim=True).clamp(min=_EPSILON)
    result: Tensor = (matrices / norms).to(dtype)
    for _ in range(n_iterations):
        gram = result @ result.mT  # (N, rows, rows)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        result = torch.baddbmm(result, polynomial, result, beta=a)
    return result


@dataclass(frozen=True)
class _Matrix:
    """One matrix to orthogonalise: a parameter, or some of its rows, with what belongs to it."""

    weights: Tensor
    gradient: Tensor
    momentum_buffer: Tensor
    group: dict[str, Any]

    @property
    def is_tall(self) -> bool:
        return self.weights.shape[0] > self.weights.shape[1]

    def update(self) -> Tensor:
        """What to orthogonalise, lying: a tall one is transposed, so that its Gram matrix is the smaller one."""
        momentum = self.group["momentum"]
        update = self.gradient.lerp(self.momentum_buffer, momentum) if self.group["nesterov"] else self.momentum_buffer
        return update.mT if self.is_tall else update

    def apply(self, direction: Tensor) -> None:
        """Step against an orthogonalised update."""
        n_rows, n_columns = self.weights.shape
        rate = self.group["lr"] * update_scale(n_rows, n_columns, self.group["scaling"])
        self.weights.add_(direction.mT if self.is_tall else direction, alpha=-rate)


def _batches(matrices: Iterable[_Matrix]) -> Iterator[list[_Matrix]]:
    """Matrices that may go through the iterations together: of one size, lying, and few enough for the memory."""
    alike: dict[tuple[object, ...], list[_Matrix]] = {}
    for matrix in matrices:
        key = (*sorted(matrix.weights.shape), matrix.weights.device, matrix.group["n_iterations"])
        alike.setdefault(key, []).append(matrix)
    for same in alike.values():
        n_together = max(1, MAX_BATCH_ELEMENTS // same[0].weights.numel())
        for start in range(0, len(same), n_together):
            yield same[start : start + n_together]


class Muon(torch.optim.Optimizer):
    """Muon for 2-D parameters, batched over equal shapes, with Nesterov momentum and decoupled weight decay.

    A parameter group may carry `row_blocks`: the row counts of matrices that share one parameter (queries, keys and
    values of a fused projection); each is then orthogonalised on its own. `dtype` is the format of the iterations,
    by default what `iteration_dtype` finds best for the device. Raises ValueError for parameters that are not 2-D or
    whose rows `row_blocks` does not divide up exactly.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.02,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.1,
        scaling: Scaling = "original",
        n_iterations: int = N_ITERATIONS,
        dtype: torch.dtype | None = None,
    ) -> None:
        defaults: dict[str, Any] = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "scaling": scaling,
            "n_iterations": n_iterations,
            "row_blocks": [],
        }
        super().__init__(params, defaults)
        self.dtype = dtype
        for group in self.param_groups:
            for parameter in group["params"]:
                shape = list(parameter.shape)
                if len(shape) != 2:
                    raise ValueError(f"Muon takes matrices, but a parameter has the shape {shape}")
                if group["row_blocks"] and sum(group["row_blocks"]) != shape[0]:
                    raise ValueError(f"row_blocks {group['row_blocks']} do not add up to the rows of {shape}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; returns the closure's loss, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        matrices = [matrix for group in self.param_groups for matrix in self._advance(group)]
        for batch in _batches(matrices):
            dtype = self.dtype or iteration_dtype(batch[0].weights.device)
            stacked = torch.stack([matrix.update() for matrix in batch])  # (N, rows, columns)
            directions = orthogonalize(stacked, batch[0].group["n_iterations"], dtype)
            for matrix, direction in zip(batch, directions.unbind(), strict=True):
                matrix.apply(direction)
        return loss

    def _advance(self, group: dict[str, Any]) -> Iterator[_Matrix]:
        """Advance momentum and weight decay of a group; yields the matrices whose update waits."""
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not parameters:
            return
        gradients = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        for parameter, gradient, buffer in zip(parameters, gradients, buffers, strict=True):
            sizes = group["row_blocks"] or [parameter.shape[0]]
            for parts in zip(parameter.split(sizes), gradient.split(sizes), buffer.split(sizes), strict=True):
                yield _Matrix(*parts, group)
