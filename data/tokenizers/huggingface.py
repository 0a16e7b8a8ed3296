"""A tokenizer in Hugging Face's own description (`tokenizer.json`), run by the `tokenizers` library.

It serves what tiktoken cannot express exactly: Llama's SentencePiece vocabularies, and byte-level ones with a
begin-of-text token. `huggingface_files` reads tokenizer files, `tokenizer_json` writes them.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from command_line import UserError
from data.tokenizers.tiktoken_bpe import MAX_STATE_CHARACTERS, MAX_VOCAB_SIZE, PATTERNS, check_encodable
from data.tokenizers.trained_bpe import bytes_of_printable

STATE_VERSION = 1
SPACE_MARK = "▁"
"""SentencePiece's stand-in for a space (U+2581)."""

# The expressions of known vocabularies in a spelling for Oniguruma, where `{1,3}+` would mean something else.
ONIGURUMA_PATTERNS = {
    **PATTERNS,
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k_base": PATTERNS["llama3"],
}


class HuggingFaceTokenizer:
    """Gives the ids that transformers gives for an ordinary text without special tokens.

    Some vocabularies put a space before a text; `decode` takes it away again, and with it, as in transformers, the
    own first space of a text where theirs put none. Any other character that would not come back is refused.
    """

    def __init__(
        self, name: str, description: str, *, vocab_size: int, end_of_text: int, begin_of_text: int | None
    ) -> None:
        """`description` is the text of a tokenizer.json; raises UserError when it cannot be used."""
        import tokenizers

        spec = _parse(description)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(description)
        except Exception as error:  # noqa: BLE001 -- the library raises nothing more specific
            raise UserError(f"the tokenizer's description is damaged: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # Special tokens inside a text are ordinary text.
        self._tokenizer.encode_special_tokens = True
        self.name = name
        self.description = description
        self.vocab_size = vocab_size
        self.end_of_text = end_of_text
        self.begin_of_text = begin_of_text
        self._bytes = _token_bytes(self._tokenizer, spec, vocab_size)
        for special in (end_of_text, begin_of_text):
            if special is not None and (not 0 <= special < vocab_size or self._bytes[special]):
                raise UserError(f"the tokenizer's id {special} is not that of a special token")
        self._puts_space_before = self._join(self._ids("a")).startswith(b" ")

    def encode(self, text: str) -> list[int]:
        """Token ids of an ordinary text; raises UserError naming a character that would not come back."""
        check_encodable(text)
        token_ids = self._ids(text)
        returned = self.decode(token_ids)
        if returned != text and not (self._puts_space_before and " " + returned == text):
            position = next((i for i in range(len(text)) if returned[i : i + 1] != text[i]), len(text) - 1)
            raise UserError(
                f"the tokenizer {self.name} cannot represent the character {text[position]!r} "
                f"(U+{ord(text[position]):04X}) at position {position}; leave it out"
            )
        return token_ids

    def decode(self, token_ids: list[int]) -> str:
        """The text of token ids without the space that was put before it, U+FFFD for bytes that are no UTF-8."""
        joined = self._join(token_ids)
        if self._puts_space_before:
            joined = joined.removeprefix(b" ")
        return joined.decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token within a text; special tokens and unused ids have none."""
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(f"token id {token_id} is outside the vocabulary of {self.vocab_size}")
        return self._bytes[token_id]

    def state(self) -> dict[str, Any]:
        """Plain data that rebuilds the tokenizer."""
        return {
            "kind": "huggingface",
            "version": STATE_VERSION,
            "name": self.name,
            "vocab_size": self.vocab_size,
            "end_of_text": self.end_of_text,
            "begin_of_text": self.begin_of_text,
            "tokenizer_json": self.description,
        }

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _join(self, token_ids: list[int]) -> bytes:
        return b"".join(map(self.token_bytes, token_ids))


def huggingface_from_state(state: dict[str, Any]) -> HuggingFaceTokenizer:
    """Rebuild from `state()`; raises UserError naming the entry that is wrong. Every size is bounded."""
    name, description = state.get("name"), state.get("tokenizer_json")
    if not isinstance(name, str) or not 0 < len(name) <= 100:
        raise UserError("the tokenizer's name is not a short text")
    if not isinstance(description, str) or len(description) > MAX_STATE_CHARACTERS:
        raise UserError("the tokenizer's description is not a text of at most 64 MB")
    vocab_size, end, begin = (state.get(key) for key in ("vocab_size", "end_of_text", "begin_of_text"))
    if type(vocab_size) is not int or not 0 < vocab_size <= MAX_VOCAB_SIZE:
        raise UserError(f"the tokenizer's vocab_size is not a number up to {MAX_VOCAB_SIZE}")
    if type(end) is not int or not (begin is None or type(begin) is int):
        raise UserError("the tokenizer's end_of_text or begin_of_text is not an id")
    return HuggingFaceTokenizer(name, description, vocab_size=vocab_size, end_of_text=end, begin_of_text=begin)


def parts_of(spec: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The steps of a `normalizer`, `pre_tokenizer`, `decoder` or `post_processor`, out of their sequences."""

    def flatten(part: object) -> Iterator[dict[str, Any]]:
        if isinstance(part, dict):
            inner = next((part[key] for key in _SEQUENCES if part.get("type") == "Sequence" and key in part), None)
            if isinstance(inner, list):
                for step in inner:
                    yield from flatten(step)
            else:
                yield part

    return list(flatten(spec.get(name)))


def merge_pairs(spec: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges of a BPE; older files write each as one text with a space in between. UserError when they are none."""
    pairs = []
    for merge in spec["model"].get("merges") or ():
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise UserError(f"the tokenizer is damaged: {str(merge)[:60]!r} is no merge")
        pairs.append((parts[0], parts[1]))
    return pairs


_SEQUENCES = ("normalizers", "pretokenizers", "decoders", "processors")


def _parse(description: str) -> dict[str, Any]:
    try:
        spec = json.loads(description)
    except (ValueError, RecursionError):
        raise UserError("the tokenizer's description is not JSON") from None
    if not isinstance(spec, dict):
        raise UserError("the tokenizer's description is not a table")
    for step in (*parts_of(spec, "normalizer"), *parts_of(spec, "pre_tokenizer")):
        pattern = step.get("pattern")
        expression = pattern.get("Regex") if isinstance(pattern, dict) else None
        # An expression from an untrusted file could run for ever.
        if expression is not None and expression not in ONIGURUMA_PATTERNS.values():
            raise UserError(f"the tokenizer splits by an expression that is not known here: {str(expression)[:80]!r}")
    return spec


def _token_bytes(tokenizer: Any, spec: dict[str, Any], vocab_size: int) -> list[bytes]:
    """The bytes of every id, as the tokenizer's decoder would write them in the middle of a text."""
    kinds = {step.get("type") for step in parts_of(spec, "decoder")}
    if "ByteLevel" in kinds:
        spell = bytes_of_printable
    elif kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        marks_spaces = kinds & {"Replace", "Metaspace"}

        def spell(token: str) -> bytes:
            if "ByteFallback" in kinds and re.fullmatch("<0x[0-9A-F]{2}>", token):
                return bytes([int(token[3:5], 16)])
            return (token.replace(SPACE_MARK, " ") if marks_spaces else token).encode("utf-8")
    else:
        raise UserError(f"the tokenizer's decoder ({', '.join(sorted(map(repr, kinds)))}) is not known here")
    added = {token_id: (t.content, t.special) for token_id, t in tokenizer.get_added_tokens_decoder().items()}
    unknown = getattr(tokenizer.model, "unk_token", None)
    table = [b""] * vocab_size
    for token, token_id in tokenizer.get_vocab(with_added_tokens=True).items():
        if token_id >= vocab_size:
            raise UserError(f"the tokenizer has the id {token_id}, but the model's vocabulary ends at {vocab_size - 1}")
        if token_id in added:
            content, is_special = added[token_id]
            table[token_id] = b"" if is_special else content.encode("utf-8")
        elif token != unknown:
            try:
                table[token_id] = spell(token)
            except UnicodeEncodeError as error:
                raise UserError(
                    f"the tokenizer's token {token!r} holds {token[error.start]!r}, which stands for no byte"
                ) from None
    return table
