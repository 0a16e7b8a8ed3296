"""Our tokenizers as the `tokenizer.ggml.*` entries of a GGUF file.

llama.cpp has two kinds that matter here: `gpt2` (byte-level BPE, by merges) and `llama` (SentencePiece BPE, by the
scores of the merged tokens). It knows expressions by name only.
"""

import re
from typing import Any

from command_line import UserError
from data.tokenizers.base import END_OF_TEXT, Tokenizer
from data.tokenizers.byte_pair_merges import merges_equal_ranks
from data.tokenizers.huggingface import merge_pairs, parts_of
from data.tokenizers.huggingface_files import pattern_name
from data.tokenizers.tokenizer_json import tokenizer_spec
from data.tokenizers.trained_bpe import byte_of_printable

# Our expression → llama.cpp's name of it (llama_vocab::impl::load); `llama-bpe` also takes whole words that are tokens.
_PRE_TOKENIZERS = {"gpt2": "gpt-2", "llama3": "llama-bpe", "cl100k_base": "llama-bpe", "o200k_base": "gpt-4o"}
_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6


class NoGGUFError(UserError):
    """llama.cpp has no way to give the ids of a tokenizer; `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"this tokenizer cannot be exported to GGUF: {reason}")
        self.reason = reason


def gguf_vocabulary(tokenizer: Tokenizer) -> dict[str, Any]:
    """Metadata of a GGUF file with which llama.cpp gives the same ids; raises NoGGUFError when it has no way to.

    In a text that begins with a space, SentencePiece vocabularies of the newer kind may differ by that space.
    """
    spec = tokenizer_spec(tokenizer)
    kind: dict[str, Any]
    decoders = {step.get("type") for step in parts_of(spec, "decoder")}
    if tokenizer.state()["kind"] == "char":
        vocab, kind = _ascii_as_bytes(spec["model"]["vocab"]), {"model": "gpt2", "pre": "gpt-2"}
    elif "ByteLevel" in decoders:
        vocab, kind = spec["model"]["vocab"], _byte_level(spec)
    else:
        vocab, kind = spec["model"]["vocab"], _sentencepiece(spec, tokenizer.vocab_size)
    if kind["model"] == "gpt2":
        # llama.cpp insists on a list of merges and gguf writes no empty one. This merge changes nothing: two NUL bytes
        # joined are no token, so llama.cpp takes them apart again.
        kind["merges"] = [" ".join(pair) for pair in merge_pairs(spec)] or ["Ā Ā"]
    tokens, types = _tokens(vocab, spec, tokenizer.vocab_size)
    begin = tokenizer.begin_of_text
    values = {
        **kind,
        "tokens": tokens,
        "token_type": types,
        "eos_token_id": tokenizer.end_of_text,
        # Left out, it would be another vocabulary's.
        "bos_token_id": tokenizer.end_of_text if begin is None else begin,
        "add_bos_token": begin is not None,
        "add_eos_token": False,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in values.items()}


def _tokens(vocab: dict[str, int], spec: dict[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """The text and type of every id."""
    tokens = [f"[PAD{token_id}]" for token_id in range(vocab_size)]
    types = [_UNUSED] * vocab_size
    has_bytes = spec["model"].get("byte_fallback")
    for token, token_id in vocab.items():
        tokens[token_id] = token
        types[token_id] = _BYTE if has_bytes and _BYTE_TOKEN.fullmatch(token) else _NORMAL
    for token in spec["added_tokens"]:
        tokens[token["id"]] = token["content"]
        types[token["id"]] = _CONTROL if token["special"] else _USER_DEFINED
        if token["content"] == spec["model"].get("unk_token"):
            types[token["id"]] = _UNKNOWN
    return tokens, types


def _byte_level(spec: dict[str, Any]) -> dict[str, Any]:
    name, model = pattern_name(spec), spec["model"]
    if name is None or spec.get("normalizer") is not None:
        raise NoGGUFError("llama.cpp splits texts otherwise")
    pre = _PRE_TOKENIZERS[name]
    unmerged = _unmerged(spec)
    if unmerged and model.get("ignore_merges") and pre != "llama-bpe":
        raise NoGGUFError(f"no merge leads to its token {unmerged[0]!r}")
    return {"model": "gpt2", "pre": pre}


def _sentencepiece(spec: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    model, merges = spec["model"], merge_pairs(spec)
    # The earlier a token is merged, the higher its score.
    order = list(dict.fromkeys(left + right for left, right in merges))
    is_exact = model.get("byte_fallback") and not _unmerged(spec)
    if not is_exact or not merges_equal_ranks(order, merges, ignore_merges=False):
        raise NoGGUFError("scores cannot say in which order it merges")
    scores = [0.0] * vocab_size
    for rank, token in enumerate(order):
        scores[model["vocab"][token]] = float(-rank)
    steps = [*parts_of(spec, "normalizer"), *parts_of(spec, "pre_tokenizer")]
    prefix = any(step["type"] == "Prepend" or step.get("prepend_scheme", "never") != "never" for step in steps)
    return {"model": "llama", "pre": "default", "scores": scores, "add_space_prefix": prefix}


def _unmerged(spec: dict[str, Any]) -> list[str]:
    """Tokens that no merge leads to."""
    known = {token["content"] for token in spec["added_tokens"]} | {left + right for left, right in merge_pairs(spec)}
    is_byte = _BYTE_TOKEN.fullmatch if spec["model"].get("byte_fallback") else lambda token: None
    return [token for token in spec["model"]["vocab"] if len(token) > 1 and token not in known and not is_byte(token)]


def _ascii_as_bytes(vocab: dict[str, int]) -> dict[str, int]:
    """Characters that are single bytes, in GPT-2's spelling; llama.cpp has no vocabulary of longer characters."""
    printable = {value: character for character, value in byte_of_printable().items()}
    longer = [character for character in vocab if not character.isascii()]
    if longer:
        raise NoGGUFError(f"llama.cpp has no single token for {longer[0]!r}; train with --tokenizer byte or bpe:N")
    return {token if token == END_OF_TEXT else printable[ord(token)]: token_id for token, token_id in vocab.items()}
