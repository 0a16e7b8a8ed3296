"""Token bytes → whole characters, piece by piece.

A piece of text never holds half a character, and the pieces join to the whole.
"""

import codecs

from data.tokenizers.base import Tokenizer


class TextStream:
    """Decodes the tokens of one sample as they come.

    The bytes of an unfinished character wait for the rest of it; bytes that can never become one turn into U+FFFD, as
    in `Tokenizer.decode`. Working on bytes rather than on decoded strings is what lets a literal U+FFFD through.
    """

    def __init__(self, tokenizer: Tokenizer, *, begins_text: bool = False) -> None:
        """`begins_text` says that no text stands before the first token."""
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._at_beginning = begins_text

    def push(self, token_id: int) -> str:
        """The characters that this token completes, often one word, sometimes none."""
        raw = self._tokenizer.token_bytes(token_id)
        if self._at_beginning and raw:
            # Llama-2's vocabulary puts a space before every text, which `Tokenizer.decode` takes away again.
            if raw[:1] == b" " and self._tokenizer.decode([token_id]) == raw[1:].decode("utf-8", errors="replace"):
                raw = raw[1:]
            self._at_beginning = False
        return self._decoder.decode(raw)

    def finish(self) -> str:
        """What is left when the sample ends: U+FFFD for an unfinished character, else nothing."""
        return self._decoder.decode(b"", final=True)
