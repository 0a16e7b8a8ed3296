"""Batches are a pure function of seed and step; an epoch visits every window once."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from command_line import UserError
from data.batches import Batches, permute, validation_windows
from data.shards import TokenShards
from tests.data.shard_files import write_shards

SIZES = [(400, 8, 6), (401, 8, 7), (17, 4, 3), (9, 4, 5), (5, 4, 8), (6, 4, 1), (1000, 7, 11), (300, 1, 64)]


def counted_tokens(folder: Path, count: int, shard_tokens: int = 10**6) -> TokenShards:
    """Tokens that say where they lie: 0, 1, 2, …"""
    return write_shards(folder, f"t{count}", [np.arange(count)], vocab_size=count, shard_tokens=shard_tokens)


def first_tokens(batches: Batches, epochs: int) -> list[list[int]]:
    """The first token of every window of the first epochs, in their order."""
    n = batches.windows_per_epoch
    steps = -(-n * epochs // batches.sequences)
    stream = [int(row[0]) for step in range(steps) for row in batches.batch(step)[0]]
    return [stream[epoch * n : (epoch + 1) * n] for epoch in range(epochs)]


@pytest.mark.parametrize(("count", "context_length", "sequences"), SIZES)
def test_an_epoch_visits_every_window_once(tmp_path: Path, count: int, context_length: int, sequences: int) -> None:
    batches = Batches(counted_tokens(tmp_path, count), context_length, sequences, seed=3)
    n = batches.windows_per_epoch
    assert n >= max(1, (count - 1) // context_length - 1)
    for epoch in first_tokens(batches, 4):
        starts = sorted(epoch)
        # Side by side from one offset: no window twice, none left out, none outside.
        assert starts == list(range(starts[0], starts[0] + n * context_length, context_length))
        assert 0 <= starts[0] < context_length
        assert starts[-1] + context_length < count


def test_each_epoch_has_its_own_order_and_borders(tmp_path: Path) -> None:
    batches = Batches(counted_tokens(tmp_path, 4000), 16, 10, seed=1)
    epochs = first_tokens(batches, 30)
    orders = {tuple(np.argsort(epoch)) for epoch in epochs}
    assert len(orders) == 30
    assert len({min(epoch) for epoch in epochs}) > 10  # of 16 offsets


def test_over_epochs_every_offset_and_every_place_occurs(tmp_path: Path) -> None:
    batches = Batches(counted_tokens(tmp_path, 50), 4, 11, seed=1)
    epochs = first_tokens(batches, 400)
    assert {min(epoch) for epoch in epochs} == {0, 1, 2, 3}
    # The window that comes first is each of them about equally often (chi-square, 10 degrees of freedom, p = 0.001).
    first = np.bincount([(epoch[0] - min(epoch)) // 4 for epoch in epochs], minlength=batches.windows_per_epoch)
    expected = 400 / batches.windows_per_epoch
    assert ((first - expected) ** 2 / expected).sum() < 29.6


@pytest.mark.parametrize("count", range(5, 14))
def test_an_epoch_begins_at_every_offset_at_which_its_windows_fit(tmp_path: Path, count: int) -> None:
    batches = Batches(counted_tokens(tmp_path, count), 4, 1, seed=1)
    fitting = {offset for offset in range(4) if offset + 4 * batches.windows_per_epoch < count}
    assert {min(epoch) for epoch in first_tokens(batches, 60)} == fitting


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 99, 1000])
def test_permute_is_a_permutation(size: int) -> None:
    numbers = np.arange(size, dtype=np.uint64)
    keys = [np.full(size, key, dtype=np.uint64) for key in (11, 22, 33, 44)]
    assert sorted(permute(numbers, size, keys).tolist()) == list(range(size))


def test_targets_are_the_next_tokens(tmp_path: Path) -> None:
    token_ids, target_ids = Batches(counted_tokens(tmp_path, 1000), 16, 8, seed=1).batch(5)
    assert token_ids.dtype == target_ids.dtype == torch.int64
    assert token_ids.shape == target_ids.shape == (8, 16)
    assert torch.equal(target_ids, token_ids + 1)
    assert torch.equal(token_ids[:, 1:], token_ids[:, :-1] + 1)


def test_a_batch_depends_on_seed_and_step_alone(tmp_path: Path) -> None:
    tokens = counted_tokens(tmp_path, 3000)
    forward = [Batches(tokens, 8, 4, seed=7).batch(step)[0] for step in range(0, 2000, 13)]
    batches = Batches(tokens, 8, 4, seed=7)
    backward = [batches.batch(step)[0] for step in reversed(range(0, 2000, 13))]
    assert all(torch.equal(a, b) for a, b in zip(forward, reversed(backward), strict=True))
    assert not torch.equal(batches.batch(0)[0], Batches(tokens, 8, 4, seed=8).batch(0)[0])
    assert not torch.equal(batches.batch(0)[0], batches.batch(1)[0])


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_the_slices_of_all_ranks_join_to_the_global_batch(tmp_path: Path, world_size: int) -> None:
    tokens = counted_tokens(tmp_path, 200)
    for step in (0, 1, 17):
        whole = Batches(tokens, 8, 6, seed=1).batch(step)
        ranks = [Batches(tokens, 8, 6, 1, rank, world_size).batch(step) for rank in range(world_size)]
        for part in (0, 1):
            assert torch.equal(torch.cat([rank[part] for rank in ranks]), whole[part])


def test_windows_across_shard_borders_equal_those_of_one_shard(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    one, many = counted_tokens(tmp_path / "one", 500), counted_tokens(tmp_path, 500, shard_tokens=23)
    assert len(many.paths) == 22
    for step in range(20):
        assert torch.equal(Batches(one, 8, 6, seed=1).batch(step)[0], Batches(many, 8, 6, seed=1).batch(step)[0])


def test_an_epoch_has_one_window_less_than_fit(tmp_path: Path) -> None:
    assert Batches(counted_tokens(tmp_path, 104), 4, 10, seed=1).windows_per_epoch == 25


def test_too_few_tokens_for_a_window_are_named(tmp_path: Path) -> None:
    tokens = counted_tokens(tmp_path, 8)
    Batches(tokens, 7, 1, seed=1)
    with pytest.raises(UserError, match=r"has 8 tokens, a window needs 9; lower --context-length \(now 8\)"):
        Batches(tokens, 8, 1, seed=1)
    with pytest.raises(UserError, match="5 sequences a step cannot be divided among 2"):
        Batches(tokens, 4, 5, seed=1, rank=0, world_size=2)


@pytest.mark.parametrize("count", [2, 3, 9, 10, 100, 257])
@pytest.mark.parametrize(("context_length", "stride"), [(8, None), (8, 4), (8, 1), (7, 5), (300, 100)])
def test_validation_counts_every_target_once(
    tmp_path: Path, count: int, context_length: int, stride: int | None
) -> None:
    tokens = counted_tokens(tmp_path, count)
    for world_size in (1, 3):
        counted = [
            batch.target_ids[batch.counted]
            for rank in range(world_size)
            for batch in validation_windows(
                tokens, context_length, stride, sequences=4, rank=rank, world_size=world_size
            )
        ]
        assert sorted(torch.cat(counted).tolist()) == list(range(1, count))


def test_counted_targets_of_later_windows_see_enough_before_them(tmp_path: Path) -> None:
    batches = list(validation_windows(counted_tokens(tmp_path, 100), 8, 3, sequences=1))
    assert bool(batches[0].counted.all())
    for before, batch in itertools.pairwise(batches):
        assert torch.equal(batch.target_ids, batch.token_ids + 1)
        first_counted = int(batch.counted.int().argmax())
        assert first_counted >= 8 - 3
        assert bool(batch.counted[0, first_counted:].all())
        assert batch.target_ids[0, first_counted] == before.target_ids[0, -1] + 1


def test_validation_of_nothing_yields_nothing(tmp_path: Path) -> None:
    assert list(validation_windows(counted_tokens(tmp_path, 1), 8)) == []
