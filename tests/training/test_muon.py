"""Muon does what `torch.optim.Muon` does, to all matrices of a shape at once."""

import copy

import pytest
import torch
from torch import Tensor

from training.muon import Muon, iteration_dtype, orthogonalize, update_scale

SHAPES = [(48, 48), (48, 48), (96, 32), (32, 96), (96, 32), (7, 5)]


def parameters(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in SHAPES]


def give_gradients(params: list[Tensor], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in params:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def train(optimizer: torch.optim.Optimizer, params: list[Tensor], n_steps: int, first_seed: int = 1) -> None:
    for step in range(n_steps):
        give_gradients(params, first_seed + step)
        optimizer.step()


@pytest.mark.parametrize("scaling", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_equals_torch_muon_when_both_iterate_in_double_precision(
    monkeypatch: pytest.MonkeyPatch, scaling: str, nesterov: bool
) -> None:
    # torch's iterations always run in bfloat16; without that cast the two can be compared to the last digits.
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor.clone())
    ours, theirs = parameters(torch.float64), parameters(torch.float64)
    settings = {"lr": 0.03, "momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.2}
    train(Muon(ours, scaling=scaling, dtype=torch.float64, **settings), ours, 5)  # type: ignore[arg-type]
    train(torch.optim.Muon(theirs, adjust_lr_fn=scaling, **settings), theirs, 5)  # type: ignore[arg-type]
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=0, atol=1e-11)


def test_equals_torch_muon_in_bfloat16_within_its_rounding() -> None:
    ours, theirs, start = parameters(), parameters(), parameters()
    train(Muon(ours, lr=0.02, dtype=torch.bfloat16), ours, 5)
    train(torch.optim.Muon(theirs, lr=0.02), theirs, 5)
    for mine, reference, before in zip(ours, theirs, start, strict=True):
        # bfloat16 keeps 8 bits; five iterations in another order of summation differ by a few of the last ones.
        assert (mine - reference).norm() < 0.03 * (reference - before).norm()


def test_float32_iterations_equal_double_precision() -> None:
    matrices = torch.randn(4, 24, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = orthogonalize(matrices, dtype=torch.float64)
    torch.testing.assert_close(orthogonalize(matrices.float()).double(), exact, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("dtype", "slack"), [(torch.float32, 0.0), (torch.bfloat16, 0.03)])
def test_orthogonalized_matrices_have_singular_values_near_one(dtype: torch.dtype, slack: float) -> None:
    # Wide Gaussian matrices are well conditioned, so five iterations are enough for every direction.
    matrices = torch.randn(5, 32, 128, generator=torch.Generator().manual_seed(0))
    singular_values = torch.linalg.svdvals(orthogonalize(matrices, dtype=dtype).float())
    assert singular_values.min() > 0.65 - slack
    assert singular_values.max() < 1.25 + slack


def test_orthogonalizing_keeps_the_singular_vectors() -> None:
    matrix = torch.randn(1, 16, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    turned = left.mT @ orthogonalize(matrix, dtype=torch.float64) @ right.mT
    off_diagonal = turned - torch.diag_embed(torch.diagonal(turned, dim1=-2, dim2=-1))
    assert off_diagonal.abs().max() < 1e-12


def test_zero_gradient_moves_nothing_but_the_decay() -> None:
    parameter = torch.ones(4, 8, requires_grad=True)
    parameter.grad = torch.zeros(4, 8)
    Muon([parameter], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(parameter.detach(), torch.full((4, 8), 0.95))


def test_row_blocks_are_orthogonalized_as_separate_matrices() -> None:
    fused = torch.randn(64 + 16 + 16, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    parts = [part.clone().requires_grad_() for part in fused.detach().tensor_split((64, 80))]
    together = Muon([{"params": [fused], "row_blocks": [64, 16, 16]}], dtype=torch.float64)
    apart = Muon(parts, dtype=torch.float64)
    for seed in range(3):
        give_gradients([fused], seed)
        assert fused.grad is not None
        for part, gradient in zip(parts, fused.grad.tensor_split((64, 80)), strict=True):
            part.grad = gradient
        together.step()
        apart.step()
    torch.testing.assert_close(fused.detach(), torch.cat([part.detach() for part in parts]), rtol=0, atol=1e-6)


def test_splitting_a_large_batch_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, in_parts = parameters(torch.float64), parameters(torch.float64)
    train(Muon(at_once, dtype=torch.float64), at_once, 3)
    monkeypatch.setattr("training.muon.MAX_BATCH_ELEMENTS", 48 * 48)
    train(Muon(in_parts, dtype=torch.float64), in_parts, 3)
    for one, other in zip(at_once, in_parts, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_a_parameter_without_gradient_stays_as_it_is() -> None:
    used, unused = torch.ones(4, 4, requires_grad=True), torch.ones(4, 4, requires_grad=True)
    used.grad = torch.eye(4)
    Muon([used, unused]).step()
    assert torch.equal(unused, torch.ones(4, 4))
    assert not torch.equal(used, torch.ones(4, 4))


def test_resumed_state_continues_bit_for_bit() -> None:
    unbroken, resumed = parameters(), parameters()
    train(Muon(unbroken), unbroken, 6)
    first = Muon(resumed)
    train(first, resumed, 3)
    state = copy.deepcopy(first.state_dict())
    second = Muon(resumed)
    second.load_state_dict(state)
    train(second, resumed, 3, first_seed=4)
    assert all(torch.equal(one, other) for one, other in zip(unbroken, resumed, strict=True))


def test_scale_follows_the_shape() -> None:
    assert update_scale(256, 64) == 2.0
    assert update_scale(64, 256) == 1.0
    assert update_scale(100, 400, "match_rms_adamw") == pytest.approx(4.0)


def test_cpu_without_bfloat16_products_iterates_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert iteration_dtype(torch.device("cpu")) == torch.float32
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert iteration_dtype(torch.device("cpu")) == torch.bfloat16


def test_refuses_what_is_no_matrix_and_blocks_that_do_not_add_up() -> None:
    with pytest.raises(ValueError, match=r"shape \[3\]"):
        Muon([torch.zeros(3, requires_grad=True)])
    with pytest.raises(ValueError, match="do not add up"):
        Muon([{"params": [torch.zeros(6, 2, requires_grad=True)], "row_blocks": [2, 2]}])
