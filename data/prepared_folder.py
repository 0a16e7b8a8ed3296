"""The folder that holds a prepared corpus: its record, and how it gets its name or goes away in one step."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from data.shards import DamagedShardError, DiskError

STALE_SECONDS = 24 * 3600


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write what is known of a prepared corpus, after its own SHA-256; raises DiskError."""
    text = json.dumps(record, ensure_ascii=True)
    path = folder / "corpus.json"
    try:
        with path.open("w", encoding="ascii", newline="\n") as file:
            file.write(hashlib.sha256(text.encode("ascii")).hexdigest() + "\n" + text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DiskError(path, error) from error


def read_record(folder: Path) -> dict[str, Any]:
    """Read it back; raises DamagedShardError."""
    path = folder / "corpus.json"
    try:
        digest, _, text = path.read_bytes().partition(b"\n")
    except OSError as error:
        raise DamagedShardError(path, error.strerror or str(error)) from None
    if hashlib.sha256(text).hexdigest().encode("ascii") != digest:
        raise DamagedShardError(path, "its checksum is wrong")
    record: dict[str, Any] = json.loads(text)
    return record


def publish(temporary: Path, folder: Path) -> None:
    """Give a finished folder its name; another process that was faster has written the same."""
    try:
        temporary.rename(folder)
    except OSError as error:
        if not (folder / "corpus.json").exists():
            raise DiskError(folder, error) from error


def discard(folder: Path) -> None:
    """Take a damaged folder away in one step, so that nobody opens what is left of it."""
    with contextlib.suppress(FileNotFoundError):
        away = Path(tempfile.mkdtemp(prefix="partial-", dir=folder.parent))
        folder.rename(away / "damaged")
        shutil.rmtree(away, ignore_errors=True)


def remove_stale(cache_folder: Path) -> None:
    """Remove what killed processes left behind a day ago or earlier."""
    for path in cache_folder.glob("partial-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
