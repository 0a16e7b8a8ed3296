"""Ctrl-C and SIGTERM: the first one asks for an orderly end, a second one ends at once."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

from command_line import EXIT_INTERRUPTED, EXIT_TERMINATED, UserError

_EXIT_CODES = {signal.SIGINT: EXIT_INTERRUPTED, signal.SIGTERM: EXIT_TERMINATED}


class InterruptedRunError(UserError):
    """The run was asked to end; the message says what was saved and how to go on."""

    def __init__(self, message: str, signal_number: int, *, has_saved: bool) -> None:
        super().__init__(message)
        self.exit_code = _EXIT_CODES[signal.Signals(signal_number)]
        self.has_saved = has_saved
        """Whether steps were trained and saved, so that --resume finds them."""


class Interruption:
    """Remembers the first signal. The handler only sets a flag: saving inside one fails now and then."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._may_end_at_once = True
        self._tells = False

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.signal_number is not None

    @contextlib.contextmanager
    def watch(self) -> Iterator[Interruption]:
        """Handle both signals inside; the handlers from before come back afterwards."""
        before = {number: signal.signal(number, self._handle) for number in _EXIT_CODES}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def defer(self, *, tell: bool = False) -> None:
        """From now on there is work to save: a signal only sets the flag and the training loop ends in order.

        With `tell`, the user is told so at once: a step may take long, above all the first one with --compile.
        """
        self._may_end_at_once, self._tells = False, tell

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal raises InterruptedRunError at once; one that has come before does so on entry."""
        self._may_end_at_once = True
        try:
            if self.signal_number is not None:
                raise _before_the_first_step(self.signal_number)
            yield
        finally:
            self._may_end_at_once = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            # The second signal: no clean-up at all. A half-written checkpoint is a temporary file that nobody reads.
            os._exit(_EXIT_CODES[signal.Signals(number)])
        self.signal_number = number
        if self._may_end_at_once:
            raise _before_the_first_step(number)
        if self._tells:
            # Not `print`: the signal may have come in the middle of one. Nobody may be there to read it, either.
            with contextlib.suppress(OSError):
                os.write(2, b"\nending as soon as this step is done and saved; a second signal ends at once\n")


def _before_the_first_step(signal_number: int) -> InterruptedRunError:
    return InterruptedRunError("interrupted before the first step; nothing is lost", signal_number, has_saved=False)
