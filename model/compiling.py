"""A C++ file as a library: compiled for the processor at hand, once, and kept beside Python's own compiled files.

A kept library is named by all that its machine code follows from: the file, the flags, and what the compiler says of
itself and of the processor. So a new version of the file, another compiler, or the same folder seen from another
machine compile anew, and nothing stale or foreign is ever loaded.
"""

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from command_line import UserError
from model import durable_files

_FOR_THIS_PROCESSOR = "-march=native"
_FLAGS = ("-O3", _FOR_THIS_PROCESSOR, "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")


def compiled_library(source: Path, way_out: str) -> ctypes.CDLL:
    """The library of a C++ file, kept from an earlier start or compiled now, which takes about two seconds.

    It runs on torch's own OpenMP threads, as many as `torch.set_num_threads` says. Raises UserError, with what to do
    instead as `way_out`, when there is no C++ compiler, or one that fails.
    """
    names = [os.environ.get("CXX"), "c++", "g++", "clang++"]
    compiler = next((found for name in names if name and (found := shutil.which(name))), None)
    if compiler is None:
        raise UserError(f"there is no C++ compiler (c++, g++, clang++) to compile the kernel; install one, {way_out}")
    kept = _kept_path(compiler, source)
    if _is_intact(kept):
        with contextlib.suppress(OSError):
            return ctypes.CDLL(str(kept))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / kept.name
        done = subprocess.run([compiler, *_FLAGS, str(source), "-o", str(path)], capture_output=True, text=True)
        if done.returncode != 0:
            reason = (done.stderr.strip() or "without a message").splitlines()[0]
            raise UserError(
                f"{compiler} could not compile {source.name} ({reason}); set CXX to another compiler, {way_out}"
            )
        _keep(path, kept)
        # A folder for temporary files may be closed to programs (noexec), so the kept one goes first.
        for library in (kept, path):
            with contextlib.suppress(OSError):
                return ctypes.CDLL(str(library))
    raise UserError(f"what {compiler} made of {source.name} cannot be loaded; set CXX to another compiler, {way_out}")


def _kept_path(compiler: str, source: Path) -> Path:
    """Where the library of a file is kept: in Python's folder for what it has compiled."""
    # All macros that are defined before the first line: the compiler's version and the processor's instructions.
    macros = [compiler, _FOR_THIS_PROCESSOR, "-dM", "-E", "-x", "c++", os.devnull]
    described = subprocess.run(macros, capture_output=True).stdout
    parts = (source.read_bytes(), " ".join(_FLAGS).encode(), compiler.encode(), described)
    identity = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
    return Path(importlib.util.cache_from_source(str(source))).with_name(f"{source.stem}-{identity[:16]}.so")


def _keep(library: Path, kept: Path) -> None:
    """Copy a library to where the next start finds it; where nothing may be written, it will compile again."""
    with contextlib.suppress(OSError, durable_files.StorageError):
        content = library.read_bytes()
        durable_files.make_folder(kept.parent)
        durable_files.write_atomically(
            kept, lambda file: durable_files.write(file, content + hashlib.sha256(content).digest())
        )


def _is_intact(kept: Path) -> bool:
    """Whether a kept library ends with its own SHA-256; loading a part of one would end the process."""
    try:
        data = kept.read_bytes()
    except OSError:
        return False
    n_bytes = hashlib.sha256().digest_size
    return hashlib.sha256(data[:-n_bytes]).digest() == data[-n_bytes:]
