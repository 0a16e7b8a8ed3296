"""The pickle inside a checkpoint, written opcode by opcode, so that plain `torch.load(weights_only=True)` opens it.

This project writes it and never reads it: the card beside it says the same. Only numbers, texts, lists, dictionaries
and tensors can be expressed, so there is nothing in it that could run. Opcodes: Python's `pickletools`; how a tensor
is spelt: `torch/serialization.py` and `torch/_utils.py`.
"""

import math
import struct
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StoredTensor:
    """A tensor whose elements lie row by row in the record `data/<index>`; the class is PyTorch's name of its type."""

    index: int
    shape: tuple[int, ...]
    storage_class: str


def pickle_plain_data(value: Any) -> bytes:
    """Pickle None, bool, int, float, str, list, dict and StoredTensor (protocol 2)."""
    parts = [b"\x80\x02"]
    _append(parts, value)
    parts.append(b".")
    return b"".join(parts)


def _append(parts: list[bytes], value: Any) -> None:
    if isinstance(value, StoredTensor):
        parts.append(_tensor(value))
    elif isinstance(value, dict):
        parts.append(b"}(")
        for key, item in value.items():
            _append(parts, key)
            _append(parts, item)
        parts.append(b"u")
    elif isinstance(value, list):
        parts.append(b"](")
        for item in value:
            _append(parts, item)
        parts.append(b"e")
    else:
        parts.append(_scalar(value))


def _scalar(value: bool | int | float | str | None) -> bytes:
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        text = value.encode("utf-8", "surrogatepass")
        return b"X" + struct.pack("<I", len(text)) + text
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    digits = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    assert len(digits) < 256, "longer integers need another opcode"
    return b"\x8a" + bytes([len(digits)]) + digits


def _tensor(tensor: StoredTensor) -> bytes:
    """`_rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())`; equal storages are shared by PyTorch."""
    strides = [math.prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape))]
    storage = (
        _scalar("storage")
        + f"ctorch\n{tensor.storage_class}\n".encode()
        + _scalar(str(tensor.index))
        + _scalar("cpu")
        + _scalar(math.prod(tensor.shape))
    )
    return b"".join(
        (
            b"ctorch._utils\n_rebuild_tensor_v2\n(",
            b"(" + storage + b"tQ",
            _scalar(0),
            b"(" + b"".join(map(_scalar, tensor.shape)) + b"t",
            b"(" + b"".join(map(_scalar, strides)) + b"t",
            _scalar(False),
            b"ccollections\nOrderedDict\n)R",
            b"tR",
        )
    )
