"""The bytes of a checkpoint file: a zip that plain PyTorch opens, a JSON card that needs no PyTorch, and a checksum.

    checkpoint/data.pkl          what `torch.load(path, weights_only=True)` reads; this project never does
    checkpoint/version, byteorder
    checkpoint/data/0, 1, …      the bytes of the tensors, each at a multiple of 64 (so that they can be memory-mapped)
    checkpoint/card.json         everything that is not a tensor, and where each tensor lies
    zip directory, with the comment `sha256:<64 hex digits>` over every byte before it

`checkpoint_writer` writes it, `checkpoint_reader` reads it: checksum, then card, then tensors.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command_line import EXIT_CHECKPOINT, UserError

FORMAT = "mini-gpt checkpoint"
FORMAT_VERSION = 1
CARD_RECORD = "checkpoint/card.json"
COMMENT_BYTES = len("sha256:") + 64
CHUNK_BYTES = 2**20
"""What is read, hashed and written at once."""
ALIGNMENT = 64
"""PyTorch's own alignment of the tensors in a file."""

# dtype → bytes per element, and the name that PyTorch's file format gives to its storage.
DTYPES = {
    "float64": (8, "DoubleStorage"),
    "float32": (4, "FloatStorage"),
    "float16": (2, "HalfStorage"),
    "bfloat16": (2, "BFloat16Storage"),
    "int64": (8, "LongStorage"),
    "int32": (4, "IntStorage"),
    "int16": (2, "ShortStorage"),
    "int8": (1, "CharStorage"),
    "uint8": (1, "ByteStorage"),
    "bool": (1, "BoolStorage"),
}

# How the card spells what JSON cannot: {"$tensor": number}, and {"$items": [[key, value], …]} for dictionaries with
# keys that are no texts, or that begin with "$".
TENSOR = "$tensor"
ITEMS = "$items"


class CheckpointError(UserError):
    """A file cannot be used as a checkpoint; the message names the file and the reason."""

    exit_code = EXIT_CHECKPOINT


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies in the file, and what it is."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    n_bytes: int


@dataclass(frozen=True)
class Card:
    """What a checkpoint says about itself; `content` holds a TensorEntry wherever a tensor belongs."""

    path: Path
    content: dict[str, Any]
    tensors: tuple[TensorEntry, ...]
    format_version: int
    saved_at: float
    file_bytes: int
