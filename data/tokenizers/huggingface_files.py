"""Tokenizer files of a Hugging Face folder as one of our tokenizers.

    tokenizer.json | vocab.json + merges.txt ──┬─ exactly a tiktoken encoding ─▶ BytePairTokenizer
    tokenizer.model (SentencePiece) ───────────┴─ anything else ───────────────▶ HuggingFaceTokenizer

"Exactly" is checked token by token (`byte_pair_merges`), never assumed. The way out is `tokenizer_json`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from command_line import UserError
from data.tokenizers.base import END_OF_TEXT, Tokenizer
from data.tokenizers.byte_pair_merges import merges_equal_ranks
from data.tokenizers.huggingface import ONIGURUMA_PATTERNS, HuggingFaceTokenizer, merge_pairs, parts_of
from data.tokenizers.tiktoken_bpe import BytePairTokenizer
from data.tokenizers.tokenizer_json import byte_level_spec, special_token
from data.tokenizers.trained_bpe import bytes_of_printable

MAX_FILE_BYTES = 1 << 26
_FILES = ("tokenizer.json", "vocab.json and merges.txt", "tokenizer.model")


def import_tokenizer(folder: Path, vocab_size: int, name: str) -> Tokenizer:
    """The tokenizer in a Hugging Face folder, its vocabulary padded to that of its model.

    Raises UserError when there is none, when it is damaged, or when it does things that ours cannot.
    """
    spec = _read_spec(folder)
    settings = _read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    end_of_text = _end_of_text(folder, spec, settings)
    _make_special(spec, end_of_text)
    begin_of_text = _begin_of_text(spec, settings)
    if begin_of_text is None:
        exact = _as_byte_pairs(spec, vocab_size, name, end_of_text)
        if exact is not None:
            return exact
    return HuggingFaceTokenizer(
        name,
        json.dumps(spec, ensure_ascii=False),
        vocab_size=vocab_size,
        end_of_text=end_of_text,
        begin_of_text=begin_of_text,
    )


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MB, which no tokenizer should be")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is damaged: it is not UTF-8") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(_read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object")
    return values


def _read_spec(folder: Path) -> dict[str, Any]:
    """The contents of a tokenizer.json, whatever files the folder has."""
    if (folder / "tokenizer.json").exists():
        spec = _read_json(folder / "tokenizer.json")
        if not isinstance(spec.get("model"), dict) or not isinstance(spec["model"].get("vocab"), dict | list):
            raise UserError(f"{folder / 'tokenizer.json'} is damaged: it has no vocabulary")
        spec["added_tokens"] = spec.get("added_tokens") or []
        if not isinstance(spec["added_tokens"], list) or not all(isinstance(t, dict) for t in spec["added_tokens"]):
            raise UserError(f"{folder / 'tokenizer.json'} is damaged: its added_tokens are no list of tokens")
        return spec
    if (folder / "vocab.json").exists():
        lines = _read_text(folder / "merges.txt").split("\n")
        merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
        return byte_level_spec(_read_json(folder / "vocab.json"), merges, ONIGURUMA_PATTERNS["gpt2"])
    if (folder / "tokenizer.model").exists():
        from data.tokenizers.sentencepiece_files import spec_from_sentencepiece

        return spec_from_sentencepiece(folder / "tokenizer.model")
    raise UserError(f"{folder} holds no tokenizer: there is no {' or '.join(_FILES)}")


def _id_of(spec: dict[str, Any], content: object) -> int | None:
    """The id of a token by its text."""
    if isinstance(content, dict):
        content = content.get("content")
    if not isinstance(content, str):
        return None
    for token in spec["added_tokens"]:
        if token.get("content") == content and type(token.get("id")) is int:
            return int(token["id"])
    vocab = spec["model"]["vocab"]
    found = vocab.get(content) if isinstance(vocab, dict) else None
    return found if type(found) is int else None


def _end_of_text(folder: Path, spec: dict[str, Any], settings: Mapping[str, Any]) -> int:
    config = _read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    configured = config.get("eos_token_id")
    # Chat models name several; the first ends a text, the others a turn.
    first = configured[0] if isinstance(configured, list) and configured else configured
    for candidate in (_id_of(spec, settings.get("eos_token")), first, _id_of(spec, END_OF_TEXT), _id_of(spec, "</s>")):
        if type(candidate) is int and candidate >= 0:
            return candidate
    raise UserError(f"{folder} does not say which token ends a text: tokenizer_config.json has no eos_token")


def _make_special(spec: dict[str, Any], token_id: int) -> None:
    """Declare the token that ends a text special, so that no text can produce it."""
    for token in spec["added_tokens"]:
        if token.get("id") == token_id:
            token["special"] = True
            return
    vocab = spec["model"]["vocab"]
    names = vocab.items() if isinstance(vocab, dict) else ()
    content = next((token for token, number in names if number == token_id), None)
    if content is None:
        raise UserError(f"the end-of-text id {token_id} is not in the tokenizer's vocabulary")
    spec["added_tokens"].append(special_token(token_id, content))


def _begin_of_text(spec: dict[str, Any], settings: Mapping[str, Any]) -> int | None:
    """The special token that the files put before a text."""
    if settings.get("add_bos_token") is False:
        return None
    for step in parts_of(spec, "post_processor"):
        single = step.get("single") if step.get("type") == "TemplateProcessing" else None
        first = single[0].get("SpecialToken") if isinstance(single, list) and single else None
        if isinstance(first, dict):
            return _id_of(spec, first.get("id"))
    return _id_of(spec, settings.get("bos_token")) if settings.get("add_bos_token") is True else None


def _as_byte_pairs(spec: dict[str, Any], vocab_size: int, name: str, end_of_text: int) -> BytePairTokenizer | None:
    """The same tokenizer as a tiktoken encoding, or None when that would not give the same ids for every text."""
    model, pattern = spec["model"], pattern_name(spec)
    plain = not any(model.get(key) for key in ("dropout", "unk_token", "continuing_subword_prefix"))
    plain = plain and not any(model.get(key) for key in ("end_of_word_suffix", "byte_fallback"))
    special = {token["id"] for token in spec["added_tokens"] if type(token.get("id")) is int}
    if pattern is None or model.get("type", "BPE") != "BPE" or not plain or spec.get("normalizer") is not None:
        return None
    if not isinstance(model["vocab"], dict) or not all(token.get("special") for token in spec["added_tokens"]):
        return None
    tokens = [b""] * vocab_size
    for token, token_id in model["vocab"].items():
        if type(token_id) is not int or not 0 <= token_id < vocab_size:
            raise UserError(f"the tokenizer has the id {token_id}, but the model's vocabulary ends at {vocab_size - 1}")
        if token_id not in special:
            if tokens[token_id]:
                return None
            try:
                tokens[token_id] = bytes_of_printable(token)
            except UnicodeEncodeError:
                return None
    if not end_of_text < vocab_size or not {bytes([value]) for value in range(256)} <= set(tokens):
        return None
    try:
        merges = [(bytes_of_printable(left), bytes_of_printable(right)) for left, right in merge_pairs(spec)]
    except UnicodeEncodeError:
        return None
    if not merges_equal_ranks(tokens, merges, model.get("ignore_merges") is True):
        return None
    return BytePairTokenizer("tiktoken", name, pattern, tokens, end_of_text)


def pattern_name(spec: dict[str, Any]) -> str | None:
    """Which known expression splits a text, when nothing else happens to it before the merges."""
    steps = parts_of(spec, "pre_tokenizer")
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space") is not False:
        return None
    if len(steps) == 1:
        return "gpt2" if steps[0].get("use_regex", True) else None
    split = steps[0]
    if len(steps) != 2 or split.get("type") != "Split" or steps[1].get("use_regex", True):
        return None
    if split.get("behavior") != "Isolated" or split.get("invert") or not isinstance(split.get("pattern"), dict):
        return None
    names = [name for name, known in ONIGURUMA_PATTERNS.items() if known == split["pattern"].get("Regex")]
    return names[-1] if names else None
