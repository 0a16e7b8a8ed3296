"""Save and load a model with everything that belongs to it, as one file that is whole or not there at all.

`save_checkpoint` and `load_checkpoint` are the only ways out and in; `read_card` tells about a file without PyTorch.
The bytes are described in `checkpoint_format`, how a crash is survived in `durable_files`. Whatever is wrong with a
file is a CheckpointError of one line that names it; whatever the disk refuses is a StorageError.
"""

from __future__ import annotations

import errno
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from command_line import config_to_dict
from model import durable_files
from model.checkpoint_content import check_content
from model.checkpoint_format import CheckpointError
from model.checkpoint_reader import CheckpointReader, replace_entries
from model.config import ModelConfig
from model.durable_files import StorageError

if TYPE_CHECKING:
    from torch import Tensor

    from model.gpt import GPT

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "StorageError",
    "load_checkpoint",
    "read_card",
    "save_checkpoint",
    "verify_checkpoint",
]


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint in memory; only plain data and tensors, all of them fitting the model's config."""

    model_config: ModelConfig
    state_dict: dict[str, Tensor]
    tokenizer: dict[str, Any]
    provenance: dict[str, Any]
    training_state: dict[str, Any] | None
    kind: str
    path: Path
    sha256: str

    def build_model(self) -> GPT:
        """The GPT with these weights, in evaluation mode; it uses the tensors of this checkpoint, not copies."""
        from model.gpt import GPT

        if self.kind != "gpt":
            raise CheckpointError(f"{self.path} holds a {self.kind}, but a language model is needed here")
        return GPT.from_state_dict(self.model_config, self.state_dict)


def save_checkpoint(
    path: Path,
    *,
    model_config: ModelConfig,
    state_dict: dict[str, Tensor],
    tokenizer: dict[str, Any],
    provenance: dict[str, Any],
    training_state: dict[str, Any] | None = None,
    kind: str = "gpt",
) -> str:
    """Write a checkpoint, read it back, give it its name; returns its SHA-256.

    Names lose the `_orig_mod.` of torch.compile, tensors that share memory are stored once, tuples become lists. Needs
    no second copy of the weights. Raises StorageError when the disk refuses; a file that was there is untouched then.
    """
    from model.checkpoint_writer import CheckpointContent

    content = CheckpointContent(
        {
            "kind": kind,
            "model_config": config_to_dict(model_config),
            "state_dict": _clean_state_dict(state_dict, model_config),
            "tokenizer": tokenizer,
            "provenance": provenance,
            "training_state": training_state,
        }
    )

    def verify(written: Path, sha256: str) -> None:
        try:
            with CheckpointReader(written) as reader:
                if reader.verify() != sha256:
                    raise CheckpointError("another checksum")
                card = reader.read_card()
        except CheckpointError as error:
            cause = error.__cause__ if isinstance(error.__cause__, OSError) else None
            raise cause or OSError(errno.EIO, "what was read back is not what was written") from error
        check_content(card)  # what could not be loaded is not saved

    _check_free_space(path, content.n_bytes())
    return durable_files.write_atomically(path, content.write, verify)


def _clean_state_dict(state_dict: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    import torch

    clean = {name.replace("_orig_mod.", ""): tensor for name, tensor in state_dict.items()}
    embedding, head = clean.get("token_embedding.weight"), clean.get("head.weight")
    if config.tied_head and embedding is not None and head is not None:
        # Gathering a sharded model copies both names; they are one weight all the same.
        if embedding.data_ptr() != head.data_ptr() and not torch.equal(embedding, head):
            raise ValueError("the head is tied to the token embedding, but their weights differ")
        clean["head.weight"] = embedding
    return clean


def _check_free_space(path: Path, n_bytes: int) -> None:
    """Find a full disk before half a file is written."""
    try:
        free = durable_files.free_bytes(path.parent)
    except OSError:
        return  # writing will say better what is wrong
    if free < n_bytes:
        needed = f"it needs {n_bytes / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free"
        raise StorageError("save", path, OSError(errno.ENOSPC, f"No space left on device: {needed}"))


def load_checkpoint(path: Path, device: str = "cpu") -> Checkpoint:
    """Load a checkpoint onto a device: verified, and with exactly the weights that its config asks for.

    Raises CheckpointError for anything else: damaged, cut short, of another kind or format, not a file at all.
    """
    with CheckpointReader(path) as reader:
        sha256 = reader.verify()
        card = reader.read_card()
        config = check_content(card)
        tensors = dict(zip(card.tensors, reader.read_tensors(card.tensors, device), strict=True))
    content = replace_entries(card.content, tensors.__getitem__)
    return Checkpoint(**{**content, "model_config": config}, path=path, sha256=sha256)


def verify_checkpoint(path: Path) -> str:
    """Compare the checksum of a file with its content and return it; raises CheckpointError."""
    with CheckpointReader(path) as reader:
        return reader.verify()


def read_card(path: Path) -> dict[str, Any]:
    """What a checkpoint says about itself, verified, without loading PyTorch; raises CheckpointError."""
    with CheckpointReader(path) as reader:
        sha256 = reader.verify()
        card = reader.read_card()
    config = check_content(card, weights=False)
    tokenizer, weights = card.content["tokenizer"], set(card.content["state_dict"].values())
    return {
        "path": str(path),
        "kind": card.content["kind"],
        "format_version": card.format_version,
        "saved_at": card.saved_at,
        "file_bytes": card.file_bytes,
        "sha256": sha256,
        "model_config": config_to_dict(config),
        "parameters": sum(math.prod(entry.shape) for entry in weights),
        "tokenizer": {"name": tokenizer.get("name", tokenizer["kind"]), "vocab_size": config.vocab_size},
        "provenance": card.content["provenance"],
        "resumable": card.content["training_state"] is not None,
    }
