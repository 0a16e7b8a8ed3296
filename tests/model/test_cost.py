"""Closed forms against the real thing: a built model's parameters, counted operations, a process's measured peak."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.config import PRESETS, ModelConfig, preset_config
from model.cost import (
    Precision,
    _kept_per_token,
    adapter_parameters,
    block_matrices,
    count_parameters,
    flops_per_token,
    parameters_by_part,
    training_memory,
)
from model.gpt import GPT
from model.initialization import outlined
from training.config import TrainConfig
from training.optimizers import build_optimizer

PROJECT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {"vocab_size": 100, "context_length": 16, "n_layer": 2, "n_head": 4, "n_embd": 32}

VARIANTS: list[dict[str, Any]] = [
    {},
    {"bias": False},
    {"feed_forward_bias": False},
    {"normalization": "rmsnorm"},
    {"positions": "rotary"},
    {"qk_norm": True},
    {"n_kv_head": 2},
    {"n_kv_head": 1, "positions": "rotary"},
    {"head_width": 24},
    {"feed_forward": "swiglu"},
    {"feed_forward": "swiglu", "n_feed_forward": 80, "bias": False},
    {"feed_forward": "relu_squared"},
    {"tied_head": False},
    {"bigram_rows": 30, "trigram_rows": 50},
    {"dropout": 0.1},
    {**PRESETS["mini"], "bigram_rows": 30, "n_embd": 32, "context_length": 64},
    {**PRESETS["mini-llama"], "n_embd": 32, "context_length": 64},
]


def small(options: dict[str, Any]) -> ModelConfig:
    defaults = {"vocab_size": 100, "context_length": 64, "n_layer": 3, "n_head": 4, "n_embd": 32}
    return ModelConfig(**{**defaults, **options})


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_counted_parameters_equal_the_built_model(options: dict[str, Any]) -> None:
    config = small(options)
    model = GPT(config)
    parts = dict.fromkeys(parameters_by_part(config), 0)
    for name, parameter in model.named_parameters():
        part = next((part for part in parts if part in name.split(".") or f"{part}." in name), "normalization")
        parts["normalization" if "norm" in name else part] += parameter.numel()
    assert parts == parameters_by_part(config)
    assert block_matrices(config) == sum(p.numel() for p in model.blocks.parameters() if p.ndim == 2)


@pytest.mark.parametrize(
    ("preset", "published"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
        ("llama2-7b", 6_738_415_616),
    ],
)
def test_presets_have_the_published_number_of_parameters(preset: str, published: int) -> None:
    config = preset_config(preset)
    assert count_parameters(config) == published
    with outlined():
        model = GPT(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == published


@pytest.mark.parametrize("options", [options for options in VARIANTS if not options.get("dropout")], ids=str)
def test_operations_of_decoding_and_training_equal_the_counted_ones(options: dict[str, Any]) -> None:
    config = small(options)
    model = GPT(config)
    tokens = torch.randint(0, 100, (2, 49))
    with sdpa_kernel(SDPBackend.MATH):  # made of plain products, which the counter knows
        with FlopCounterMode(display=False) as forward, torch.no_grad():
            model(tokens[:, :-1])
        with FlopCounterMode(display=False) as training:
            model.loss(tokens[:, :-1], tokens[:, 1:]).backward()  # type: ignore[no-untyped-call]
    assert forward.get_total_flops() == 2 * 48 * flops_per_token(config, 48, training=False)
    assert training.get_total_flops() == 2 * 48 * flops_per_token(config, 48, training=True)


def test_operations_follow_the_papers_formula_for_gpt2() -> None:
    config = preset_config("gpt2")
    n = 124_439_808 - 1024 * 768  # without positions; the head counts, though it shares the embedding's numbers
    vectors = 12 * (13 * 768) + 2 * 768  # biases and gains, which no product counts
    assert flops_per_token(config, 1024, training=True) == 6 * (n - vectors) + 12 * 12 * 12 * 64 * 1024


def kept_bytes(config: ModelConfig, precision: Precision, batch_size: int, context: int) -> int:
    """Bytes of all different storages that the layers save for the backward pass."""
    model = GPT(config)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage
        return tensor

    tokens = torch.randint(0, config.vocab_size, (batch_size, context))
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"),
    ):
        model.hidden_states(tokens)
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_activations_are_what_autograd_saves(options: dict[str, Any], precision: Precision) -> None:
    config = small(options)
    copies = 2 * block_matrices(config) if precision == "bf16" else 0
    predicted = 4 * 64 * _kept_per_token(config, 64, precision, "cpu") + copies
    # Left out: what a norm keeps per row, a bias, a table of angles; small at any real size, visible at 32 channels.
    assert predicted == pytest.approx(kept_bytes(config, precision, 4, 64), rel=0.08)


PEAK_OF_TRAINING = """
import json, pathlib, sys, torch
from model.config import ModelConfig, preset_config
from model.gpt import GPT
from model.lora import add_adapters
from training.config import TrainConfig
from training.optimizers import build_optimizer
from training.precision import keep_freed_memory

