"""Read a checkpoint (`checkpoint_format`): its checksum, its card, its tensors. Only `read_tensors` needs PyTorch.

Nothing is unpickled, nothing is allocated that the file does not hold, and not a byte is parsed before the checksum
agrees. But a checksum finds damage and is no signature: anybody can compute it. So the card is distrusted all the
same, and every name, type, size and place in it is checked.
"""

import hashlib
import io
import json
import math
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model import durable_files
from model.checkpoint_format import (
    ALIGNMENT,
    CARD_RECORD,
    CHUNK_BYTES,
    COMMENT_BYTES,
    DTYPES,
    FORMAT,
    FORMAT_VERSION,
    ITEMS,
    TENSOR,
    Card,
    CheckpointError,
    TensorEntry,
)

if TYPE_CHECKING:
    from torch import Tensor


class CheckpointReader:
    """A context manager that holds a checkpoint open, so that all is read from the very file that was verified.

    Raises CheckpointError for whatever is wrong with it, also when the disk fails.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.file = durable_files.open_to_read(path)
            self.n_bytes = self.file.seek(0, io.SEEK_END)
        except FileNotFoundError:
            raise CheckpointError(f"there is no checkpoint {path}") from None
        except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
            raise self._unreadable(error) from error

    def __enter__(self) -> "CheckpointReader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()

    def verify(self) -> str:
        """Compare the checksum with the content and return it."""
        if self.n_bytes == 0:
            raise CheckpointError(f"{self.path} is not a checkpoint: the file is empty")
        comment = bytearray(min(self.n_bytes, COMMENT_BYTES))
        self._read(self.n_bytes - len(comment), memoryview(comment))
        if not comment.startswith(b"sha256:"):
            raise CheckpointError(
                f"{self.path} is not a checkpoint of this project, or it was cut short: it does not end with a checksum"
            )
        checksum = hashlib.sha256()
        buffer = memoryview(bytearray(CHUNK_BYTES))
        end = self.n_bytes - len(comment)
        for offset in range(0, end, CHUNK_BYTES):
            part = buffer[: min(CHUNK_BYTES, end - offset)]
            self._read(offset, part)
            checksum.update(part)
        if comment != f"sha256:{checksum.hexdigest()}".encode():
            raise CheckpointError(
                f"{self.path} is damaged: its checksum does not agree with its content; use another copy"
            )
        return checksum.hexdigest()

    def read_card(self) -> Card:
        """Read what the file says about itself and check that it makes sense."""
        try:
            return self._check_card(self._read_json())
        except CheckpointError:
            raise
        except OSError as error:
            raise self._unreadable(error) from error
        except RecursionError:
            raise self._foreign("its card is nested too deeply") from None
        except (ValueError, KeyError, NotImplementedError, EOFError, struct.error, zipfile.BadZipFile) as error:
            # What Python's zip and JSON readers raise for data that are not theirs.
            raise self._foreign(error) from None

    def read_tensors(self, entries: tuple[TensorEntry, ...], device: str) -> list["Tensor"]:
        """Read tensors, each straight into its own memory and then to the device."""
        import torch

        from model.checkpoint_writer import tensor_bytes

        tensors = []
        for entry in entries:
            tensor = torch.empty(entry.shape, dtype=getattr(torch, entry.dtype))
            self._read(entry.offset, tensor_bytes(tensor))
            tensors.append(tensor.to(device))
        return tensors

    def _read(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer from a place in the file."""
        try:
            self.file.seek(offset)
            while buffer.nbytes:
                n_bytes = durable_files.read_into(self.file, buffer)
                if not n_bytes:
                    raise OSError("the file became shorter while it was read")
                buffer = buffer[n_bytes:]
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> CheckpointError:
        cause = error.strerror or error if isinstance(error, OSError) else error
        return CheckpointError(f"cannot read checkpoint {self.path}: {cause}")

    def _foreign(self, reason: object) -> CheckpointError:
        return CheckpointError(f"{self.path} is not a checkpoint that this project wrote: {reason}")

    def _read_json(self) -> dict[str, Any]:
        with zipfile.ZipFile(self.file) as archive:
            info = archive.getinfo(CARD_RECORD)
            # A compressed record could be a bomb, and a wrong size could ask for any amount of memory.
            if info.compress_type != zipfile.ZIP_STORED or max(info.file_size, info.compress_size) > self.n_bytes:
                raise ValueError("its card has an impossible size")
            values = json.loads(archive.read(info))
        if not isinstance(values, dict):
            raise ValueError("its card is no JSON object")
        return values

    def _check_card(self, values: dict[str, Any]) -> Card:
        version = checked(values, "format_version", int)
        if checked(values, "format", str) != FORMAT or version < 1:
            raise ValueError("its card is of another format")
        if version > FORMAT_VERSION:
            raise CheckpointError(
                f"{self.path} was made by a newer version of this project (its format is {version}, this version reads "
                f"up to {FORMAT_VERSION}); update the project"
            )
        check_names(values, {"format", "format_version", "saved_at", "byte_order", "content", "tensors"})
        if checked(values, "byte_order", str) != sys.byteorder:
            raise ValueError(f"it was made on a machine with byte order {values['byte_order']}")
        tensors = _check_entries(checked(values, "tensors", list), self.n_bytes)
        content = _from_json(checked(values, "content", dict), tensors)
        if not isinstance(content, dict):
            raise ValueError("its content is no dictionary")
        return Card(self.path, content, tensors, version, checked(values, "saved_at", float), self.n_bytes)


