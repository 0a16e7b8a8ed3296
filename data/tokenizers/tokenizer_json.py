"""Our tokenizers as the `tokenizer.json` of Hugging Face's library, and the files that `AutoTokenizer` opens."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.tokenizers.base import END_OF_TEXT, Tokenizer
from data.tokenizers.byte_pair_merges import merges_from_ranks
from data.tokenizers.huggingface import ONIGURUMA_PATTERNS
from data.tokenizers.trained_bpe import byte_of_printable

EXPORTED_FILES = (
    *("config.json", "generation_config.json", "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json"),
)
"""All files of an exported folder."""

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def export_tokenizer(tokenizer: Tokenizer, folder: Path, context_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json, which `AutoTokenizer` opens to the same ids.

    As everywhere in transformers, `<|endoftext|>` inside a text becomes the special token there. A character that a
    char tokenizer does not know is an error here, but left out there.
    """
    spec = tokenizer_spec(tokenizer)
    of_id = {token["id"]: token["content"] for token in spec["added_tokens"]}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        "eos_token": of_id[tokenizer.end_of_text],
    }
    if tokenizer.begin_of_text is not None:
        settings["bos_token"] = of_id[tokenizer.begin_of_text]
    for file, values in (("tokenizer.json", spec), ("tokenizer_config.json", settings)):
        (folder / file).write_text(json.dumps(values, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


def tokenizer_spec(tokenizer: Tokenizer) -> dict[str, Any]:
    """The contents of the tokenizer.json of one of our tokenizers."""
    state = tokenizer.state()
    if state["kind"] == "huggingface":
        spec: dict[str, Any] = json.loads(state["tokenizer_json"])
        return spec
    if state["kind"] == "char":
        vocab = {character: token_id for token_id, character in enumerate(state["characters"])}
        return _spec(vocab, [], None, {"type": "Fuse"}, tokenizer.end_of_text)
    printable = {value: character for character, value in byte_of_printable().items()}

    def spell(token: bytes) -> str:
        return "".join(map(printable.__getitem__, token))

    tokens = [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)]
    vocab = {spell(token): token_id for token_id, token in enumerate(tokens) if token}
    merges = [[spell(left), spell(right)] for left, right in merges_from_ranks(tokens)]
    # Without merges it does not matter where a text is split.
    pattern = ONIGURUMA_PATTERNS[state.get("pattern", "gpt2")]
    spec = byte_level_spec(vocab, merges, pattern, tokenizer.end_of_text)
    spec["model"]["ignore_merges"] = True
    return spec


def byte_level_spec(
    vocab: Mapping[str, int], merges: list[list[str]], pattern: str, end_of_text: int | None = None
) -> dict[str, Any]:
    """The tokenizer.json of a byte-level BPE, whose tokens are spelled in GPT-2's printable characters."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    pre_tokenizer = {"type": "Sequence", "pretokenizers": [split, _BYTE_LEVEL]}
    return _spec(vocab, merges, pre_tokenizer, _BYTE_LEVEL, end_of_text)


def _spec(
    vocab: Mapping[str, int],
    merges: list[list[str]],
    pre_tokenizer: dict[str, Any] | None,
    decoder: dict[str, Any],
    end_of_text: int | None,
) -> dict[str, Any]:
    special = {} if end_of_text is None else {END_OF_TEXT: end_of_text}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [special_token(token_id, content) for content, token_id in special.items()],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {**vocab, **special},
            "merges": merges,
        },
    }


def special_token(token_id: int, content: str) -> dict[str, Any]:
    """The entry of a token that stands for no text."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token_id, "content": content, **flags}
