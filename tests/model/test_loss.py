"""The chunked loss equals torch's cross-entropy over all logits, and never holds them."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from model import loss as loss_module
from model.loss import linear_cross_entropy, token_losses


def example(n: int, c: int, v: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, c, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(v, c, generator=generator).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, v, (n,), generator=generator)


@pytest.mark.parametrize("chunk_logits", [2**22, 1, 20 * 37], ids=["one-chunk", "smallest", "last-one-shorter"])
def test_value_and_gradients_equal_torch_to_ten_digits(monkeypatch: pytest.MonkeyPatch, chunk_logits: int) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_LOGITS", chunk_logits)
    hidden, weight, targets = example(50, 8, 37)
    ours, theirs = linear_cross_entropy(hidden, weight, targets), F.cross_entropy(hidden @ weight.T, targets)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    # Scaled, as gradient accumulation does.
    mine = torch.autograd.grad(ours * 0.25, (hidden, weight))
    reference = torch.autograd.grad(theirs * 0.25, (hidden, weight))
    torch.testing.assert_close(mine, reference, rtol=0, atol=1e-10)


def test_gradients_agree_with_finite_differences() -> None:
    hidden, weight, targets = example(5, 3, 7)
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, targets), (hidden, weight))


def test_a_frozen_head_or_body_gets_no_gradient() -> None:
    hidden, weight, targets = example(20, 8, 37)
    reference = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), hidden)
    only_hidden = torch.autograd.grad(linear_cross_entropy(hidden, weight.detach(), targets), hidden)
    torch.testing.assert_close(only_hidden, reference)
    linear_cross_entropy(hidden.detach(), weight, targets).backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is None
    assert weight.grad is not None


def test_enormous_logits_give_a_finite_loss() -> None:
    hidden, weight, targets = example(20, 8, 37, torch.float32)
    loss = linear_cross_entropy(hidden * 1e4, weight, targets)
    torch.testing.assert_close(loss, F.cross_entropy(hidden * 1e4 @ weight.T, targets))
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, (hidden, weight)))


def test_single_losses_equal_torch_and_average_to_the_loss() -> None:
    hidden, weight, targets = example(50, 8, 37, torch.float32)
    each = token_losses(hidden, weight, targets)
    torch.testing.assert_close(each, F.cross_entropy(hidden @ weight.T, targets, reduction="none"))
    torch.testing.assert_close(each.mean(), linear_cross_entropy(hidden, weight, targets))
    assert not each.requires_grad


def test_under_autocast_the_loss_is_that_of_bfloat16_products_and_gradients_keep_their_precision() -> None:
    hidden, weight, targets = example(200, 16, 37, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, targets)
    gradients = torch.autograd.grad(loss, (hidden, weight))
    exact = F.cross_entropy(hidden @ weight.T, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.01, atol=0)
    for mine, reference in zip(gradients, torch.autograd.grad(exact, (hidden, weight)), strict=True):
        assert mine.dtype == torch.float32
        assert (mine - reference).norm() < 0.02 * reference.norm()


class LargestTensor(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the number of elements of the largest tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.n_elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.n_elements = max(self.n_elements, tensor.numel())
        return result


def test_logits_of_all_positions_never_exist_at_once() -> None:
    hidden, weight, targets = example(512, 4, 100_000, torch.float32)
    with LargestTensor() as whole:
        F.cross_entropy(hidden @ weight.T, targets).backward()  # type: ignore[no-untyped-call]
    with LargestTensor() as largest:
        linear_cross_entropy(hidden, weight, targets).backward()  # type: ignore[no-untyped-call]
        token_losses(hidden, weight, targets)
    assert whole.n_elements == 512 * 100_000  # the measure itself works
    assert largest.n_elements <= loss_module.CHUNK_LOGITS
