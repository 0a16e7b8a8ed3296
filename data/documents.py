"""Streams of bytes → streams of documents, in bounded memory.

A document of any length travels as pieces (`Piece`), so that a text larger than memory can be tokenised. A line that
is exactly `<|endoftext|>` ends a document; the line break before it belongs to the separator, every other line break
is kept as it is. Documents of nothing but white space are left out.
"""

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

from command_line import UserError
from data.tokenizers.base import END_OF_TEXT
from data.tokenizers.chunks import find_cut, split_text
from data.tokenizers.tiktoken_bpe import check_encodable

BLOCK_BYTES = 1 << 19
PIECE_CHARACTERS = 1 << 19

_SEPARATOR = re.compile(rf"(?:\A|(?<=\n)){re.escape(END_OF_TEXT)}\r?\n")
_LAST_SEPARATOR = re.compile(rf"(?:\A|(?<=\n)){re.escape(END_OF_TEXT)}\r?\Z")
_HELD_BACK = 32
"""Characters at the end of what was read that may turn out to belong to a separator line."""

# UTF-32 before UTF-16: the mark of the one begins with that of the other.
_FOREIGN_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class Piece(NamedTuple):
    """Part of a document; `ends_document` marks its last part."""

    text: str
    ends_document: bool


def foreign_encoding(start: bytes) -> str | None:
    """The encoding whose byte order mark a file begins with, if it is another than UTF-8."""
    return next((encoding for mark, encoding in _FOREIGN_MARKS if start.startswith(mark)), None)


def decoded_blocks(file: BinaryIO, name: str, encoding: str) -> Iterator[str]:
    """The text of a binary file, block by block; raises UserError naming the file and the byte that is no text.

    A byte order mark is dropped. A NUL character means that the file is binary.
    """
    decoder = codecs.getincrementaldecoder(encoding)("strict")
    is_utf8 = codecs.lookup(encoding).name == "utf-8"
    block, offset = file.read(BLOCK_BYTES), 0
    actual = foreign_encoding(block) if is_utf8 else None
    if actual is not None:
        raise UserError(f"{name} is {actual.upper()}, not UTF-8; add --encoding {actual}, or save it as UTF-8")
    at_beginning = True
    while True:
        pending = len(decoder.getstate()[0])  # bytes of a character that the last block cut in two
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{name} is not {encoding.upper()}: byte {offset - pending + error.start} (counted from 0) is "
                f"0x{error.object[error.start]:02x}; save it as UTF-8, or name its encoding with --encoding"
            ) from None
        except UnicodeError as error:  # such as UTF-16 without a byte order mark
            raise UserError(
                f"{name} is not {encoding.upper()} ({error}); save it as UTF-8, or name its encoding with --encoding, "
                f"such as utf-16-le"
            ) from None
        if "\0" in text:
            where = f" at byte {offset + block.find(0)}" if is_utf8 else ""
            raise UserError(f"{name} is not a text file: it holds a NUL character{where}")
        if text and at_beginning:
            text, at_beginning = text.removeprefix("\ufeff"), False
        if text:
            yield text
        if not block:
            return
        offset += len(block)
        block = file.read(BLOCK_BYTES)


def text_pieces(blocks: Iterable[str]) -> Iterator[Piece]:
    """The documents of a text source, whose separators are lines that are exactly `<|endoftext|>`."""
    rest, at_line_start, started = "", True, False
    for block in blocks:
        rest += block
        position = 0
        for match in _SEPARATOR.finditer(rest):
            if match.start() == 0 and not at_line_start:
                continue
            yield from _last_piece(_without_line_break(rest[position : match.start()]), started)
            position, started, at_line_start = match.end(), False, True
        rest = rest[position:]
        if len(rest) > PIECE_CHARACTERS + _HELD_BACK:
            cut = find_cut(rest, 0, len(rest) - _HELD_BACK)
            yield Piece(rest[:cut], ends_document=False)
            rest, at_line_start, started = rest[cut:], rest[cut - 1] == "\n", True
    # A rest that begins within a line is as long as what was held back, so it is never just a separator.
    match_at_end = _LAST_SEPARATOR.search(rest)
    if match_at_end:
        rest = _without_line_break(rest[: match_at_end.start()])
    yield from _last_piece(rest, started)


def _last_piece(text: str, started: bool) -> Iterator[Piece]:
    if started or (text and not text.isspace()):
        yield Piece(text, ends_document=True)


def _without_line_break(text: str) -> str:
    return text[:-2] if text.endswith("\r\n") else text.removesuffix("\n")


def json_pieces(blocks: Iterable[str], name: str, text_field: str) -> Iterator[Piece]:
    """The documents of a JSON-lines source: one a line, in the field `text_field`.

    Raises UserError naming the line that is no such object.
    """
    for number, line in enumerate(_lines(blocks), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{name}, line {number} is not JSON ({error})") from None
        text = record.get(text_field) if isinstance(record, dict) else None
        if not isinstance(text, str):
            if isinstance(record, dict) and text_field in record:
                raise UserError(f"{name}, line {number}: the field {text_field!r} holds no text, but {_shown(text)}")
            fields = ", ".join(map(repr, list(record)[:8])) if isinstance(record, dict) else "no fields"
            raise UserError(
                f"{name}, line {number} has no text in the field {text_field!r} (it has {fields}); "
                "name the field with --text-field"
            )
        try:
            check_encodable(text)
        except UserError as error:
            raise UserError(f"{name}, line {number}: {error}") from None
        yield from whole_document(text)


def _shown(value: object) -> str:
    """The beginning of a value as JSON."""
    written = json.dumps(value)
    return written if len(written) <= 40 else f"{written[:40]}…"


def whole_document(text: str) -> Iterator[Piece]:
    """One document as pieces; nothing when it is only white space."""
    if text.isspace() or not text:
        return
    pieces = list(split_text(text, PIECE_CHARACTERS))
    yield from (Piece(piece, ends_document=False) for piece in pieces[:-1])
    yield Piece(pieces[-1], ends_document=True)


def _lines(blocks: Iterable[str]) -> Iterator[str]:
    # A list of parts, joined once: adding block by block to a line of a gigabyte would copy it a thousand times.
    parts: list[str] = []
    for block in blocks:
        first, *others = block.split("\n")
        parts.append(first)
        for other in others:
            yield "".join(parts)
            parts = [other]
    yield "".join(parts)


def join_pieces(pieces: Iterable[Piece]) -> Iterator[str]:
    """Whole documents; a document cut short at the end of the pieces is given as it is."""
    parts: list[str] = []
    for piece in pieces:
        parts.append(piece.text)
        if piece.ends_document:
            yield "".join(parts)
            parts = []
    if parts:
        yield "".join(parts)
