"""Ctrl-C while texts are written: the first one ends them where they are, a second one stops the program at once."""

import signal
from types import FrameType, TracebackType


class Interruption:
    """A limit that Ctrl-C reaches; a context manager.

    An exception in the midst of a step would lose what the rows hold back and, of several texts, all but the one on
    the screen. So inside, Ctrl-C only sets a flag, every text ends with its reason, and KeyboardInterrupt comes at
    the end. Does nothing where Ctrl-C does not raise KeyboardInterrupt: in the background of a shell, in a notebook.
    """

    reason = "interrupted"

    def __init__(self) -> None:
        self.reached = False

    def __enter__(self) -> "Interruption":
        self._is_watching = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._is_watching:
            signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_watching:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self.reached and kind is None:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.reached:
            raise KeyboardInterrupt
        self.reached = True
