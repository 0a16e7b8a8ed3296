"""What a run takes when nothing is named follows from its length, its text and the arithmetic of the machine."""

from typing import Any

import pytest
import torch

from training import recipe
from training.config import TrainConfig
from training.recipe import default_preset, dropout_for, weight_decay_for


@pytest.mark.parametrize(
    ("typed", "has_bf16", "preset"),
    [
        ({}, False, "nano"),
        ({}, True, "mini"),
        ({"precision": "fp32"}, True, "nano"),
        ({"minutes": 9.9}, False, "nano"),
        ({"minutes": 10.0}, False, "mini"),
        ({"steps": 5}, False, "mini"),
    ],
)
def test_only_a_short_run_on_a_slow_processor_is_given_the_smaller_one(
    monkeypatch: pytest.MonkeyPatch, typed: dict[str, Any], has_bf16: bool, preset: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_bf16})
    assert default_preset(TrainConfig(**typed, device="cpu")) == preset


def test_a_gpu_trains_mini_whatever_the_processor_beside_it_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "choose_device", lambda name: torch.device("mps"))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})
    assert default_preset(TrainConfig()) == "mini"


def test_only_a_text_that_is_read_many_times_is_kept_from_being_learnt_by_heart() -> None:
    assert (weight_decay_for(4.0), dropout_for(4.0, 0.2)) == (0.1, 0.0)
    assert (weight_decay_for(4.1), dropout_for(4.1, 0.2)) == (1.0, 0.2)
