"""What every family says of itself, and a config.json read so that no field is overlooked."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from command_line import UserError
from model.config import ModelConfig

# Fields that say nothing about what the model computes: training, sampling, bookkeeping, which tokens end a text.
# fmt: off
_NO_EFFECT = frozenset((
    "_name_or_path", "_num_labels", "architectures", "bad_words_ids", "bos_token_id", "decoder_start_token_id",
    "do_sample", "dtype", "early_stopping", "eos_token_id", "finetuning_task", "gradient_checkpointing", "id2label",
    "initializer_range", "label2id", "length_penalty", "max_length", "min_length", "model_type",
    "no_repeat_ngram_size", "num_beams", "num_labels", "num_return_sequences", "output_attentions",
    "output_hidden_states", "output_past", "pad_token_id", "predict_special_tokens", "prefix", "pretraining_tp",
    "problem_type", "reorder_and_upcast_attn", "repetition_penalty", "return_dict", "sep_token_id",
    "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj",
    "task_specific_params", "temperature", "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript",
    "transformers.js_config", "transformers_version", "unk_token_id", "use_bfloat16", "use_cache", "xla_device",
))
# fmt: on

# Fields that may be there, but only with a value that changes nothing.
_ONLY: dict[str, tuple[object, ...]] = {
    "add_cross_attention": (False,),
    "chunk_size_feed_forward": (0,),
    "is_decoder": (False, True),
    "is_encoder_decoder": (False,),
    "is_llama_config": (True,),
    "n_special": (0,),
    "partial_rotary_factor": (1, 1.0, None),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "rope_interleaved": (False,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "scale_attn_weights": (True,),
    "sliding_window": (None,),
    "tie_encoder_decoder": (False,),
}


@dataclass(frozen=True)
class Layout:
    """One family of models, as Hugging Face stores it."""

    name: str
    """`model_type` in config.json, `general.architecture` in a GGUF file."""

    architecture: str
    """The class of transformers that opens it."""

    parts: Mapping[str, tuple[object, ...]]
    """Fields of ModelConfig → the values that this family has a counterpart for."""

    tensors: Mapping[str, tuple[str, ...]]
    """Our names → theirs, `#` being the layer; several are stacked in this order along the rows."""

    gguf_tensors: Mapping[str, tuple[str, ...]]
    """Our names → those in a GGUF file, in the same way."""

    transposed: tuple[str, ...]
    """Endings of our names whose weights they store as (in, out): GPT-2's Conv1D."""

    read_config: "Callable[[Fields], dict[str, Any]]"
    write_config: Callable[[ModelConfig], dict[str, Any]]

    def names(self, our_name: str) -> tuple[str, ...]:
        """Hugging Face's names of one of our tensors."""
        return _names(self.tensors, our_name)

    def gguf_names(self, our_name: str) -> tuple[str, ...]:
        """The names of one of our tensors in a GGUF file."""
        return _names(self.gguf_tensors, our_name)

    def is_transposed(self, our_name: str) -> bool:
        """Whether they store this tensor as (in, out)."""
        return our_name.endswith(self.transposed)


def _names(table: Mapping[str, tuple[str, ...]], our_name: str) -> tuple[str, ...]:
    stem, _, kind = our_name.rpartition(".")
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", stem)
    layer, pattern = (block[1], f"blocks.#.{block[2]}") if block else ("", stem)
    return tuple(f"{theirs.replace('#', layer)}.{kind}" for theirs in table[pattern])


class Fields:
    """The fields of a config.json; whatever is read is checked, and whatever nobody read is refused by name."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where
        self._read: set[str] = set()

    def get(self, name: str, default: object, *kinds: type) -> Any:
        """The value of a field, which must be of one of the kinds; absent or null means the default."""
        self._read.add(name)
        value = self.values.get(name)
        if value is None:
            return default
        if type(value) not in kinds:
            expected = " or ".join({int: "a whole number", float: "a number"}.get(k, k.__name__) for k in kinds)
            raise UserError(f"{self.where}: {name} must be {expected}, but is {value!r}")
        return value

    def size(self, name: str) -> int:
        """A whole number that cannot be left out."""
        value: int | None = self.get(name, None, int)
        if value is None:
            raise UserError(f"{self.where} misses the field {name!r}")
        return value

    def number(self, name: str, default: float) -> float:
        """A number, which JSON may spell as a whole one."""
        return float(self.get(name, default, int, float))

    def choice(self, name: str, default: str, allowed: Mapping[str, str]) -> str:
        """Our word for their word."""
        value: str = self.get(name, default, str)
        if value not in allowed:
            raise UserError(f"{self.where}: {name} must be one of {', '.join(allowed)}, but is {value!r}")
        return allowed[value]

    def same(self, name: str, other: str) -> None:
        """Refuse a second field that contradicts the first."""
        self._read.add(name)
        if self.values.get(name) not in (None, self.values.get(other)):
            values = f"{name} is {self.values[name]!r}, {other} is {self.values.get(other)!r}"
            raise UserError(f"{self.where} contradicts itself: {values}")

    def finish(self) -> None:
        """Refuse every field that was not read and may change what the model computes."""
        for name in sorted(set(self.values) - self._read - _NO_EFFECT):
            value, allowed = self.values[name], _ONLY.get(name)
            if allowed is None:
                raise UserError(f"{self.where} has the field {name!r} ({str(value)[:60]}), which is not known here")
            if value not in allowed:
                raise UserError(f"{self.where}: {name} must be {allowed[0]!r}, but is {str(value)[:60]!r}")
