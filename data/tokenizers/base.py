"""What every tokenizer promises, and the text that ends a document."""

from typing import Any, Protocol

END_OF_TEXT = "<|endoftext|>"
"""A line that is exactly this ends a document in any text source; anywhere else it is ordinary text."""


class Tokenizer(Protocol):
    """Turns text into token ids and back, without loss: `decode(encode(text)) == text` for every encodable text."""

    name: str
    """How the tokenizer is chosen on the command line, such as `bpe:2048`."""

    vocab_size: int
    """Number of token ids; every id is below it, the special ones included."""

    end_of_text: int
    """The id that ends a document. `encode` never produces it, whatever the text holds; it decodes to nothing."""

    begin_of_text: int | None
    """The id that a model of this tokenizer expects before every document, or None."""

    def encode(self, text: str) -> list[int]:
        """Token ids of an ordinary text; no special token is added or recognised.

        Raises UserError for a text that this tokenizer cannot represent, naming the character and its position.
        """
        ...

    def decode(self, token_ids: list[int]) -> str:
        """The text of token ids: their bytes joined and read as UTF-8, with U+FFFD for bytes that are none."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token; special tokens have none."""
        ...

    def state(self) -> dict[str, Any]:
        """Plain data (str, int, bytes-free lists and dicts) that travels in a checkpoint and rebuilds the tokenizer.

        It holds `kind` and `version`; `registry.tokenizer_from_state` is the way back.
        """
        ...
