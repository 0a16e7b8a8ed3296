"""Token ids on disk: written once, mapped into memory ever after, checked before use.

A sequence of tokens is one or more files `<name>-<number>.tokens`. Each begins with a header of 1,024 bytes:

    8 bytes   magic "GPTTOKEN"
    4 bytes   length of the JSON text, little-endian
    …         JSON: version, dtype, count, first, shards, tokenizer_hash, corpus_hash, payload_sha256
    32 bytes  at 992: SHA-256 of the 992 bytes before

and goes on with `count` little-endian uint16 (vocabularies up to 65,536) or uint32. Opening a file checks its header
and its size, which takes no time; `verify` reads all of it.
"""

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from command_line import EXIT_DISK, UserError

MAGIC = b"GPTTOKEN"
VERSION = 1
HEADER_BYTES = 1024
DTYPES = ("<u2", "<u4")
SHARD_TOKENS = 100_000_000
"""Tokens of a file: 200 or 400 MB, small enough to copy and to write again."""

TokenArray = npt.NDArray[np.integer]


class DamagedShardError(UserError):
    """A token file is not what was written; it can be deleted and is then made again from the corpus."""

    def __init__(self, path: Path, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(f"{path} is damaged ({problem}); delete it, the next run makes it again from the corpus")


class DiskError(UserError):
    """A file could not be written."""

    exit_code = EXIT_DISK

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(f"cannot write {path} ({error.strerror or error}); free space there or choose another folder")


@dataclass(frozen=True)
class ShardHeader:
    """What a token file says about itself."""

    version: int
    dtype: str
    count: int
    first: int
    shards: int
    tokenizer_hash: str
    corpus_hash: str
    payload_sha256: str

    def pack(self) -> bytes:
        """The header as the first 1,024 bytes of a file."""
        text = json.dumps(asdict(self), sort_keys=True).encode("ascii")
        body = (MAGIC + len(text).to_bytes(4, "little") + text).ljust(HEADER_BYTES - 32, b"\0")
        assert len(body) == HEADER_BYTES - 32
        return body + hashlib.sha256(body).digest()

    @classmethod
    def read(cls, path: Path) -> "ShardHeader":
        """Read and check a file's header and size; raises DamagedShardError."""
        try:
            with path.open("rb") as file:
                raw = file.read(HEADER_BYTES)
            size = path.stat().st_size
        except OSError as error:
            raise DamagedShardError(path, error.strerror or str(error)) from None
        if len(raw) < HEADER_BYTES or not raw.startswith(MAGIC):
            raise DamagedShardError(path, "not a token file")
        if hashlib.sha256(raw[:-32]).digest() != raw[-32:]:
            raise DamagedShardError(path, "its header's checksum is wrong")
        header = cls._parse(raw[12 : 12 + int.from_bytes(raw[8:12], "little")], path)
        expected = HEADER_BYTES + header.count * np.dtype(header.dtype).itemsize
        if size != expected:
            raise DamagedShardError(path, f"{size} bytes instead of {expected}")
        return header

    @classmethod
    def _parse(cls, text: bytes, path: Path) -> "ShardHeader":
        """Check what a header says, although its checksum holds: anybody can compute one."""
        problem = "its header makes no sense"
        try:
            values = json.loads(text)
            if isinstance(values, dict) and values.get("version") != VERSION:
                problem = f"format version {values.get('version')} instead of {VERSION}"
                raise ValueError
            header = cls(**values)
            if any(type(getattr(header, field.name)) is not field.type for field in fields(cls)):
                raise ValueError
        except (ValueError, TypeError, RecursionError):
            raise DamagedShardError(path, problem) from None
        if header.dtype not in DTYPES or min(header.count, header.first) < 0:
            raise DamagedShardError(path, problem)
        return header


class TokenShards:
    """One sequence of token ids that lies in one or more files, mapped into memory.

    Raises DamagedShardError when a file is missing, cut short or has a wrong header.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.headers = [ShardHeader.read(path) for path in paths]
        if not paths or any(header.shards != len(paths) for header in self.headers):
            raise DamagedShardError(paths[0] if paths else Path("?"), "files of its sequence are missing")
        self._parts = [_map(path, header) for path, header in zip(paths, self.headers, strict=True)]
        counts = [header.count for header in self.headers]
        self._ends = np.cumsum(counts)
        if [header.first for header in self.headers] != [0, *self._ends.tolist()[:-1]]:
            raise DamagedShardError(paths[0], "files of its sequence do not belong together")
        self.tokenizer_hash = self.headers[0].tokenizer_hash
        self.corpus_hash = self.headers[0].corpus_hash

    @classmethod
    def open(cls, folder: Path, name: str) -> "TokenShards":
        """The sequence of that name in a folder; raises DamagedShardError."""
        paths = sorted(folder.glob(f"{name}-[0-9][0-9][0-9][0-9][0-9].tokens"))
        return cls(paths or [shard_path(folder, name, 0)])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def tokens(self, start: int, stop: int) -> TokenArray:
        """The token ids of positions `start` to `stop` (excluded), a view where they lie in one file."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"positions {start} to {stop} are outside a sequence of {len(self)} tokens")
        pieces: list[TokenArray] = []
        for part, end in zip(self._parts, self._ends.tolist(), strict=True):
            begin = end - len(part)
            if begin < stop and start < end:
                pieces.append(part[max(start - begin, 0) : stop - begin])
        return pieces[0] if len(pieces) == 1 else np.concatenate([*pieces, self._parts[0][:0]])

    def windows(self, starts: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
        """Rows of `length` consecutive tokens, one for each start: (N,) → (N, length), int64."""
        if len(self._parts) == 1:
            return np.asarray(self._parts[0][starts[:, None] + np.arange(length)], dtype=np.int64)
        rows = np.empty((len(starts), length), dtype=np.int64)
        for row, start in zip(rows, starts.tolist(), strict=True):
            row[:] = self.tokens(start, start + length)
        return rows

    def verify(self, vocab_size: int) -> None:
        """Read every byte, compare its SHA-256, look for ids that a vocabulary lacks; raises DamagedShardError."""
        for path, header in zip(self.paths, self.headers, strict=True):
            digest, largest = hashlib.sha256(), -1
            with path.open("rb") as file:
                file.seek(HEADER_BYTES)
                while block := file.read(1 << 20):
                    digest.update(block)
                    largest = max(largest, int(np.frombuffer(block, header.dtype).max()))
            if digest.hexdigest() != header.payload_sha256:
                raise DamagedShardError(path, "its tokens' checksum is wrong")
            if largest >= vocab_size:  # the model would look for a row that its embedding does not have
                raise DamagedShardError(path, f"it holds id {largest}, the vocabulary has {vocab_size}")


def _map(path: Path, header: ShardHeader) -> TokenArray:
    if header.count == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype=header.dtype)
    # A plain array over the mapping: indexing np.memmap itself builds an instance of that class each time.
    return np.asarray(np.memmap(path, dtype=header.dtype, mode="r", offset=HEADER_BYTES, shape=(header.count,)))


def shard_path(folder: Path, name: str, number: int) -> Path:
    """The file of a sequence's shard."""
    return folder / f"{name}-{number:05d}.tokens"


class ShardWriter:
    """Write a sequence of tokens to files, bit by bit; nothing has its final name before all of it is on disk.

    Use as a context manager: leaving it normally finishes the files, leaving it by an exception removes them.
    Raises DiskError.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        vocab_size: int,
        shard_tokens: int = SHARD_TOKENS,
        *,
        tokenizer_hash: str,
        corpus_hash: str,
    ) -> None:
        self.folder, self.name, self.shard_tokens = folder, name, shard_tokens
        self.tokenizer_hash, self.corpus_hash = tokenizer_hash, corpus_hash
        self.dtype = np.dtype(DTYPES[vocab_size > 1 << 16])
        self.count = 0
        self._finished: list[tuple[Path, int, int, str]] = []
        self._open_shard()

    def _temporary(self, number: int) -> Path:
        path = shard_path(self.folder, self.name, number)
        return path.with_name(f"{path.name}.{os.getpid()}.partial")

    def _open_shard(self) -> None:
        self._digest, self._first = hashlib.sha256(), self.count
        self._path = self._temporary(len(self._finished))
        try:
            self._file = self._path.open("wb")
            self._file.write(b"\0" * HEADER_BYTES)
        except OSError as error:
            raise DiskError(self._path, error) from error

    def _close_shard(self) -> None:
        self._file.close()
        self._finished.append((self._path, self._first, self.count - self._first, self._digest.hexdigest()))

    def append(self, token_ids: TokenArray) -> None:
        """Add token ids at the end; raises DiskError."""
        try:
            while len(token_ids):
                room = self.shard_tokens - (self.count - self._first)
                if room == 0:
                    self._close_shard()
                    self._open_shard()
                    continue
                block = np.ascontiguousarray(token_ids[:room], dtype=self.dtype).tobytes()
                self._file.write(block)
                self._digest.update(block)
                self.count += min(room, len(token_ids))
                token_ids = token_ids[room:]
        except OSError as error:
            raise DiskError(self._path, error) from error

    def finish(self) -> None:
        """Write the headers, sync, give the files their names; raises DiskError."""
        try:
            self._close_shard()
            for number, (path, first, count, payload) in enumerate(self._finished):
                header = ShardHeader(
                    VERSION, self.dtype.str, count, first, len(self._finished),
                    self.tokenizer_hash, self.corpus_hash, payload,
                )  # fmt: skip
                with path.open("r+b") as file:
                    file.write(header.pack())
                    file.flush()
                    os.fsync(file.fileno())
                path.replace(shard_path(self.folder, self.name, number))
        except OSError as error:
            raise DiskError(self._path, error) from error

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
            return
        with contextlib.suppress(OSError):  # on a full disk, what is still buffered cannot be written either
            self._file.close()
        for number in range(len(self._finished) + 1):
            self._temporary(number).unlink(missing_ok=True)
