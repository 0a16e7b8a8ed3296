"""Cached decoding computes what a full pass computes, whatever the chunks, the rows and their lengths."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from model import attention
from model.config import ModelConfig
from model.gpt import GPT
from model.kv_cache import NO_TOKEN, KVCache

Build = Callable[[ModelConfig], GPT]
ROTARY: dict[str, Any] = {"vocab_size": 50, "n_layer": 2, "n_head": 4, "n_embd": 32, "positions": "rotary"}


def random_tokens(n_rows: int, n_tokens: int) -> Tensor:
    return torch.randint(0, 50, (n_rows, n_tokens), generator=torch.Generator().manual_seed(0))


def cache_for(model: GPT, n_rows: int, **options: Any) -> KVCache:
    return KVCache(model.config, n_rows, dtype=torch.float64, **options)


def padded(rows: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=NO_TOKEN)


def equal(ours: Tensor, reference: Tensor) -> None:
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-11)


@pytest.mark.parametrize("sizes", [(24,), (1,) * 24, (5, 7, 1, 11), (1, 23), (20, 1, 1, 1, 1)], ids=str)
def test_chunks_of_any_size_equal_a_full_pass(config: ModelConfig, build: Build, sizes: tuple[int, ...]) -> None:
    model, tokens = build(config).double(), random_tokens(3, 24)
    cache = cache_for(model, 3)
    ends = list(itertools.accumulate(sizes))
    chunks = [model(tokens[:, end - size : end], cache) for size, end in zip(sizes, ends, strict=True)]
    equal(torch.cat(chunks, dim=1), model(tokens))
    assert cache.lengths == [24] * 3


def test_rows_of_different_length_equal_each_row_alone(config: ModelConfig, build: Build) -> None:
    model, tokens = build(config).double(), random_tokens(3, 24)
    lengths, more = [4, 9, 1], 5
    cache = cache_for(model, 3)
    first = model(padded([row[:length] for row, length in zip(tokens, lengths, strict=True)]), cache)
    steps = [
        model(torch.stack([row[n + i] for row, n in zip(tokens, lengths, strict=True)])[:, None], cache)
        for i in range(more)
    ]
    for row, length in enumerate(lengths):
        full = model(tokens[row : row + 1, : length + more])[0]
        equal(first[row, :length], full[:length])
        equal(torch.stack([step[row, 0] for step in steps]), full[length:])
    assert cache.lengths == [length + more for length in lengths]


def test_later_chunks_may_be_ragged_too_up_to_the_last_slot(config: ModelConfig, build: Build) -> None:
    model, tokens = build(config).double(), random_tokens(3, 24)
    cache = cache_for(model, 3)
    lengths = [0, 0, 0]
    # The second chunk fills the first row to its last slot, while the padding of the others points behind it.
    for counts in ([18, 3, 8], [6, 16, 2], [0, 5, 14]):
        rows = [tokens[row, n : n + count] for row, (n, count) in enumerate(zip(lengths, counts, strict=True))]
        logits = model(padded(rows), cache)
        lengths = [n + count for n, count in zip(lengths, counts, strict=True)]
        for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
            if count:
                equal(logits[row, :count], model(tokens[row : row + 1, :length])[0, -count:])


def test_equal_rows_padded_beyond_the_capacity_fit(build: Build) -> None:
    model, tokens = build(ModelConfig(**ROTARY, context_length=8)).double(), random_tokens(2, 8)
    cache = cache_for(model, 2)
    behind = torch.full((2, 3), NO_TOKEN)
    equal(model(torch.cat((tokens, behind), dim=1), cache)[:, :8], model(tokens))
    assert cache.lengths == [8, 8]


def test_kept_rows_go_on_as_before(config: ModelConfig, build: Build) -> None:
    model, tokens = build(config).double(), random_tokens(3, 12)
    cache = cache_for(model, 3)
    model(padded([tokens[0, :10], tokens[1, :6], tokens[2, :10]]), cache)
    cache.keep_rows([2, 0, 2])
    order = torch.tensor([2, 0, 2])
    logits = model(tokens[order, 10:11], cache)
    equal(logits[:, 0], model(tokens[order, :11])[:, -1])


def test_rows_copied_from_another_cache_go_on_there(config: ModelConfig, build: Build) -> None:
    model, tokens = build(config).double(), random_tokens(3, 12)
    running = cache_for(model, 3)
    model(tokens[:, :7], running)
    arriving = cache_for(model, 2, capacity=10)
    model(padded([tokens[0, :5], tokens[1, :9]]), arriving)
    running.copy_rows_from(arriving, [2, 0])
    logits = model(torch.stack((tokens[1, 9], tokens[1, 7], tokens[0, 5]))[:, None], running)
    for row, (source, length) in enumerate([(1, 10), (1, 8), (0, 6)]):
        equal(logits[row, 0], model(tokens[source : source + 1, :length])[0, -1])


def banded_logits(model: GPT, tokens: Tensor, window: int, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Logits of a full pass in which every layer sees the last `window` tokens only."""
    original = attention.attend

    def attend_in_band(queries: Tensor, keys: Tensor, values: Tensor, **options: Any) -> Tensor:
        T = queries.shape[2]
        band = torch.ones(T, T, dtype=torch.bool).tril().triu(1 - window)
        return original(queries, keys, values, mask=band, is_causal=False)

    with monkeypatch.context() as patch:
        patch.setattr(attention, "attend", attend_in_band)
        return model(tokens)  # type: ignore[no-any-return]


