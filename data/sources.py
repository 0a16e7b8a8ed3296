"""Open whatever `--data` names as a stream of documents that can be read again and again."""

import atexit
import codecs
import contextlib
import gzip
import hashlib
import json
import os
import shutil
import stat
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from command_line import UserError, closest
from data.corpora import CORPUS_NAMES, SHIPPED, fetch_corpus, fetch_url, file_hash
from data.documents import Piece, decoded_blocks, foreign_encoding, join_pieces, json_pieces, text_pieces
from data.shards import DiskError


@dataclass(frozen=True)
class SourceFile:
    """One file of a source, under the name that messages and the fingerprint use."""

    path: Path
    name: str

    @property
    def is_json(self) -> bool:
        """Whether each line is a JSON object."""
        return self.path.name.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson"))

    @contextlib.contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The file's bytes, unpacked if it is gzipped; raises UserError when it can not be read."""
        try:
            with self.path.open("rb") as raw:
                is_gzip = raw.read(2) == b"\x1f\x8b"
                raw.seek(0)
                with gzip.open(raw) if is_gzip else contextlib.nullcontext(raw) as file:
                    yield cast(BinaryIO, file)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"{self.name} is a damaged gzip file ({error}); fetch or pack it again") from error
        except OSError as error:
            raise UserError(f"cannot read {self.name} ({error.strerror or error})") from error


@dataclass(frozen=True)
class Source:
    """A corpus: one or more files, read as documents in a fixed order, as often as wanted, in constant memory."""

    name: str
    files: tuple[SourceFile, ...]
    text_field: str = "text"
    encoding: str = "utf-8"
    skipped: tuple[str, ...] = ()
    """Files of the folder that were left out, since they hold no text: a NUL byte among the first 8,192, and no mark of
    UTF-16 or UTF-32."""

    def pieces(self) -> Iterator[Piece]:
        """Yield the documents in pieces of bounded length; raises UserError for what is no text."""
        for file in self.files:
            with file.open() as stream:
                blocks = decoded_blocks(stream, file.name, self.encoding)
                if file.is_json:
                    yield from json_pieces(blocks, file.name, self.text_field)
                else:
                    yield from text_pieces(blocks)

    def documents(self) -> Iterator[str]:
        """Yield the documents whole."""
        return join_pieces(self.pieces())

    def fingerprint(self) -> str:
        """SHA-256 of the content: of the file itself for a single text file, else of all names, hashes and settings."""
        try:
            hashes = [file_hash(file.path) for file in self.files]
        except OSError as error:
            raise UserError(f"cannot read {self.name} ({error.strerror or error})") from error
        is_plain = not self.files[0].is_json and codecs.lookup(self.encoding).name == "utf-8"
        if len(self.files) == 1 and is_plain:
            return hashes[0]
        names = [file.name if len(self.files) > 1 else "" for file in self.files]
        parts = [names, hashes, [file.is_json for file in self.files], self.text_field, self.encoding]
        return hashlib.sha256(json.dumps(parts).encode("ascii")).hexdigest()


def open_source(spec: str, *, text_field: str = "text", encoding: str = "utf-8", flag: str = "--data") -> Source:
    """Open a known corpus, text file, folder, .jsonl, .gz, http(s) address, or `-` for standard input.

    `flag` is what the user typed before `spec`, for messages; "" where nothing stands before it. Raises UserError when
    there is nothing to read; what is no text is found while reading.
    """
    _check_encoding(encoding)
    if not spec:
        what = flag or "the name of the text"
        raise UserError(f"{what} is empty; name a corpus, a file, a folder (. for this one), an address or -")
    if spec == "-":
        return _standard_input(text_field, encoding)
    named = f"{flag} {spec}".lstrip()
    if spec in CORPUS_NAMES:
        return _known_corpus(spec)
    if spec.startswith(("http://", "https://")):
        path = fetch_url(spec)
        return Source(spec, (SourceFile(path, spec),), text_field, encoding)
    path = Path(spec)
    mode = _mode(path, spec, named)
    if stat.S_ISDIR(mode):
        return _folder(path, text_field, encoding, named)
    if not stat.S_ISREG(mode):
        raise UserError(f"{named} is neither a file nor a folder; for a pipe, give - and use standard input")
    _check_readable(path, named)
    return Source(path.name, (SourceFile(path, spec),), text_field, encoding)


def _check_encoding(encoding: str) -> None:
    try:
        codec = codecs.lookup(encoding)
        "".encode(encoding)  # "hex", "rot13" and their like are codecs, but none of text
    except (LookupError, ValueError):
        raise UserError(
            f"--encoding {encoding!r} is unknown{closest(encoding, ['utf-8', 'utf-16', 'latin-1'])}"
        ) from None
    if codec.incrementaldecoder is None:
        raise UserError(f"--encoding {encoding} cannot be read piece by piece; save the file as UTF-8")


def _mode(path: Path, spec: str, named: str) -> int:
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        hint = closest(spec, CORPUS_NAMES)
        raise UserError(
            f"{named} does not exist{hint}; give a file, folder, address, - or one of {', '.join(CORPUS_NAMES)}"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{named!r} cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _check_readable(path: Path, named: str) -> None:
    try:
        with path.open("rb") as file:
            is_empty = not file.read(1)
    except OSError as error:
        raise UserError(f"{named} cannot be read ({error.strerror or error})") from None
    if is_empty:
        raise UserError(f"{named} is empty; give a text of at least a few hundred words")


def _known_corpus(name: str) -> Source:
    if name not in SHIPPED:
        return Source(name, (SourceFile(fetch_corpus(name), f"{name}.txt"),))
    paths = [path for folder in SHIPPED[name] for path in sorted(folder.glob("*.txt"))]
    if not paths:
        raise UserError(f"the shipped corpus {name} is missing at {SHIPPED[name][0]}; fetch the project again")
    return Source(name, tuple(SourceFile(path, f"{path.parent.name}/{path.name}") for path in paths))


def _folder(folder: Path, text_field: str, encoding: str, named: str) -> Source:
    files, skipped = [], []
    for path in _visible_files(folder):
        source_file = SourceFile(path, path.relative_to(folder).as_posix())
        with source_file.open() as stream:
            start = stream.read(8192)
        # Files of other kinds lie in most folders; a wide encoding has NUL bytes of its own.
        is_binary = b"\0" in start and codecs.lookup(encoding).name == "utf-8"
        # Text in another encoding is not left out without a word: reading it says what to do.
        if is_binary and foreign_encoding(start) is None:
            skipped.append(source_file.name)
        elif start:
            files.append(source_file)
    if not files:
        raise UserError(f"{named} holds no text file ({len(skipped)} binary files were left out)")
    return Source(folder.resolve().name, tuple(files), text_field, encoding, tuple(skipped))


def _visible_files(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise UserError(f"cannot read the folder {error.filename} ({error.strerror})") from None

    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent) / name
            if not name.startswith(".") and path.is_file():
                yield path


def _standard_input(text_field: str, encoding: str) -> Source:
    # Closed and reopened by name, which Windows allows only for files that do not delete themselves.
    handle, name = tempfile.mkstemp(prefix="standard-input-")
    spool = Path(name)
    atexit.register(spool.unlink, missing_ok=True)
    try:
        with os.fdopen(handle, "wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
    except OSError as error:
        raise DiskError(spool, error) from error
    if not spool.stat().st_size:
        raise UserError("standard input is empty; - reads the text from it")
    return Source("standard input", (SourceFile(spool, "standard input"),), text_field, encoding)
