"""Where sentences end in a text that comes in pieces."""

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
