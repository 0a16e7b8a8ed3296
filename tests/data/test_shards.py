"""What was written is what is read, and what was damaged is not read."""

import hashlib
import json
import os
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command_line import EXIT_DISK
from data.shards import (
    HEADER_BYTES,
    MAGIC,
    DamagedShardError,
    DiskError,
    ShardHeader,
    ShardWriter,
    TokenShards,
)
from tests.data.shard_files import write_shards


def write(folder: Path, count: int = 100, shard_tokens: int = 10**6, vocab_size: int = 1000) -> TokenShards:
    return write_shards(
        folder, "part", [np.arange(count)], vocab_size=vocab_size, shard_tokens=shard_tokens,
        tokenizer_hash="t", corpus_hash="c",
    )  # fmt: skip


@pytest.mark.parametrize("shard_tokens", [1, 7, 33, 99, 100, 101])
def test_many_files_are_one_sequence(tmp_path: Path, shard_tokens: int) -> None:
    shards = write(tmp_path, shard_tokens=shard_tokens)
    assert len(shards) == 100
    assert len(shards.paths) == -(-100 // shard_tokens)
    for start in range(0, 101, 3):
        for stop in range(start, 101, 5):
            assert shards.tokens(start, stop).tolist() == list(range(start, stop))
    starts = np.array([0, 5, 32, 60])
    assert shards.windows(starts, 40).tolist() == [list(range(start, start + 40)) for start in starts.tolist()]
    shards.verify(100)
    assert (shards.tokenizer_hash, shards.corpus_hash) == ("t", "c")


@pytest.mark.parametrize(("vocab_size", "bytes_each"), [(257, 2), (65_536, 2), (65_537, 4), (200_019, 4)])
def test_the_vocabulary_decides_the_width(tmp_path: Path, vocab_size: int, bytes_each: int) -> None:
    highest = [vocab_size - 1, 0, vocab_size - 2]
    shards = write_shards(tmp_path, "wide", [np.array(highest)], vocab_size=vocab_size)
    assert shards.tokens(0, 3).tolist() == highest
    assert shards.paths[0].stat().st_size == HEADER_BYTES + 3 * bytes_each


def test_no_tokens_at_all_can_be_written(tmp_path: Path) -> None:
    assert len(write(tmp_path, count=0)) == 0


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (5, 4), (0, 101)])
def test_positions_outside_are_refused(tmp_path: Path, start: int, stop: int) -> None:
    with pytest.raises(IndexError, match="outside a sequence of 100"):
        write(tmp_path).tokens(start, stop)


