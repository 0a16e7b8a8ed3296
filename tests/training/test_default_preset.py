"""The preset that a run takes when none is named follows from its length and the arithmetic of the machine."""

from typing import Any

import pytest
import torch

from training import default_preset as default_preset_module
from training.config import TrainConfig
from training.default_preset import default_preset


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
    monkeypatch.setattr(default_preset_module, "choose_device", lambda name: torch.device("mps"))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})
    assert default_preset(TrainConfig()) == "mini"
