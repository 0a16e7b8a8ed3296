"""Token bytes → whole characters → sentences, piece by piece.

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


_ENDS = frozenset(".!?…。！？")
_WIDE_ENDS = frozenset("。！？")
_CLOSERS = frozenset("\"'”’»)]」』）")


class SentenceEnds:
    """Finds where sentences end in a text that comes in pieces, by one rule for all languages.

    A sentence ends behind . ! ? … and the quotes and brackets that close with it when white space follows (so 3.5 is
    no end, but "Mr. " is), behind 。！？ whatever follows, and at an empty line.
    """

    def __init__(self) -> None:
        self._last = ""
        self._has_text = False
        self._ending: str | None = None

    def find(self, text: str) -> list[int]:
        """The offsets in `text` at which a sentence has just ended; 0 when it ended with the piece before."""
        ends = []
        for offset, character in enumerate(text):
            if self._ends_before(character):
                ends.append(offset)
                self._has_text = False
            if character in _ENDS:
                self._ending = "wide" if character in _WIDE_ENDS else self._ending or "narrow"
            elif character not in _CLOSERS:
                self._ending = None
            self._has_text = self._has_text or not character.isspace()
            self._last = character
        return ends

    def _ends_before(self, character: str) -> bool:
        if not self._has_text:
            return False
        if self._ending is not None and character not in _ENDS and character not in _CLOSERS:
            return self._ending == "wide" or character.isspace()
        return character == "\n" and self._last == "\n"
