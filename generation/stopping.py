"""When a text ends, and why: every criterion names its reason, every row ends for itself.

Three kinds. A `TextLimit` works on the text of one row as it streams and cuts it exactly where it should end, however
the tokens fall; what might still turn out to lie behind the cut is held back. A `StoppingCriterion` is written by the
user: it sees all rows and says which of them end after the token just drawn. A `Limit`, such as the time, ends all.
"""

import time
from collections.abc import Sequence
from typing import Protocol

from generation.sentence_ends import SentenceEnds

MAX_NEW_TOKENS = "max_new_tokens"
END_OF_TEXT = "end_of_text"
NO_CANDIDATE = "no_candidate"


class StoppingCriterion(Protocol):
    """Ends rows by a rule of its own."""

    reason: str
    """Stands in the result of every row that it ends."""

    def __call__(self, token_ids: Sequence[Sequence[int]], texts: Sequence[str]) -> Sequence[bool]:
        """Whether each row ends now, from the tokens and the text that it has generated so far."""
        ...


class Limit(Protocol):
    """Ends all rows at once, whatever they have come to."""

    reason: str

    @property
    def reached(self) -> bool:
        """Asked after every step."""
        ...


class TimeLimit:
    """Ends all rows once the time is up, counted in seconds from its creation."""

    reason = "time_limit"

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def reached(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self._end


def reached_reason(limits: Sequence[Limit]) -> str | None:
    """Why all rows end now, by the first limit that is reached; None while none is."""
    return next((limit.reason for limit in limits if limit.reached), None)


class TextLimit(Protocol):
    """Lets the text of one row pass until it reaches its end."""

    reason: str

    @property
    def reached(self) -> bool:
        """Whether the text has ended; nothing more passes then."""
        ...

    def push(self, text: str) -> str:
        """Take the next characters; returns those that surely belong to the text."""
        ...

    def finish(self) -> str:
        """Give back what was held, when the text ended for another reason."""
        ...


class StopStrings:
    """Ends a text before the first stop string that is completed in it, matched on characters across token borders.

    Of two that are completed by the same character, the longer one counts. So the result depends on the text alone,
    never on how it was cut into tokens.
    """

    reason = "stop_string"

    def __init__(self, stop_strings: Sequence[str], *, keep: bool = False) -> None:
        self.stop_strings = tuple(stop_strings)
        self.keep = keep
        self.reached = False
        self._held = ""

    def push(self, text: str) -> str:
        """Pass what can no longer be the beginning of a stop string."""
        text = self._held + text
        found = [(start + len(stop), start) for stop in self.stop_strings if (start := text.find(stop)) >= 0]
        if found:
            end, start = min(found)
            self.reached, self._held = True, ""
            return text[:end] if self.keep else text[:start]
        n_held = self._length_of_possible_match(text)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def finish(self) -> str:
        """The beginning of a stop string that was never completed."""
        held, self._held = self._held, ""
        return held

    def _length_of_possible_match(self, text: str) -> int:
        longest = max(len(stop) for stop in self.stop_strings) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self.stop_strings):
                return length
        return 0


class LineLimit:
    """Ends a text at the line break that closes its last allowed line; the break itself is cut."""

    reason = "max_lines"

    def __init__(self, max_lines: int) -> None:
        self.reached = False
        self._lines_left = max_lines

    def push(self, text: str) -> str:
        """Pass the lines that are still allowed."""
        end = -1
        for _ in range(text.count("\n")):
            end = text.index("\n", end + 1)
            self._lines_left -= 1
            if self._lines_left == 0:
                self.reached = True
                return text[:end]
        return text

    def finish(self) -> str:
        """Nothing is ever held."""
        return ""


class SentenceLimit:
    """Ends a text behind its last allowed sentence, once the character behind it shows that it has ended."""

    reason = "max_sentences"

    def __init__(self, max_sentences: int) -> None:
        self.reached = False
        self._sentences_left = max_sentences
        self._sentence_ends = SentenceEnds()

    def push(self, text: str) -> str:
        """Pass the sentences that are still allowed."""
        ends = self._sentence_ends.find(text)
        self.reached = len(ends) >= self._sentences_left
        if self.reached:
            return text[: ends[self._sentences_left - 1]]
        self._sentences_left -= len(ends)
        return text

    def finish(self) -> str:
        """Nothing is ever held."""
        return ""


class TextLimits:
    """All limits of one row, one behind the other; the text ends at the earliest of their ends."""

    def __init__(self, limits: Sequence[TextLimit]) -> None:
        self.limits = limits
        self.reason: str | None = None

    def push(self, text: str) -> str:
        """Take the next characters; returns those that surely belong to the text, and sets the reason at its end."""
        return self._push(text, ended=False)

    def finish(self, text: str) -> str:
        """Take the last characters; returns them with all that was held back."""
        return self._push(text, ended=True)

    def _push(self, text: str, *, ended: bool) -> str:
        for limit in self.limits:
            text = limit.push(text)
            if limit.reached:
                self.reason, ended = limit.reason, True
            elif ended:
                text += limit.finish()
        return text
