"""One token for each character that the corpus holds: a small vocabulary for small texts."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from command_line import UserError

MAX_CHARACTERS = 0x110000
_UNKNOWN = np.uint32(0xFFFFFFFF)


class CharacterTokenizer:
    """Sorted characters are ids 0, 1, …; end of text is the last id.

    A character that the corpus did not hold has no id: `encode` raises UserError naming it and its position.
    """

    name = "char"
    begin_of_text: int | None = None

    def __init__(self, characters: str) -> None:
        self.characters = characters
        self.end_of_text = len(characters)
        self.vocab_size = len(characters) + 1
        code_points = _code_points(characters)
        self._id_of = np.full(int(code_points.max(initial=0)) + 1, _UNKNOWN, dtype=np.uint32)
        self._id_of[code_points] = np.arange(len(characters), dtype=np.uint32)
        self._bytes = [character.encode("utf-8") for character in characters] + [b""]

    def encode(self, text: str) -> list[int]:
        """The id of each character; raises UserError for one that the corpus did not hold."""
        token_ids: list[int] = self.encode_array(text).tolist()
        return token_ids

    def encode_array(self, text: str) -> npt.NDArray[np.uint32]:
        """The same ids as `encode` as an array, without a Python object for each."""
        code_points = _code_points(text)
        token_ids = self._id_of[np.minimum(code_points, len(self._id_of) - 1)]
        unknown = (token_ids == _UNKNOWN) | (code_points >= len(self._id_of))
        if unknown.any():
            position = int(unknown.argmax())
            raise UserError(
                f"the character {text[position]!r} (U+{ord(text[position]):04X}) at position {position} does not "
                "occur in the corpus that --tokenizer char was built from; leave it out, or train with bpe:N or byte"
            )
        return token_ids

    def decode(self, token_ids: list[int]) -> str:
        """The characters of token ids."""
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8")

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes of a token's character; end of text has none."""
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(f"token id {token_id} is outside the vocabulary of {self.vocab_size}")
        return self._bytes[token_id]

    def state(self) -> dict[str, Any]:
        """Plain data that rebuilds the tokenizer."""
        return {"kind": "char", "version": 1, "characters": self.characters}


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    # A lone surrogate passes here and is then reported like every other character that the corpus does not hold.
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype="<u4")


def collect_characters(texts: Iterable[str]) -> CharacterTokenizer:
    """The tokenizer of all characters that occur in the texts."""
    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    return CharacterTokenizer("".join(sorted(characters)))


def characters_from_state(state: dict[str, Any]) -> CharacterTokenizer:
    """Rebuild from `state()`; raises UserError when the characters are not sorted, distinct and encodable."""
    characters = state.get("characters")
    if not isinstance(characters, str) or not 0 < len(characters) <= MAX_CHARACTERS:
        raise UserError("the char tokenizer's characters are not a text")
    code_points = _code_points(characters).astype(np.int64)
    if (np.diff(code_points) <= 0).any():
        raise UserError("the char tokenizer's characters are not sorted and distinct")
    if ((code_points >= 0xD800) & (code_points <= 0xDFFF)).any():
        raise UserError("the char tokenizer's characters hold a lone surrogate")
    return CharacterTokenizer(characters)
