"""Weights and configs of GPT-2 and Llama models, in from a Hugging Face folder and out to one.

    config.json + *.safetensors ──import_model──▶ GPT ──export_model──▶ config.json + model.safetensors

What the names mean stands in `layouts`, how files are read in `weight_files`. Tokenizer files are another matter
(`data/tokenizers/huggingface.py`).
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from command_line import MissingPackageError
from model.config import ModelConfig
from model.gpt import GPT
from model.initialization import outlined
from model.layouts.base import Layout
from model.layouts.gpt2 import GPT2
from model.layouts.registry import check_exportable, layout_for, read_model_config
from model.weight_files import WeightFiles, WeightsError, read_json

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}

# Tables that follow from the config (causal masks, rotary frequencies), which older files hold as tensors.
_DERIVED = re.compile(r"(\.attn\.(bias|masked_bias)|\.rotary_emb\.inv_freq)$")


def import_model(folder: str | Path) -> GPT:
    """The GPT in a Hugging Face folder, in fp32 and evaluation mode; needs config.json and weights, no tokenizer.

    Raises UserError for a config field that is unknown here or contradicts another, WeightsError for a missing,
    damaged or misshaped tensor. Each tensor is copied once, straight from the mapped file to its place.
    """
    folder = Path(folder)
    layout, config = read_config(folder)
    with outlined():
        outline = GPT(config).state_dict()
    with WeightFiles(folder) as files:
        # Files of the bare model, without its head, leave out the first word of every name.
        prefix = layout.names("token_embedding.weight")[0].split(".")[0] + "."
        shift = "" if any(name.startswith(prefix) for name in files.names) else prefix
        weights = {
            name: _read(files, layout, config, name, tuple(tensor.shape), shift)
            for name, tensor in outline.items()
            if not (config.tied_head and name == "head.weight")
        }
        if config.tied_head:
            weights["head.weight"] = weights["token_embedding.weight"]
        _check_rest(files, layout, weights, config, shift)
    return GPT.from_state_dict(config, weights)


def read_config(folder: Path) -> tuple[Layout, ModelConfig]:
    """The family and our config of a Hugging Face folder; raises UserError naming the field that is not understood."""
    path = folder / "config.json"
    if not path.exists():
        raise WeightsError(f"{folder} is no folder of a Hugging Face model: it holds no config.json")
    return read_model_config(read_json(path), str(path))


def _rows(config: ModelConfig, names: tuple[str, ...], n_rows: int) -> list[int]:
    """How many rows of our tensor each of their tensors fills."""
    if len(names) == 1:
        return [n_rows]
    D = config.channels_per_head
    return [config.n_head * D, config.key_value_heads * D, config.key_value_heads * D]


def _read(
    files: WeightFiles, layout: Layout, config: ModelConfig, name: str, shape: tuple[int, ...], shift: str
) -> Tensor:
    theirs = layout.names(name)
    rows = _rows(config, theirs, shape[0])
    # Checked before any memory is asked for: a config may promise sizes that the file does not hold.
    parts = []
    for their_name, n_rows in zip(theirs, rows, strict=True):
        part_shape = (n_rows, *shape[1:])
        if layout.is_transposed(name):
            parts.append(files.read(their_name.removeprefix(shift), part_shape[::-1]).T)
        else:
            parts.append(files.read(their_name.removeprefix(shift), part_shape))
    weight = torch.empty(shape)
    for part, target in zip(parts, weight.split_with_sizes(rows), strict=True):
        target.copy_(part)
    return weight


def _check_rest(
    files: WeightFiles, layout: Layout, weights: Mapping[str, Tensor], config: ModelConfig, shift: str
) -> None:
    """Refuse tensors that nobody asked for: they would belong to a model that computes something else."""
    used = {their_name.removeprefix(shift) for name in weights for their_name in layout.names(name)}
    (head,) = layout.names("head.weight")
    extra = sorted(name for name in files.names - used if not _DERIVED.search(name))
    if extra:
        raise WeightsError(f"{files.source} holds the tensor {extra[0]}, which a {layout.name} model does not have")
    if config.tied_head and head in files.names:
        embedding = weights["token_embedding.weight"]
        if not torch.equal(files.read(head, tuple(embedding.shape)).float(), embedding):
            raise WeightsError(
                f"{files.source} contradicts config.json, which ties the head to the token embedding: the tensor "
                f"{head} differs from it"
            )


def split_weights(config: ModelConfig, state_dict: Mapping[str, Tensor]) -> Iterator[tuple[str, list[Tensor]]]:
    """Our names with the weights that belong to each of their outside names; raises UserError when a model has none.

    GPT-2 has biases everywhere: a model without them gets zeros, which compute the same.
    """
    check_exportable(config)
    if layout_for(config) is GPT2:
        config = dataclasses.replace(config, bias=True, feed_forward_bias=None)
    with outlined():
        outline = GPT(config).state_dict()
    for name, expected in outline.items():
        if config.tied_head and name == "head.weight":
            continue
        weight = state_dict[name] if name in state_dict else torch.zeros(expected.shape)
        rows = _rows(config, layout_for(config).names(name), weight.shape[0])
        yield name, list(weight.detach().cpu().split_with_sizes(rows))


def export_model(
    config: ModelConfig,
    state_dict: Mapping[str, Tensor],
    folder: Path,
    *,
    end_of_text: int,
    begin_of_text: int | None = None,
    dtype: str = "f32",
) -> None:
    """Write config.json, generation_config.json and model.safetensors into an existing folder; dtype f32 or bf16.

    Raises UserError naming each part of the model that transformers has no counterpart for.
    """
    check_exportable(config)
    try:
        from safetensors import SafetensorError
        from safetensors.torch import save_file
    except ImportError:
        raise MissingPackageError("safetensors", "writing safetensors") from None
    layout = layout_for(config)
    special = {"bos_token_id": begin_of_text, "eos_token_id": end_of_text, "pad_token_id": None}
    values = {
        "architectures": [layout.architecture],
        "model_type": layout.name,
        "torch_dtype": {"f32": "float32", "bf16": "bfloat16"}[dtype],
        **special,
        **layout.write_config(config),
    }
    _write_json(folder / "config.json", values)
    # Padding is never read; naming an id keeps transformers from warning about it at every call.
    _write_json(folder / "generation_config.json", {**special, "pad_token_id": end_of_text})
    tensors = {
        their_name: (part.T if layout.is_transposed(name) else part).to(DTYPES[dtype]).contiguous()
        for name, parts in split_weights(config, state_dict)
        for their_name, part in zip(layout.names(name), parts, strict=True)
    }
    try:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        # The library lets nobody but the owner read its file.
        (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode)
    except SafetensorError as error:  # what the library makes of a full disk
        raise OSError(str(error)) from error


def _write_json(path: Path, values: Mapping[str, object]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
