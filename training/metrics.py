"""What a run measured, as one JSON object a line in `metrics.jsonl`."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

from model import durable_files
from model.durable_files import StorageError


class MetricsLog:
    """Appends to a run's metrics; every line holds its `step`, so that a resumed run can cut back to its checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._has_warned = False

    def write(self, step: int, **values: float) -> None:
        """Append one line, whole or not at all; a full disk costs the line and a warning, not the run."""
        line = json.dumps({"step": step, **values}) + "\n"
        try:
            with io.FileIO(self.path, "a") as file:
                n_bytes = file.tell()
                try:
                    durable_files.write(file, line.encode())
                except OSError:
                    file.truncate(n_bytes)
                    raise
        except OSError as error:
            if not self._has_warned:
                print(f"warning: {StorageError('write', self.path, error)}", file=sys.stderr)
            self._has_warned = True


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of a metrics file, oldest first; an unfinished last line (after a crash) is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]
