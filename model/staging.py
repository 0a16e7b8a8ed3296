"""Write a new folder or file under a temporary name and give it its own only when it is whole."""

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from command_line import UserError
from model import durable_files
from model.durable_files import StorageError


def check_free(path: Path, overwrite: bool, replaceable: Collection[str] = ()) -> None:
    """Raise UserError when something is in the way: anything without `overwrite`, foreign files even with it.

    `replaceable` are the names that a folder may hold to be replaced as a whole.
    """
    if not path.exists():
        return
    if not overwrite:
        raise UserError(f"{path} exists already; choose another --output or add --overwrite")
    foreign = [name for name in durable_files.list_folder(path) if name not in replaceable]
    if foreign:
        raise UserError(f"{path} holds {foreign[0]}, which is no part of an export; choose another --output")


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, in which to put a file or a folder; it takes the place of `path` at the end.

    Nothing is left behind, and what was there stays, when the body fails. Raises StorageError when the disk refuses.
    """
    temporary = path.parent / f".{os.getpid()}-{os.urandom(4).hex()}.tmp"
    replaced = temporary.with_suffix(".old.tmp")
    try:
        durable_files.make_folder(path.parent)
        yield temporary
        durable_files.sync_tree(temporary)
        if path.is_dir():
            durable_files.rename(path, replaced)
        durable_files.rename(temporary, path)
        durable_files.sync_folder(path.parent)
    except OSError as error:
        raise StorageError("export", path, error) from error
    finally:
        if replaced.exists() and not path.exists():
            with contextlib.suppress(OSError):
                durable_files.rename(replaced, path)
        for left_over in (temporary, replaced) if path.exists() else (temporary,):
            if left_over.is_dir():
                shutil.rmtree(left_over, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    left_over.unlink()
