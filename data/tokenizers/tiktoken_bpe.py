"""Byte-level BPE through tiktoken: OpenAI's vocabularies, and the engine of those that we train ourselves.

Byte-level BPE: Radford et al. 2019 ("Language Models are Unsupervised Multitask Learners"), after Sennrich et al. 2016
(arxiv.org/abs/1508.07909). Every byte is a token, so every text has an encoding.
"""

import base64
import binascii
import os
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tiktoken

from command_line import UserError
from data.tokenizers.base import END_OF_TEXT
from data.tokenizers.chunks import split_text

_WORD_END = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_NOT_LOWER, _NOT_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"

# A checkpoint names its expression and never holds one: an expression from an untrusted file could run for ever.
PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    "cl100k_base": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
        r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
    ),
    "o200k_base": (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_NOT_LOWER}*{_NOT_UPPER}+{_WORD_END}"
        rf"|[^\r\n\p{{L}}\p{{N}}]?{_NOT_LOWER}+{_NOT_UPPER}*{_WORD_END}"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    # Meta, github.com/meta-llama/llama3, llama/tokenizer.py (2024).
    "llama3": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}

MAX_VOCAB_SIZE = 1 << 20
MAX_TOKEN_BYTES = (1 << 16) - 1
MAX_STATE_CHARACTERS = 1 << 26
STATE_VERSION = 1


class BytePairTokenizer:
    """Byte-level BPE over a list of tokens in order of their rank, which is also their id.

    `tokens[id]` are the bytes of a token; ids without text (special ones, gaps) are empty.
    """

    begin_of_text: int | None = None

    def __init__(
        self, kind: Literal["tiktoken", "bpe"], name: str, pattern: str, tokens: list[bytes], end_of_text: int
    ) -> None:
        self.kind = kind
        self.name = name
        self.pattern = pattern
        self.tokens = tokens
        self.vocab_size = len(tokens)
        self.end_of_text = end_of_text
        self._encoding = tiktoken.Encoding(
            name=name,
            pat_str=PATTERNS[pattern],
            mergeable_ranks={token: rank for rank, token in enumerate(tokens) if token},
            special_tokens={END_OF_TEXT: end_of_text},
        )

    def encode(self, text: str) -> list[int]:
        """Token ids of an ordinary text; raises UserError for a lone surrogate, which has no UTF-8 form."""
        check_encodable(text)
        # `encode_ordinary` knows no special token, so "<|endoftext|>" in a text stays the thirteen characters it is.
        return [token_id for chunk in split_text(text) for token_id in self._encoding.encode_ordinary(chunk)]

    def encode_array(self, text: str) -> npt.NDArray[np.uint32]:
        """The same ids as `encode` as an array, without a Python object for each."""
        check_encodable(text)
        chunks = [self._encoding.encode_to_numpy(chunk, disallowed_special=()) for chunk in split_text(text)]
        return chunks[0] if len(chunks) == 1 else np.concatenate([*chunks, np.empty(0, dtype=np.uint32)])

    def decode(self, token_ids: list[int]) -> str:
        """The text of token ids, with U+FFFD for bytes that are no UTF-8."""
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token; special tokens and unused ids have none."""
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(f"token id {token_id} is outside the vocabulary of {self.vocab_size}")
        return self.tokens[token_id]

    def state(self) -> dict[str, Any]:
        """Plain data that rebuilds the tokenizer without a network: the tokens in order, as one base64 text.

        Each token is two bytes of length (little-endian) and its bytes.
        """
        packed = b"".join(len(token).to_bytes(2, "little") + token for token in self.tokens)
        return {
            "kind": self.kind,
            "version": STATE_VERSION,
            "name": self.name,
            "pattern": self.pattern,
            "end_of_text": self.end_of_text,
            "tokens": base64.b64encode(packed).decode("ascii"),
        }


def check_encodable(text: str) -> None:
    """Raise UserError naming the position of a lone surrogate; every other text has UTF-8 bytes."""
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text holds a lone surrogate (U+{ord(text[error.start]):04X}) at position {error.start}, "
            "half of a character; remove it"
        ) from None


def load_tiktoken(name: str) -> BytePairTokenizer:
    """One of OpenAI's vocabularies by its tiktoken name; raises UserError when it can not be had.

    tiktoken downloads it once (1 to 4 MB) and keeps it in TIKTOKEN_CACHE_DIR.
    """
    try:
        encoding = tiktoken.get_encoding(name)
    # tiktoken lets the errors of its HTTP library through; those of requests and of the file system are OSErrors, and
    # a damaged download is a ValueError.
    except (OSError, ValueError) as error:
        cache = os.environ.get("TIKTOKEN_CACHE_DIR")
        where = f"the one in TIKTOKEN_CACHE_DIR ({cache})" if cache else "TIKTOKEN_CACHE_DIR"
        raise UserError(
            f"--tokenizer {name} could not be downloaded ({type(error).__name__}); choose one that needs no network "
            f"(char, byte, bpe:N such as bpe:4096) or make {where} a folder that holds tiktoken's files"
        ) from error
    tokens = [b""] * encoding.n_vocab
    # tiktoken has no public way to the table of all tokens; byte by byte through its API takes seconds.
    for token, rank in encoding._mergeable_ranks.items():
        tokens[rank] = token
    return BytePairTokenizer("tiktoken", name, name, tokens, encoding.eot_token)


def byte_pair_from_state(state: dict[str, Any]) -> BytePairTokenizer:
    """Rebuild from `state()`; raises UserError naming the entry that is wrong. Every size is bounded."""
    kind, name, pattern = (state.get(key) for key in ("kind", "name", "pattern"))
    if kind not in ("tiktoken", "bpe"):
        raise UserError(f"the tokenizer's kind is {kind!r}, not tiktoken or bpe")
    if not isinstance(name, str) or not 0 < len(name) <= 100:
        raise UserError("the tokenizer's name is not a short text")
    if not isinstance(pattern, str) or pattern not in PATTERNS:
        raise UserError(f"the tokenizer's pattern {str(pattern)[:40]!r} is none of {', '.join(PATTERNS)}")
    tokens = _unpack_tokens(state.get("tokens"))
    end_of_text = state.get("end_of_text")
    if type(end_of_text) is not int or not 0 <= end_of_text < len(tokens) or tokens[end_of_text]:
        raise UserError("the tokenizer's end_of_text is not the id of an empty token")
    return BytePairTokenizer(kind, name, pattern, tokens, end_of_text)


def _unpack_tokens(packed: object) -> list[bytes]:
    if not isinstance(packed, str) or len(packed) > MAX_STATE_CHARACTERS:
        raise UserError("the tokenizer's tokens are not a base64 text of at most 64 MB")
    try:
        data = base64.b64decode(packed, validate=True)
    except (binascii.Error, ValueError):
        raise UserError("the tokenizer's tokens are not valid base64") from None
    tokens: list[bytes] = []
    position = 0
    while position < len(data):
        length = int.from_bytes(data[position : position + 2], "little")
        token = data[position + 2 : position + 2 + length]
        position += 2 + length
        if position > len(data) or len(tokens) == MAX_VOCAB_SIZE:
            raise UserError(f"the tokenizer's tokens end in the middle, or are more than {MAX_VOCAB_SIZE}")
        tokens.append(token)
    texts = [token for token in tokens if token]
    if len(set(texts)) != len(texts):
        raise UserError("the tokenizer holds the same token twice")
    if not {bytes([value]) for value in range(256)}.issubset(texts):
        raise UserError("the tokenizer lacks some of the 256 single bytes")
    return tokens
