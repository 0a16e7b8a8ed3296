"""The compiled product of a few rows against torch's in float64, and the compiled step against the blocks of torch."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from command_line import UserError
from model import decoding_kernels
from model.config import ModelConfig
from model.decoding_kernels import MOST_ROWS, FewRowsLinear, WeightType, compiled, use_decoding_kernels
from model.gpt import GPT
from model.kv_cache import NO_TOKEN, KVCache
from tests.model.conftest import ARCHITECTURES, SMALL

Build = Callable[[ModelConfig], GPT]
WEIGHT_TYPES: tuple[WeightType, ...] = ("fp32", "bf16", "int8")
ROTARY = [name for name, fields in ARCHITECTURES.items() if fields.get("positions") == "rotary"]

try:
    compiled()
except UserError as error:
    pytest.skip(f"the kernel cannot be compiled: {error}", allow_module_level=True)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(n_threads)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantized(weight: Tensor) -> Tensor:
    """Row by row, element by element, as the class promises: the largest weight is 127 steps."""
    rows = []
    for row in weight.double():
        step = row.abs().max() / 127
        rows.append(row if step == 0 else torch.stack([(value / step).round() * step for value in row]))
    return torch.stack(rows)


def stored(weight: Tensor, weight_type: WeightType) -> Tensor:
    """What is left of a matrix in each width, in float64."""
    return {"fp32": weight.double(), "bf16": weight.bfloat16().double(), "int8": quantized(weight)}[weight_type]


# Sizes around the groups of four rows, the vectors of a processor, the chunks of 1024 and the border of threads.
@pytest.mark.parametrize(("n_outputs", "n_inputs"), [(1, 1), (3, 5), (4, 16), (7, 31), (130, 1024), (34, 2049)])
@pytest.mark.parametrize("n_rows", [1, 3, MOST_ROWS, MOST_ROWS + 1])
@pytest.mark.parametrize("weight_type", WEIGHT_TYPES)
def test_equals_the_product_in_float64(weight_type: WeightType, n_rows: int, n_outputs: int, n_inputs: int) -> None:
    weight, bias, inputs = random(n_outputs, n_inputs), random(n_outputs, seed=1), random(n_rows, n_inputs, seed=2)
    expected = inputs.double() @ stored(weight, weight_type).mT + bias.double()
    ours = FewRowsLinear(weight, bias, weight_type)(inputs)
    # Rounding of float32, and for int8 inputs in steps of 1/16383 of the largest: half a step for each product.
    step = inputs.abs().max() / 16383 * weight.abs().max() * n_inputs / 2 if weight_type == "int8" else 0.0
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=float(1e-6 * n_inputs**0.5 * 10 + step))


@pytest.mark.parametrize("weight_type", WEIGHT_TYPES)
def test_neither_the_other_rows_nor_the_threads_change_a_bit(weight_type: WeightType) -> None:
    layer, inputs = FewRowsLinear(random(130, 256), None, weight_type), random(MOST_ROWS, 256)
    together = layer(inputs)
    torch.set_num_threads(1)
    assert torch.equal(together, torch.cat([layer(row[None]) for row in inputs]))


def test_the_sums_of_the_largest_whole_numbers_do_not_overflow() -> None:
    layer = FewRowsLinear(torch.ones(4, 5000), None, "int8")
    torch.testing.assert_close(layer(torch.ones(1, 5000)), torch.full((1, 4), 5000.0))


@pytest.mark.parametrize("weight_type", WEIGHT_TYPES)
def test_numbers_that_are_none_stay_visible(weight_type: WeightType) -> None:
    layer, inputs = FewRowsLinear(random(8, 32), None, weight_type), random(2, 32)
    inputs[1, 7] = torch.inf
    outputs = layer(inputs)
    assert outputs[0].isfinite().all()
    assert not outputs[1].isfinite().any()
    weight = random(8, 32)
    weight[3, 3] = torch.nan
    assert FewRowsLinear(weight, None, weight_type)(inputs[:1])[0].isnan().tolist() == [row == 3 for row in range(8)]
    inputs[1, 7] = torch.nan
    outputs = layer(inputs)
    assert outputs[0].isfinite().all()
    assert outputs[1].isnan().all()


@pytest.mark.parametrize("weight_type", WEIGHT_TYPES)
def test_inputs_next_to_nothing_give_next_to_nothing(weight_type: WeightType) -> None:
    for size in (1e-20, 1e-30, 1e-36, 1e-42):
        outputs = FewRowsLinear(random(8, 32), None, weight_type)(size * random(2, 32))
        assert outputs.abs().max() <= 100 * size
        assert size < 1e-33 or outputs.abs().max() > 0


def test_inputs_may_be_views_with_gaps() -> None:
    layer, inputs = FewRowsLinear(random(6, 16), None, "fp32"), random(2, 3, 32)
    torch.testing.assert_close(layer(inputs[:, -1, ::2]), inputs[:, -1, ::2] @ random(6, 16).mT)


@pytest.mark.parametrize("weight_type", WEIGHT_TYPES)
def test_cached_decoding_equals_a_model_of_the_same_stored_weights(
    config: ModelConfig, build: Build, weight_type: WeightType
) -> None:
    model, reference = build(config), build(dataclasses.replace(config, tied_head=False)).double()
    if config.tied_head:
        reference.load_state_dict({**model.double().state_dict()}, strict=False)
        reference.head.weight = nn.Parameter(model.token_embedding.weight.detach().clone())
        model.float()
    for module in reference.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(stored(module.weight.detach().float(), weight_type))
    use_decoding_kernels(model, weight_type)
    tokens = torch.randint(0, config.vocab_size, (2, 20), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        cache = KVCache(config, 2)
        ours = [model(tokens[:, :12], cache), *(model(tokens[:, at : at + 1], cache) for at in range(12, 20))]
        tolerance = 5e-3 if weight_type == "int8" else 1e-4
        torch.testing.assert_close(torch.cat(ours, dim=1).double(), reference(tokens), rtol=tolerance, atol=tolerance)


def decode(model: GPT, tokens: Tensor, cache: KVCache) -> Tensor:
    """Hidden states of the tokens (B, T), given one after the other: (B, T, C)."""
    with torch.inference_mode():
        return torch.cat([model.hidden_states(newest.unsqueeze(1), cache) for newest in tokens.T], dim=1)


# Every architecture option, and with rotary positions also beyond the window.
@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in ARCHITECTURES]
    + [(name, options) for name in ROTARY for options in ({"rolling": True, "capacity": 8}, {"capacity": 40})],
    ids=str,
)
def test_one_call_equals_the_parts_of_the_model_one_by_one(build: Build, name: str, options: dict[str, Any]) -> None:
    config = ModelConfig(**{**ARCHITECTURES[name], **SMALL, **({"context_length": 8} if options else {})})
    torch.set_num_threads(1)
    model, reference = build(config), build(config)
    use_decoding_kernels(model, "fp32")
    tokens = torch.randint(0, config.vocab_size, (MOST_ROWS + 1, 16), generator=torch.Generator().manual_seed(4))
    prompts = tokens[:, :6].clone()
    for row, prompt in enumerate(prompts):
        prompt[4 + row % 3 :] = NO_TOKEN

    def decoded(model: GPT, n_rows: int) -> tuple[Tensor, KVCache]:
        cache = KVCache(config, n_rows, **options)
        with torch.inference_mode():
            model.hidden_states(prompts[:n_rows], cache)
        return decode(model, tokens[:n_rows, 6:], cache), cache

    expected, expected_cache = decoded(reference, MOST_ROWS + 1)
    for n_rows in (1, 3, MOST_ROWS, MOST_ROWS + 1):
        ours, cache = decoded(model, n_rows)
        assert model.decoding_step is not None
        assert model.decoding_step.can_take(tokens[:n_rows, :1], cache) == (n_rows <= MOST_ROWS)
        torch.testing.assert_close(ours, expected[:n_rows], rtol=0, atol=3e-5)
        torch.testing.assert_close(cache.keys, expected_cache.keys[:, :n_rows], rtol=0, atol=3e-5)
        torch.testing.assert_close(cache.values, expected_cache.values[:, :n_rows], rtol=0, atol=3e-5)


@pytest.mark.parametrize("name", ["gpt2", "ours"])
def test_a_step_refuses_what_it_has_no_place_for(build: Build, name: str) -> None:
    config = ModelConfig(**{**ARCHITECTURES[name], **SMALL})
    model, cache = build(config), KVCache(config, 2, capacity=3)
    use_decoding_kernels(model, "fp32")
    with pytest.raises(IndexError, match=f"not below the vocabulary of {config.vocab_size}"):
        decode(model, torch.tensor([[0], [config.vocab_size]]), cache)
    assert cache.lengths == [0, 0]
    decode(model, torch.zeros(2, 3, dtype=torch.int64), cache)
    with pytest.raises(ValueError, match="the cache holds 3 tokens a row, but 4 are needed"):
        decode(model, torch.zeros(2, 1, dtype=torch.int64), cache)
    for other in (KVCache(config, 1), KVCache(dataclasses.replace(config, n_layer=1), 2)):
        with pytest.raises(ValueError, match=r"a cache of shape \(.*\) cannot take what needs one of \("):
            decode(model, torch.zeros(2, 1, dtype=torch.int64), other)


@pytest.mark.parametrize("weight_type", WEIGHT_TYPES)
@pytest.mark.parametrize("name", ["gpt2", "llama", "ours"])
def test_neither_the_other_rows_nor_the_threads_change_a_bit_of_a_step(
    build: Build, name: str, weight_type: WeightType
) -> None:
    # So wide that already one row is worth several threads.
    config = ModelConfig(**{**ARCHITECTURES[name], **SMALL, "n_embd": 120})
    model = build(config)
    use_decoding_kernels(model, weight_type)
    tokens = torch.randint(0, 50, (MOST_ROWS, 3), generator=torch.Generator().manual_seed(5))
    torch.set_num_threads(1)
    expected_cache = KVCache(config, MOST_ROWS)
    expected = decode(model, tokens, expected_cache)
    for n_threads, n_rows in ((2, 1), (2, MOST_ROWS), (3, 3)):
        torch.set_num_threads(n_threads)
        cache = KVCache(config, n_rows)
        assert torch.equal(decode(model, tokens[:n_rows], cache), expected[:n_rows])
        assert torch.equal(cache.keys, expected_cache.keys[:, :n_rows])
        assert torch.equal(cache.values, expected_cache.values[:, :n_rows])


def test_a_missing_or_failing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"no C\+\+ compiler .* keep --precision fp32"):
        decoding_kernels.compiled.__wrapped__()
    failing = tmp_path / "c++"
    failing.write_text("#!/bin/sh\necho out of ideas >&2\nexit 1\n")
    failing.chmod(0o755)
    with pytest.raises(UserError, match=r"could not compile decoding_kernels.cpp \(out of ideas\); set CXX"):
        decoding_kernels.compiled.__wrapped__()


@pytest.mark.parametrize("first", [0, 1, 1500, 3 * 2**20 - 5])
def test_gathering_weights_in_large_pages_leaves_every_number_in_its_place(first: int) -> None:
    whole = torch.arange(3 * 2**20, dtype=torch.float32)
    decoding_kernels._gather_in_large_pages(whole[first:])
    assert torch.equal(whole, torch.arange(3 * 2**20, dtype=torch.float32))