def flip_bits(data: bytearray, source: random.Random, other: bytes) -> None:
    for place in source.sample(range(len(data) * 8), source.choice((1, 1, 2, 8))):
        data[place // 8] ^= 1 << place % 8


def truncate(data: bytearray, source: random.Random, other: bytes) -> None:
    del data[source.randrange(len(data)) :]


def append(data: bytearray, source: random.Random, other: bytes) -> None:
    data += source.choice((b"\0", bytes(2), source.randbytes(source.randint(1, 600))))


def overwrite(data: bytearray, source: random.Random, other: bytes) -> None:
    start = source.randrange(len(data))
    length = len(data[start : start + 512])
    data[start : start + length] = source.choice((b"\0", b"\xff")) * length


def splice(data: bytearray, source: random.Random, other: bytes) -> None:
    start = source.randrange(len(data))
    data[start:] = other[start:]


MUTATORS = (flip_bits, truncate, append, overwrite, splice)


def test_a_thousand_damaged_files_are_all_found(tmp_path: Path) -> None:
    path = write(tmp_path).paths[0]
    good = path.read_bytes()
    other = write_shards(tmp_path, "other", [np.arange(100)[::-1]], vocab_size=1000).paths[0].read_bytes()
    damaged = 0
    for seed in range(1100):
        data = bytearray(good)
        MUTATORS[seed % len(MUTATORS)](data, random.Random(seed), other)
        if data in (good, other):
            continue
        with path.open("r+b") as file:  # in place: cutting a file to nothing first is slow on ext4
            file.write(data)
            file.truncate()
        with pytest.raises(DamagedShardError, match=rf"{path.name} is damaged .*delete it"):
            TokenShards.open(tmp_path, "part").verify(1000)
        damaged += 1
    assert damaged >= 1000


def forged(path: Path, text: str) -> None:
    """Write a file of 100 tokens whose header says `text` of itself, every checksum right."""
    body = (MAGIC + len(text).to_bytes(4, "little") + text.encode()).ljust(HEADER_BYTES - 32, b"\0")
    path.write_bytes(body + hashlib.sha256(body).digest() + path.read_bytes()[HEADER_BYTES:])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"version": 2}, "format version 2 instead of 1"),
        ({"count": -1}, "its header makes no sense"),
        ({"count": 1.0}, "its header makes no sense"),
        ({"count": 10**30}, "1224 bytes instead of"),
        ({"dtype": "O"}, "its header makes no sense"),
        ({"dtype": "<f2"}, "its header makes no sense"),
        ({"dtype": "<u4"}, "1224 bytes instead of 1424"),
        ({"first": 1}, "do not belong together"),
        ({"shards": 2}, "files of its sequence are missing"),
        ({"payload_sha256": "0" * 64}, "its tokens' checksum is wrong"),
        ({"extra": 1}, "its header makes no sense"),
    ],
)
def test_a_forged_header_is_refused_for_its_reason(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    path = write(tmp_path).paths[0]
    forged(path, json.dumps({**asdict(ShardHeader.read(path)), **change}))
    with pytest.raises(DamagedShardError, match=problem):
        TokenShards.open(tmp_path, "part").verify(1000)


@pytest.mark.parametrize("text", ["", "null", "[]", "{", "[" * 900, '{"version": 1}'])
def test_a_header_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    path = write(tmp_path).paths[0]
    forged(path, text)
    with pytest.raises(DamagedShardError, match="its header makes no sense"):
        TokenShards.open(tmp_path, "part")


def test_an_id_that_the_vocabulary_lacks_is_refused(tmp_path: Path) -> None:
    shards = write(tmp_path)
    shards.verify(100)
    with pytest.raises(DamagedShardError, match="it holds id 99, the vocabulary has 99"):
        shards.verify(99)


def test_every_truncation_and_addition_is_found_on_opening(tmp_path: Path) -> None:
    path = write(tmp_path).paths[0]
    good = path.read_bytes()
    for length in [*range(0, len(good), 13), len(good) - 1]:
        path.write_bytes(good[:length])
        with pytest.raises(DamagedShardError):
            TokenShards.open(tmp_path, "part")
    path.write_bytes(good + b"\0")
    with pytest.raises(DamagedShardError, match="1225 bytes instead of 1224"):
        TokenShards.open(tmp_path, "part")


def test_missing_and_exchanged_files_are_found(tmp_path: Path) -> None:
    first, second, third = write(tmp_path, shard_tokens=40).paths
    contents = second.read_bytes()
    second.write_bytes(first.read_bytes())
    with pytest.raises(DamagedShardError, match="do not belong together"):
        TokenShards.open(tmp_path, "part")
    second.write_bytes(contents)
    third.unlink()
    with pytest.raises(DamagedShardError, match="missing"):
        TokenShards.open(tmp_path, "part")
    for path in (first, second):
        path.unlink()
    with pytest.raises(DamagedShardError, match="No such file"):
        TokenShards.open(tmp_path, "part")


def interrupted_write(folder: Path) -> None:
    with ShardWriter(folder, "part", 10, 8, tokenizer_hash="", corpus_hash="") as writer:
        writer.append(np.arange(20))
        raise KeyboardInterrupt


def test_an_interrupted_writer_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted_write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_has_its_final_name_before_all_is_written(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "part", 10, 8, tokenizer_hash="", corpus_hash="") as writer:
        writer.append(np.arange(20))
        assert not list(tmp_path.glob("*.tokens"))
    assert len(list(tmp_path.glob("*.tokens"))) == 3


def write_to_full_disk(folder: Path) -> None:
    with ShardWriter(folder, "part", 10, tokenizer_hash="", corpus_hash="") as writer:
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, writer._file.fileno())
        os.close(full)
        writer.append(np.zeros(100_000, dtype=np.int64))


def test_a_full_disk_is_named_with_its_exit_code(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    with pytest.raises(DiskError, match=r"cannot write .*part-00000\.tokens.* \(No space left on device\)") as caught:
        write_to_full_disk(tmp_path)
    assert caught.value.exit_code == EXIT_DISK
    assert list(tmp_path.iterdir()) == []