def checked(values: dict[str, Any], name: str, *kinds: type) -> Any:
    """The entry of that name; raises ValueError when it is missing or of no allowed type."""
    if type(values.get(name)) not in kinds:
        raise ValueError(f"entry {name!r} of its card is missing or of the wrong type")
    return values[name]


def check_names(values: dict[str, Any], expected: set[str]) -> None:
    """Raise ValueError when a dictionary misses an entry or has an unknown one."""
    if set(values) != expected:
        different = sorted(map(str, set(values) ^ expected))
        # A name out of a file may hold anything, such as the end of a line.
        names = ", ".join(name if name.isprintable() else repr(name) for name in different)
        raise ValueError(f"its card has missing or unknown entries: {names[:200]}")


def _check_entries(values: list[Any], n_bytes: int) -> tuple[TensorEntry, ...]:
    """Check that every tensor fits its place and none lies over another: they need no more memory than the file."""
    entries: list[TensorEntry] = []
    free_from = 0
    for value in values:
        if not isinstance(value, dict):
            raise ValueError("its table of tensors is malformed")
        check_names(value, {"dtype", "shape", "offset", "bytes"})
        dtype, shape = checked(value, "dtype", str), checked(value, "shape", list)
        offset, size = checked(value, "offset", int), checked(value, "bytes", int)
        if dtype not in DTYPES:
            raise ValueError(f"a tensor has the unknown type {dtype[:40]!r}")
        if len(shape) > 16 or not all(type(width) is int and 0 <= width < 2**62 for width in shape):
            raise ValueError("a tensor has an impossible shape")
        if math.prod(shape) * DTYPES[dtype][0] != size:
            raise ValueError(f"a tensor of shape {shape} and type {dtype} cannot have {size} bytes")
        if offset < free_from or offset % ALIGNMENT or offset + size > n_bytes - COMMENT_BYTES:
            raise ValueError("a tensor lies outside of the file or over another one")
        free_from = offset + size
        entries.append(TensorEntry(dtype, tuple(shape), offset, size))
    return tuple(entries)


def _from_json(value: Any, tensors: tuple[TensorEntry, ...]) -> Any:
    """Plain data from its spelling in the card, with a TensorEntry for every tensor."""
    if isinstance(value, list):
        return [_from_json(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {TENSOR}:
        number = checked(value, TENSOR, int)
        if not 0 <= number < len(tensors):
            raise ValueError(f"tensor {number} does not exist")
        return tensors[number]
    if set(value) == {ITEMS}:
        pairs = checked(value, ITEMS, list)
        if not all(isinstance(pair, list) and len(pair) == 2 and type(pair[0]) in (str, int) for pair in pairs):
            raise ValueError("a dictionary of its card is malformed")
        return {key: _from_json(item, tensors) for key, item in pairs}
    if any(key.startswith("$") for key in value):
        raise ValueError("a dictionary of its card is malformed")
    return {key: _from_json(item, tensors) for key, item in value.items()}


def holds_tensor(value: Any) -> bool:
    """Whether plain data hold a TensorEntry anywhere."""
    if isinstance(value, dict | list):
        return any(map(holds_tensor, value.values() if isinstance(value, dict) else value))
    return isinstance(value, TensorEntry)


def replace_entries(value: Any, replace: Callable[[TensorEntry], Any]) -> Any:
    """Copy plain data with `replace(entry)` in place of every TensorEntry."""
    if isinstance(value, TensorEntry):
        return replace(value)
    if isinstance(value, list):
        return [replace_entries(item, replace) for item in value]
    if isinstance(value, dict):
        return {key: replace_entries(item, replace) for key, item in value.items()}
    return value
