"""Who may write to a run folder: the process that holds the lock on its file `.lock`, and no other."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import time
import weakref
from pathlib import Path

from command_line import EXIT_RUN_IN_USE, UserError
from model import durable_files

LOCK = ".lock"
_HOLDER_TRIES = 200
"""Looks at a lock file, 10 ms apart, until it names a living process of this machine."""


class RunInUseError(UserError):
    """Another process writes to the run folder at this moment; the message names it."""

    exit_code = EXIT_RUN_IN_USE


def take_lock(folder: Path) -> io.FileIO | None:
    """Lock a run folder and write down who holds it; None when the folder was removed at that very moment.

    The system frees the lock when the process ends in any way. Raises RunInUseError.
    """
    try:
        # A plain open, not `durable_files.create`: the lock file of an earlier process is used again.
        lock = io.FileIO(os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
    except FileNotFoundError:
        return None
    try:
        if not durable_files.try_lock(lock):
            raise RunInUseError(
                f"run folder {folder} is in use by {_holder(lock)}; wait for it, or choose another name with --run"
            )
        if not _is_still(lock, folder / LOCK):
            lock.close()
            return None
        if hasattr(os, "register_at_fork"):
            # A forked worker that outlives this process must not keep the folder locked.
            reference = weakref.ref(lock)
            os.register_at_fork(after_in_child=lambda: _close(reference()))
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        lock.truncate(0)
        lock.seek(0)
        durable_files.write(lock, json.dumps(holder).encode())
    except BaseException:
        lock.close()
        raise
    return lock


def _is_still(lock: io.FileIO, path: Path) -> bool:
    """Whether the locked file is the one of that name; its last holder may have removed it with its folder."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _close(lock: io.FileIO | None) -> None:
    if lock is not None:
        lock.close()


def _holder(lock: io.FileIO) -> str:
    """Who holds a lock, in words."""
    words = "another process"
    for _ in range(_HOLDER_TRIES):
        lock.seek(0)
        with contextlib.suppress(ValueError, OSError):
            holder = json.loads(lock.read(4096) or b"")
            words = f"process {holder['pid']} on {holder['host']} since {holder['since']}"
            if holder["host"] == socket.gethostname() and _is_alive(holder["pid"]):
                return words
        # The holder has the lock and is about to write its name over that of the process before it.
        time.sleep(0.01)
    return words


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it lives, and belongs to somebody else
    return True
