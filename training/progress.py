"""What a run shows while it goes on: one bar in a terminal, a line now and then elsewhere; only rank 0 talks."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm


class Progress:
    """The steps of a run on stderr, with loss, validation loss and speed."""

    def __init__(self, n_steps: int, first_step: int, batch_tokens: int, *, enabled: bool) -> None:
        self.n_steps = n_steps
        self.batch_tokens = batch_tokens
        self.enabled = enabled
        self.shown: dict[str, str] = {}
        self._first_step, self._started, self._last_line = first_step, time.monotonic(), time.monotonic()
        self._bar: Any = None
        if enabled and sys.stderr.isatty():
            self._bar = tqdm(total=n_steps, initial=first_step, unit="step", dynamic_ncols=True, leave=True)

    def step(self, step: int, loss: float) -> None:
        """Count one optimizer step; `step` steps are done now."""
        if not self.enabled:
            return
        elapsed = time.monotonic() - self._started
        self.shown["loss"] = f"{loss:.3f}"
        self.shown["tokens/s"] = f"{(step - self._first_step) * self.batch_tokens / max(elapsed, 1e-9):,.0f}"
        if self._bar is not None:
            self._bar.update()
            self._bar.set_postfix(self.shown, refresh=False)
        # Without a terminal: the first step, then every ten seconds, then the last.
        elif step in (self._first_step + 1, self.n_steps) or time.monotonic() - self._last_line > 10:
            self._last_line = time.monotonic()
            left = elapsed / (step - self._first_step) * (self.n_steps - step)
            facts = " · ".join(f"{name} {value}" for name, value in self.shown.items())
            self.say(f"step {step}/{self.n_steps} · {facts} · {left:.0f} s left")

    def evaluated(self, loss: float, bits_per_byte: float) -> None:
        """Show the newest validation loss from now on."""
        self.shown["validation"] = f"{loss:.3f} ({bits_per_byte:.3f} bits/byte)"

    def say(self, text: str) -> None:
        """Print a line to stderr without breaking the bar."""
        if not self.enabled:
            return
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()
