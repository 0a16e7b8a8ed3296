"""How much memory a piece of work takes for itself, without the pages of mapped files, which the system may drop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from command_line import UserError

_POLL_SECONDS = 0.01
_STATUS = Path("/proc/self/status")


def anonymous_bytes() -> int:
    """Anonymous memory of this process at this moment; raises UserError where the system does not tell."""
    if _STATUS.exists():
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    raise UserError("this system does not tell anonymous memory; run this question on Linux")


def peak_anonymous_bytes(work: Callable[[], object]) -> int:
    """The most anonymous memory that this process had while `work` ran, the interpreter and its modules included."""
    peak, done = anonymous_bytes(), threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(_POLL_SECONDS):
            peak = max(peak, anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max(peak, anonymous_bytes())