@pytest.mark.parametrize("options", [{}, {"n_kv_head": 2, "bigram_rows": 31, "qk_norm": True}], ids=str)
def test_a_rolling_cache_equals_a_full_pass_within_a_band(
    options: dict[str, Any], build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokens = build(ModelConfig(**ROTARY, context_length=40, **options)).double(), random_tokens(2, 40)
    cache = cache_for(model, 2, capacity=8, rolling=True)
    parts = [model(tokens[:, :6], cache)] + [model(tokens[:, i : i + 1], cache) for i in range(6, 40)]
    equal(torch.cat(parts, dim=1), banded_logits(model, tokens, 8, monkeypatch))


def test_a_rolling_cache_takes_rows_of_different_length(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = build(ModelConfig(**ROTARY, context_length=40)).double(), random_tokens(2, 40)
    cache = cache_for(model, 2, capacity=8, rolling=True)
    lengths = [2, 6]
    model(padded([tokens[0, :2], tokens[1, :6]]), cache)
    # Four more for the first row and two for the second: its padding points around the corner, at living tokens.
    model(padded([tokens[0, 2:6], tokens[1, 6:8]]), cache)
    lengths = [6, 8]
    references = [banded_logits(model, tokens[row : row + 1], 8, monkeypatch)[0] for row in range(2)]
    for step in range(20):
        logits = model(torch.stack([tokens[row, lengths[row] + step] for row in range(2)])[:, None], cache)
        for row in range(2):
            equal(logits[row, 0], references[row][lengths[row] + step])


def test_a_full_cache_refuses_more(build: Build) -> None:
    model = build(ModelConfig(**ROTARY, context_length=8))
    cache = KVCache(model.config, 1)
    model(random_tokens(1, 6), cache)
    with pytest.raises(ValueError, match="holds 8 tokens a row, but 9 are needed"):
        model(random_tokens(1, 3), cache)
    assert cache.lengths == [6]


def test_a_full_rolling_cache_takes_one_token_but_no_chunk(build: Build) -> None:
    model = build(ModelConfig(**ROTARY, context_length=8))
    cache = KVCache(model.config, 1, rolling=True)
    model(random_tokens(1, 8), cache)
    with pytest.raises(ValueError, match="holds 8 tokens a row, but 10 are needed"):
        model(random_tokens(1, 2), cache)
    assert cache.lengths == [8]
    model(random_tokens(1, 1), cache)
    assert cache.lengths == [9]


def test_learned_positions_neither_roll_nor_reach_beyond_the_context() -> None:
    config = ModelConfig(vocab_size=50, context_length=8, n_layer=1, n_head=1, n_embd=4)
    with pytest.raises(ValueError, match="rolling cache needs rotary positions"):
        KVCache(config, 1, rolling=True)
    with pytest.raises(ValueError, match="learned positions end at 8"):
        KVCache(config, 1, capacity=9)