def peak():
    return 1024 * int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

def train(config, batch_size):
    model = GPT(config)
    if int(sys.argv[6]):
        add_adapters(model, int(sys.argv[6]), 16.0, "all")
    optimizer = build_optimizer(model, TrainConfig(optimizer=sys.argv[3]))
    tokens = torch.randint(0, config.vocab_size, (batch_size, config.context_length + 1))
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=sys.argv[4] == "bf16"):
            loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

keep_freed_memory()  # as training does
train(ModelConfig(vocab_size=50, context_length=16, n_layer=1, n_head=2, n_embd=64), 1)  # loads the libraries
before = peak()
train(preset_config(sys.argv[1], **json.loads(sys.argv[5])), int(sys.argv[2]))
print(peak() - before)
"""


slow = pytest.mark.slow
TWO_LAYERS = {"n_layer": 2, "context_length": 256}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from Linux's /proc")
@pytest.mark.parametrize(
    ("preset", "batch_size", "optimizer", "precision", "options", "rank"),
    [
        pytest.param("small", 12, "muon", "fp32", {"vocab_size": 2048, "n_layer": 3}, 0, id="small-muon-fp32"),
        pytest.param(
            "small", 12, "muon", "fp32", {"vocab_size": 2048, "n_layer": 3}, 8, id="small-adapters", marks=slow
        ),
        pytest.param("small", 16, "muon", "bf16", {"vocab_size": 2048}, 0, id="small-muon-bf16", marks=slow),
        pytest.param("small-llama", 8, "adamw", "fp32", {"vocab_size": 300}, 0, id="llama-adamw", marks=slow),
        pytest.param("small-llama", 8, "adamw", "fp32", {"vocab_size": 300}, 64, id="llama-adapters", marks=slow),
        pytest.param("gpt2", 4, "adamw", "fp32", TWO_LAYERS, 0, id="gpt2-adamw", marks=slow),
        pytest.param("gpt2", 4, "muon", "fp32", TWO_LAYERS, 8, id="gpt2-adapters", marks=slow),
    ],
)
def test_predicted_training_memory_is_within_a_fifth_of_the_measured_peak(
    preset: str, batch_size: int, optimizer: Any, precision: Precision, options: dict[str, Any], rank: int
) -> None:
    arguments = [preset, str(batch_size), optimizer, precision, json.dumps(options), str(rank)]
    run = subprocess.run(
        [sys.executable, "-c", PEAK_OF_TRAINING, *arguments], capture_output=True, text=True, check=True, cwd=PROJECT
    )
    config = preset_config(preset, **options)
    n_adapters = adapter_parameters(config, rank, "all")
    predicted = training_memory(config, batch_size, config.context_length, optimizer, precision, n_adapters=n_adapters)
    assert predicted.total == pytest.approx(int(run.stdout), rel=0.2)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("preset", ["mini", "gpt2"])
def test_weights_gradients_and_optimizer_state_are_counted_exactly(preset: str, optimizer: Any) -> None:
    config = preset_config(preset, **SMALL)
    model = GPT(config)
    combined = build_optimizer(model, TrainConfig(optimizer=optimizer))
    tokens = torch.randint(0, 100, (2, 17))
    model.loss(tokens[:, :-1], tokens[:, 1:]).backward()  # type: ignore[no-untyped-call]
    combined.step()
    memory = training_memory(config, 2, 16, optimizer)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert memory.weights == sum(parameter.nbytes for parameter in model.parameters())
    assert memory.gradients == sum(gradient.nbytes for gradient in gradients)
    kinds = [kind for name, kind in combined.state_dict().items() if name != "learning_rate_factor"]
    tensors = [tensor for kind in kinds for entry in kind.values() for tensor in entry.values()]
    assert memory.optimizer == sum(tensor.nbytes for tensor in tensors if tensor.ndim)  # but for the step counters
