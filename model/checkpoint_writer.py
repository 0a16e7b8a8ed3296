"""Write plain data and tensors as a checkpoint (`checkpoint_format`), hashed on the way, chunk by chunk."""

import hashlib
import io
import json
import struct
import sys
import time
import zipfile
from typing import Any

import torch
from torch import Tensor

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
)
from model.plain_pickle import StoredTensor, pickle_plain_data


class CheckpointContent:
    """What one checkpoint will hold: plain data with StoredTensors in it, and their tensors, shared ones only once."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.tensors: list[Tensor] = []
        self._numbers: dict[tuple[object, ...], int] = {}
        self.plain: dict[str, Any] = self._take_out_tensors(values)

    def n_bytes(self) -> int:
        """About how many bytes the file will have, rather too many than too few."""
        overhead = 2**12 + 2**9 * len(self.tensors) + 2 * len(json.dumps(_to_json(self.plain)))
        return overhead + sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)

    def write(self, file: io.FileIO) -> str:
        """Write the whole checkpoint into an open, empty file; returns its SHA-256."""
        stream = _HashedFile(file)
        with zipfile.ZipFile(stream, "w") as archive:  # type: ignore[call-overload]
            _write_record(archive, stream, "checkpoint/data.pkl", pickle_plain_data(self.plain))
            _write_record(archive, stream, "checkpoint/version", b"3\n")
            _write_record(archive, stream, "checkpoint/byteorder", sys.byteorder.encode())
            entries = []
            for number, tensor in enumerate(self.tensors):
                data = tensor_bytes(tensor)
                offset = _write_record(archive, stream, f"checkpoint/data/{number}", data)
                entry = {"dtype": _dtype_name(tensor), "shape": list(tensor.shape)}
                entries.append({**entry, "offset": offset, "bytes": data.nbytes})
            card = {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "saved_at": time.time(),
                "byte_order": sys.byteorder,
                "content": _to_json(self.plain),
                "tensors": entries,
            }
            _write_record(archive, stream, CARD_RECORD, json.dumps(card).encode())
            archive.comment = b" " * COMMENT_BYTES
        return stream.finish()

    def _take_out_tensors(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return StoredTensor(self._number(value), tuple(value.shape), DTYPES[_dtype_name(value)][1])
        if isinstance(value, dict):
            if not all(type(key) in (str, int) for key in value):
                raise TypeError("the dictionaries of a checkpoint are keyed by str or int")
            return {key: self._take_out_tensors(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._take_out_tensors(item) for item in value]
        if value is None or type(value) in (str, int, float, bool):
            return value
        raise TypeError(f"a checkpoint holds tensors, str, int, float, bool, None, list and dict, not {type(value)}")

    def _number(self, tensor: Tensor) -> int:
        """The number under which a tensor is stored; views of the same elements have the same one."""
        view = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.device)
        if tensor.numel() == 0 or view not in self._numbers:
            self._numbers[view] = len(self.tensors)
            self.tensors.append(tensor.detach())
        return self._numbers[view]


class _HashedFile:
    """Writes through to a file and hashes on the way, all but the last bytes, which become the checksum itself."""

    def __init__(self, file: io.FileIO) -> None:
        self.file = file
        self.position = 0
        self._hash = hashlib.sha256()
        self._pending = bytearray()

    def write(self, data: bytes | memoryview) -> int:
        view = memoryview(data)
        self.position += view.nbytes
        if view.nbytes >= CHUNK_BYTES:
            # Whole chunks go from the tensor into the file without a copy.
            self._write_hashed(self._pending)
            self._write_hashed(view[:-COMMENT_BYTES])
            self._pending = bytearray(view[-COMMENT_BYTES:])
        else:
            self._pending += view
            if len(self._pending) >= CHUNK_BYTES:
                self._write_pending()
        return view.nbytes

    def flush(self) -> None:
        """Do nothing: zipfile asks for it after every record."""

    def finish(self) -> str:
        """Write the rest, with the checksum in place of the last bytes; returns it."""
        self._write_pending()
        checksum = self._hash.hexdigest()
        durable_files.write(self.file, f"sha256:{checksum}".encode())
        return checksum

    def _write_pending(self) -> None:
        self._write_hashed(self._pending[:-COMMENT_BYTES])
        del self._pending[:-COMMENT_BYTES]

    def _write_hashed(self, part: bytearray | memoryview) -> None:
        self._hash.update(part)
        durable_files.write(self.file, part)


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The elements of a tensor row by row; copied only when they do not lie so in main memory already."""
    return memoryview(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def _write_record(archive: zipfile.ZipFile, stream: _HashedFile, name: str, data: bytes | memoryview) -> int:
    """Write one uncompressed record whose data begin at a multiple of ALIGNMENT; returns where."""
    view = memoryview(data)
    info = zipfile.ZipInfo(name)
    info.file_size = view.nbytes
    # zipfile's own rule for when a header holds 20 bytes more, for 64-bit sizes.
    header_bytes = 30 + len(name) + (20 if view.nbytes * 1.05 > zipfile.ZIP64_LIMIT else 0)
    padding = -(stream.position + header_bytes + 4) % ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + bytes(padding)  # "FB": PyTorch's mark of its own padding
    with archive.open(info, "w") as record:
        offset = stream.position
        for start in range(0, view.nbytes, CHUNK_BYTES):
            record.write(view[start : start + CHUNK_BYTES])
    assert offset % ALIGNMENT == 0, "the padding was computed for another header"
    return offset


def _to_json(value: Any) -> Any:
    if isinstance(value, StoredTensor):
        return {TENSOR: value.index}
    if isinstance(value, list):
        return [_to_json(item) for item in value]
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: _to_json(item) for key, item in value.items()}
        return {ITEMS: [[key, _to_json(item)] for key, item in value.items()]}
    return value


def _dtype_name(tensor: Tensor) -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise TypeError(f"a checkpoint holds tensors of {', '.join(DTYPES)}, not {name}")
    return name
