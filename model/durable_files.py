"""Every file operation of saving, loading and pruning checkpoints, in one place, so that each can be made to fail.

A file appears whole or not at all (`write_atomically`): it is written under a temporary name in the same folder,
synced, read back, renamed, and the folder is synced. Pillai et al. 2014, "All File Systems Are Not Created Equal"
(usenix.org/conference/osdi14), shows that each of these steps is needed.

Callers name the functions through this module (`durable_files.rename(...)`), never by `from ... import`: the tests put
faulty ones in their place.
"""

import contextlib
import errno
import io
import os
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from command_line import EXIT_DISK, UserError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

Result = TypeVar("Result")

TEMPORARY_PATTERN = ".*.tmp"
"""Names of files that are being written; one that nobody writes any more is left over from a crash."""


class StorageError(UserError):
    """The disk refused: full, read-only, over quota or broken. The message names the path and the cause."""

    exit_code = EXIT_DISK

    def __init__(self, action: str, path: Path, error: OSError) -> None:
        cause = error.strerror or str(error) or type(error).__name__
        advice = {
            errno.ENOSPC: "free some space or choose another place",
            errno.EDQUOT: "your quota is used up; free some space or choose another place",
            errno.EFBIG: "the file would exceed the allowed file size (ulimit -f)",
            errno.EROFS: "choose a place that can be written to",
            errno.EACCES: "check the permissions or choose another place",
            errno.ENOENT: "its folder has to be there",
            errno.EISDIR: "that is a folder; name a file in it",
        }.get(error.errno or 0, "checkpoints saved before are untouched")
        super().__init__(f"cannot {action} {path}: {cause}; {advice}")
        self.errno = error.errno


# ---- single operations: the tests let each of them fail ----------------------------------------------------------


def create(path: Path) -> io.FileIO:
    """Open a new file for writing, unbuffered; a file of that name must not exist."""
    return io.FileIO(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666), "wb")


def write(file: io.FileIO, data: bytes | bytearray | memoryview) -> None:
    """Write all of `data`; the system may take it in several parts."""
    view = memoryview(data).cast("B")
    while view.nbytes:
        written = file.write(view)
        assert written, "a blocking file always takes at least one byte"
        view = view[written:]


def sync(file: io.FileIO) -> None:
    """Return when what was written has reached the disk, not only the system's memory."""
    os.fsync(file.fileno())


def rename(source: Path, target: Path) -> None:
    """Give a file its final name, in one step, in place of any file that had it."""
    source.replace(target)


def unlink(path: Path) -> None:
    """Delete a file; one that is already gone is no error."""
    path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Return when new, renamed and deleted names of a folder have reached the disk."""
    if sys.platform == "win32":
        return  # Windows has no such call; NTFS journals names by itself
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Return when a file, or everything in a folder, has reached the disk; for what others have written and closed."""
    if path.is_dir():
        for entry in path.iterdir():
            sync_tree(entry)
        sync_folder(path)
        return
    with io.FileIO(path, "rb+") as file:  # Windows syncs only what may be written to
        sync(file)


def open_to_read(path: Path) -> io.FileIO:
    """Open a regular file; anything else (folder, pipe, device) raises OSError at once instead of waiting for data."""
    # Without O_NONBLOCK, opening a pipe that nobody writes to waits for ever.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder")
    file = io.FileIO(os.open(path, flags), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "is not a regular file")
    return file


def read_into(file: io.FileIO, buffer: memoryview) -> int:
    """Read into a buffer; returns the number of bytes, 0 at the end of the file."""
    return file.readinto(buffer)


def list_folder(folder: Path) -> list[str]:
    """The names in a folder, sorted; what does not exist or is no folder has none."""
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def make_folder(folder: Path) -> None:
    """Create a folder with its parents, each name durable before the next one is made."""
    if folder.is_dir():
        return
    if folder.parent != folder:
        make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):  # another process may be faster
        folder.mkdir()
    if folder.is_file():
        raise NotADirectoryError(errno.ENOTDIR, "a file has that name")
    sync_folder(folder.parent)


def free_bytes(folder: Path) -> int:
    """Bytes that the disk of a folder can still take."""
    return shutil.disk_usage(folder).free


def try_lock(file: io.FileIO) -> bool:
    """Lock an open file for this process, without waiting; the system unlocks it when the process ends, however."""
    if sys.platform == "win32":
        # Windows keeps others from reading a locked byte, so lock one far behind the holder's name.
        try:
            file.seek(2**30)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# ---- what is made of them ----------------------------------------------------------------------------------------


def write_atomically(
    path: Path, write_content: Callable[[io.FileIO], Result], verify: Callable[[Path, Result], None] | None = None
) -> Result:
    """Put a file at `path` so that a crash at any moment leaves the old one (or none) or the new one, never a part.

    `write_content` fills the temporary file; `verify` reads it back (its path, and what `write_content` returned)
    before it takes the name. Raises StorageError when the disk refuses; the old file is untouched then, unless only
    the new name could not be made durable: the file is whole then, too, but may be the old or the new one.
    """
    # Not made from the file's own name: that may already be as long as names can be.
    temporary = path.parent / f".{os.getpid()}-{os.urandom(4).hex()}.tmp"
    try:
        with create(temporary) as file:
            result = write_content(file)
            sync(file)
        if verify is not None:
            verify(temporary, result)
        rename(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            unlink(temporary)
        if isinstance(error, OSError):
            raise StorageError("save", path, error) from error
        raise
    return result
