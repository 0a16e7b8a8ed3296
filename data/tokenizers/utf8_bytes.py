"""The simplest tokenizer: a token is a byte of the text's UTF-8 form."""

from typing import Any

import numpy as np
import numpy.typing as npt

from command_line import UserError
from data.tokenizers.tiktoken_bpe import check_encodable


class ByteTokenizer:
    """256 bytes and end of text (id 256); encodes every text, needs no training."""

    name = "byte"
    vocab_size = 257
    end_of_text = 256
    begin_of_text: int | None = None

    def encode(self, text: str) -> list[int]:
        """The UTF-8 bytes of a text; raises UserError for a lone surrogate, which has none."""
        check_encodable(text)
        return list(text.encode("utf-8"))

    def encode_array(self, text: str) -> npt.NDArray[np.uint8]:
        """The same ids as `encode` as an array, without a Python object for each."""
        check_encodable(text)
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8)

    def decode(self, token_ids: list[int]) -> str:
        """The text of token ids, with U+FFFD for bytes that are no UTF-8."""
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The byte of a token; end of text has none."""
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(f"token id {token_id} is outside the vocabulary of {self.vocab_size}")
        return bytes([token_id]) if token_id < 256 else b""

    def state(self) -> dict[str, Any]:
        """Plain data that rebuilds the tokenizer."""
        return {"kind": "byte", "version": 1}


def bytes_from_state(state: dict[str, Any]) -> ByteTokenizer:
    """Rebuild from `state()`; raises UserError when it says more than the kind."""
    if set(state) - {"kind", "version"}:
        raise UserError("the byte tokenizer's state holds entries that it does not know")
    return ByteTokenizer()
