"""Choose a tokenizer by name, or rebuild one from the state that a checkpoint carries."""

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

from command_line import UserError
from data.tokenizers.base import Tokenizer
from data.tokenizers.characters import characters_from_state, collect_characters
from data.tokenizers.choices import TIKTOKEN_NAMES, check_tokenizer_choice, resolve_tokenizer_choice
from data.tokenizers.huggingface import huggingface_from_state
from data.tokenizers.tiktoken_bpe import byte_pair_from_state, load_tiktoken
from data.tokenizers.trained_bpe import train_bpe
from data.tokenizers.utf8_bytes import ByteTokenizer, bytes_from_state

_FROM_STATE: dict[str, Callable[[dict[str, Any]], Tokenizer]] = {
    "char": characters_from_state,
    "byte": bytes_from_state,
    "bpe": byte_pair_from_state,
    "tiktoken": byte_pair_from_state,
    "huggingface": huggingface_from_state,
}


def build_tokenizer(choice: str, documents: Callable[[], Iterator[str]], corpus_bytes: int) -> Tokenizer:
    """Build the chosen tokenizer, from the documents if it needs them; raises UserError for an unknown choice."""
    check_tokenizer_choice(choice)
    choice = resolve_tokenizer_choice(choice, corpus_bytes)
    if choice == "char":
        return collect_characters(documents())
    if choice == "byte":
        return ByteTokenizer()
    if choice in TIKTOKEN_NAMES:
        return load_tiktoken(choice)
    return train_bpe(int(choice.removeprefix("bpe:")), documents())


def tokenizer_from_state(state: dict[str, Any]) -> Tokenizer:
    """Rebuild a tokenizer from `Tokenizer.state()`; raises UserError naming what is wrong with the state.

    The state comes out of a file that anybody may have made: it is read as data, every size is bounded.
    """
    if not isinstance(state, dict):
        raise UserError("the tokenizer's state is not a table")
    kind, version = state.get("kind"), state.get("version")
    if not isinstance(kind, str) or kind not in _FROM_STATE:
        raise UserError(f"the tokenizer's kind {str(kind)[:40]!r} is none of {', '.join(_FROM_STATE)}")
    if version != 1 or type(version) is not int:
        raise UserError(
            f"the tokenizer's state has version {str(version)[:40]!r}, but only 1 is known; update the program"
        )
    return _FROM_STATE[kind](state)


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """SHA-256 of a tokenizer's state: tokenizers of one hash give the same ids for every text."""
    plain = json.dumps(tokenizer.state(), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(plain.encode("ascii")).hexdigest()
