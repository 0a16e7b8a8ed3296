"""A model as one GGUF file, which llama.cpp and the programs built on it run.

The format: github.com/ggml-org/ggml/blob/master/docs/gguf.md. What llama.cpp expects of the two architectures: its
`convert_hf_to_gguf.py` and `src/models/`.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from command_line import MissingPackageError, UserError
from model.config import ModelConfig
from model.huggingface import split_weights
from model.layouts.registry import check_exportable, layout_for, why_not_gguf
from model.positions import rotary_frequencies

Metadata = Mapping[str, str | int | float | bool | list[str] | list[int] | list[float]]

_FILE_TYPES = {"f32": 0, "bf16": 32, "q8_0": 7}
"""`general.file_type` of llama.cpp, by precision of the matrices."""


def export_gguf(
    config: ModelConfig,
    state_dict: Mapping[str, Tensor],
    path: Path,
    *,
    vocabulary: Metadata,
    dtype: str = "f32",
    name: str = "",
) -> None:
    """Write a GGUF file; `vocabulary` are the `tokenizer.*` entries of `data/tokenizers/gguf_vocabulary.py`.

    dtype f32, bf16 or q8_0 (blocks of 32 weights in 8 bits and one scale) holds for the matrices; vectors stay f32.
    Raises UserError naming what llama.cpp has no counterpart for.
    """
    check_exportable(config)
    reasons = why_not_gguf(config)
    if reasons:
        raise UserError(f"this model cannot be exported to GGUF: {'; '.join(reasons)}")
    try:
        import gguf
    except ImportError:
        raise MissingPackageError("gguf", "writing a GGUF file") from None
    layout = layout_for(config)
    writer = gguf.GGUFWriter(path, layout.name)
    try:
        metadata = {"general.name": name, "general.file_type": _FILE_TYPES[dtype], **_parameters(config), **vocabulary}
        if dtype == "q8_0":
            metadata["general.quantization_version"] = 2
        for key, value in metadata.items():
            _add(writer, key, value)
        for our_name, parts in split_weights(config, state_dict):
            for their_name, part in zip(layout.gguf_names(our_name), parts, strict=True):
                _add_tensor(writer, their_name, _reordered(their_name, part.float(), config), dtype)
        if config.rope_scaling == "llama3":
            _add_tensor(writer, "rope_freqs.weight", _frequency_factors(config), "f32")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _parameters(config: ModelConfig) -> dict[str, Any]:
    """What the file says about the shape of the model."""
    name, rms = layout_for(config).name, "_rms" if config.normalization == "rmsnorm" else ""
    values: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.context_length,
        "embedding_length": config.n_embd,
        "block_count": config.n_layer,
        "feed_forward_length": config.feed_forward_width,
        "attention.head_count": config.n_head,
        "attention.head_count_kv": config.key_value_heads,
        f"attention.layer_norm{rms}_epsilon": config.norm_eps,
    }
    if config.positions == "rotary":
        D = config.channels_per_head
        values |= {"attention.key_length": D, "attention.value_length": D}
        values |= {"rope.dimension_count": D, "rope.freq_base": config.rope_theta}
    if config.rope_scaling == "linear":
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": config.rope_scaling_factor}
    return {f"{name}.{key}": value for key, value in values.items()}


def _frequency_factors(config: ModelConfig) -> Tensor:
    """By how much llama.cpp has to divide each rotary frequency, (D/2,)."""
    plain = dataclasses.replace(config, rope_scaling="none", rope_scaling_factor=1.0)
    return (rotary_frequencies(plain) / rotary_frequencies(config)).float()


def _reordered(name: str, weight: Tensor, config: ModelConfig) -> Tensor:
    """Queries and keys of Llama with channels i and i + D/2 of each head side by side, as llama.cpp rotates them."""
    if name.split(".")[-2] not in ("attn_q", "attn_k"):
        return weight
    D = config.channels_per_head
    halves = weight.view(-1, 2, D // 2, *weight.shape[1:])  # (heads, 2, D/2, …)
    return halves.transpose(1, 2).reshape(weight.shape)


def _add(writer: Any, key: str, value: Any) -> None:
    # bool first: to Python, True is a whole number too.
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    add.get(type(value), writer.add_array)(key, value)


def _add_tensor(writer: Any, name: str, weight: Tensor, dtype: str) -> None:
    import gguf

    kinds = gguf.GGMLQuantizationType
    kind = {"f32": kinds.F32, "bf16": kinds.BF16, "q8_0": kinds.Q8_0}[dtype]
    if weight.ndim == 1 or name.startswith("position_embd"):
        kind = kinds.F32  # llama.cpp adds and multiplies these in fp32
    elif kind is kinds.Q8_0 and weight.shape[1] % 32:
        kind = kinds.BF16  # a row must be whole blocks of 32
    values = weight.contiguous().numpy()
    data = values if kind is kinds.F32 else gguf.quantize(values, kind)
    writer.add_tensor(name, data, raw_dtype=kind)
