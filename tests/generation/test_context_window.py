"""Cached decoding against uncached full passes, inside and far beyond the context window."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from command_line import UserError, option_types
from generation.config import SamplingConfig
from generation.context_window import ContextWindow
from model.config import ModelConfig
from model.gpt import GPT
from tests.generation.conftest import TINY, VARIANTS, BuildModel

CONTEXT = 16
TOLERANCE = 1e-5
LONG = SamplingConfig(max_new_tokens=10**6)


def decode_greedily(window: ContextWindow, n_tokens: int) -> Iterator[tuple[list[list[int]], Tensor]]:
    """Take the best token of each row n times; yields the rows so far and the logits behind them, (B, V)."""
    logits = window.start()
    rows = [row[row >= 0].tolist() for row in window.token_ids]
    for _ in range(n_tokens):
        yield rows, logits
        best = logits.argmax(dim=-1)
        rows = [[*row, token] for row, token in zip(rows, best.tolist(), strict=True)]
        logits = window.step(best)


def visible_tokens(prompt_length: int, tokens: list[int], n_kept: int, context_length: int = CONTEXT) -> list[int]:
    """The part of `tokens` that the model sees when a full window keeps its newest n tokens, replayed one by one."""
    visible = tokens[:prompt_length]
    for token in tokens[prompt_length:]:
        if len(visible) == context_length:
            visible = [*visible, token][-n_kept:]
        else:
            visible = [*visible, token]
    return visible


@torch.inference_mode()
def full_pass(model: GPT, tokens: list[int]) -> Tensor:
    logits: Tensor = model(torch.tensor([tokens]))
    return logits[0, -1]


@torch.inference_mode()
def full_passes(model: GPT, texts: list[list[int]]) -> Tensor:
    """The logits behind each text without any cache, (N, V); texts of equal length share a pass."""
    logits = torch.empty(len(texts), model.config.vocab_size)
    for length in {len(tokens) for tokens in texts}:
        chosen = [index for index, tokens in enumerate(texts) if len(tokens) == length]
        logits[chosen] = model(torch.tensor([texts[index] for index in chosen]))[:, -1]
    return logits


ARCHITECTURES: dict[str, dict[str, Any]] = {
    **VARIANTS,
    "head": {
        "feed_forward": "gelu",
        "n_feed_forward": 24,
        "head_width": 6,
        "bias": False,
        "feed_forward_bias": True,
        "bigram_rows": 64,
    },
    "linear": {"positions": "rotary", "rope_scaling": "linear", "rope_scaling_factor": 4.0, "trigram_rows": 64},
    "llama3": {
        "positions": "rotary",
        "rope_theta": 500.0,
        "rope_scaling": "llama3",
        "rope_scaling_factor": 8.0,
        "rope_low_frequency_factor": 1.5,
        "rope_high_frequency_factor": 3.0,
        "rope_original_context": 32,
        "feed_forward_bias": False,
    },
}


def test_the_architectures_cover_every_option_of_a_model() -> None:
    defaults = ModelConfig(**TINY)
    of_no_matter = {*TINY, "initialization", "dropout", "norm_eps"}  # sizes, and what changes weights but not decoding
    for name, kind in option_types(ModelConfig).items():
        default = getattr(defaults, name)
        used = {default, *(options.get(name, default) for options in ARCHITECTURES.values())}
        if name not in of_no_matter:
            assert used >= set(kind.choices), f"{name} is tested with {used} only"
            assert len(used) > 1, f"{name} is tested with {used} only"


@pytest.mark.parametrize(("policy", "n_kept", "n_tokens"), [("window", CONTEXT // 2, 500), ("exact", CONTEXT, 100)])
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_cached_tokens_equal_uncached_passes_over_the_kept_ones(
    build_model: BuildModel, architecture: str, policy: Any, n_kept: int, n_tokens: int
) -> None:
    model = build_model("gpt2", **ARCHITECTURES[architecture])
    prompts = [[5, 6, 7], [9], list(range(CONTEXT))]
    window = ContextWindow(model, prompts, [0, 1, 2], SamplingConfig(max_new_tokens=10**6, cache=policy))
    cached: list[Tensor] = []
    seen: list[list[int]] = []
    for rows, logits in decode_greedily(window, n_tokens):
        cached.append(logits)
        seen += [visible_tokens(len(prompt), row, n_kept) for prompt, row in zip(prompts, rows, strict=True)]
    actual, expected = torch.cat(cached), full_passes(model, seen)
    assert (actual - expected).abs().max() <= TOLERANCE
    assert torch.equal(actual.argmax(dim=-1), expected.argmax(dim=-1))


class BandedPass:
    """Stands in for a KV cache in one full pass in which every position sees the last CONTEXT positions."""

    def __init__(self, n_tokens: int) -> None:
        self.lengths = [0]
        self.is_causal = False
        distance = torch.arange(n_tokens).unsqueeze(1) - torch.arange(n_tokens)
        self.mask = (distance >= 0) & (distance < CONTEXT)

    def begin(self, token_ids: Tensor) -> Tensor:
        return torch.arange(token_ids.shape[1])

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return keys, values

    def with_history(self, token_ids: Tensor) -> Tensor:
        return F.pad(token_ids, (2, 0), value=-1)

    def end(self, token_ids: Tensor) -> None:
        pass


@pytest.mark.parametrize("architecture", ["llama", "ours", "linear", "llama3"])
def test_rolling_logits_equal_a_banded_full_pass(build_model: BuildModel, architecture: str) -> None:
    model = build_model("gpt2", **ARCHITECTURES[architecture])
    window = ContextWindow(model, [[5, 6, 7], [9]], [0, 1], SamplingConfig(max_new_tokens=10**6, cache="rolling"))
    for rows, logits in decode_greedily(window, 80):
        for row, of_row in zip(rows, logits, strict=True):
            with torch.inference_mode():
                banded: Any = BandedPass(len(row))
                expected = model(torch.tensor([row]), banded)[0, -1]
            assert (of_row - expected).abs().max() <= TOLERANCE


def test_rolling_refuses_learned_positions_and_names_the_way_out(build_model: Callable[..., GPT]) -> None:
    with pytest.raises(UserError, match=r"--cache rolling .* use --cache window or --cache exact"):
        ContextWindow(build_model("gpt2"), [[1]], [0], SamplingConfig(cache="rolling"))


@pytest.mark.parametrize("variant", ["gpt2", "ours"])
def test_a_row_does_not_depend_on_the_rows_beside_it(build_model: Callable[..., GPT], variant: str) -> None:
    model = build_model(variant)
    prompts = [[5, 6, 7], list(range(40, 40 + CONTEXT)), [9, 8]]
    together = [logits for _, logits in decode_greedily(ContextWindow(model, prompts, [0, 1, 2], LONG), 40)]
    for index in range(3):
        alone = [logits[0] for _, logits in decode_greedily(ContextWindow(model, prompts, [index], LONG), 40)]
        for step, logits in enumerate(together):
            assert (logits[index] - alone[step]).abs().max() <= TOLERANCE


def test_rows_that_go_on_are_untouched_when_others_leave(build_model: Callable[..., GPT]) -> None:
    model = build_model("ours")
    whole = ContextWindow(model, [[1, 2], [3]], [0, 0, 1], LONG)
    fewer = ContextWindow(model, [[1, 2], [3]], [0, 0, 1], LONG)
    whole.start()
    fewer.start()
    tokens = torch.tensor([4, 5, 6])
    for step in range(30):
        expected = whole.step(tokens)
        if step == 3:
            fewer.keep_rows([1, 2])
        logits = fewer.step(tokens if step < 3 else tokens[1:])
        assert (logits - (expected if step < 3 else expected[1:])).abs().max() <= TOLERANCE
    assert fewer.token_ids.tolist() == [[1, 2] + [5] * 30, [3] + [6] * 30 + [-1]]
    assert fewer.prompt_lengths.tolist() == [2, 1]


@pytest.mark.parametrize("context_length", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("variant", ["gpt2", "ours"])
def test_a_window_smaller_than_what_embeddings_look_back_to_still_generates(
    build_model: BuildModel, variant: str, context_length: int
) -> None:
    model = build_model(variant, context_length=context_length)
    n_kept = max(1, context_length // 2)
    for rows, logits in decode_greedily(ContextWindow(model, [[7]], [0], LONG), 20):
        expected = full_pass(model, visible_tokens(1, rows[0], n_kept, context_length))
        assert (logits[0] - expected).abs().max() <= TOLERANCE


def test_the_tokens_of_a_long_text_are_all_remembered(build_model: Callable[..., GPT]) -> None:
    window = ContextWindow(build_model("gpt2"), [[1, 2]], [0], LONG)
    window.start()
    for token in range(200):
        window.step(torch.tensor([token]))
    assert window.token_ids.tolist() == [[1, 2, *range(200)]]


@pytest.mark.parametrize("variant", ["llama", "ours"])
def test_sampling_before_the_first_training_step_leaves_the_model_trainable(
    build_model: Callable[..., GPT], variant: str
) -> None:
    model = build_model(variant)
    untouched = copy.deepcopy(model)
    ContextWindow(model, [[1, 2]], [0], LONG).start()
    for trained in (model, untouched):
        trained.loss(torch.tensor([[1, 2, 3]]), torch.tensor([[2, 3, 4]])).backward()  # type: ignore[no-untyped-call]
    expected = {name: parameter.grad for name, parameter in untouched.named_parameters()}
    torch.testing.assert_close({name: parameter.grad for name, parameter in model.named_parameters()}, expected)
