"""Which part of a corpus trains and which part validates: decided by the corpus alone, never by the tokenizer.

Many documents: each goes to one side by a hash of its place in the corpus, so moods, authors or files that lie one
after the other are in both parts. Few documents (or a hash that hits a few long ones): the last share of the
characters validates, as in nanoGPT, and a document that lies across the cut is cut in two.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from data.documents import Piece

MIN_DOCUMENTS = 100
"""Fewer documents are split by characters: the share that a hash gives them would be a matter of luck."""


@dataclass(frozen=True)
class CorpusFacts:
    """What one reading of a corpus tells."""

    documents: int
    characters: int
    bytes: int
    hashed_bytes: int
    """Bytes of the documents that the hash gives to validation."""


@dataclass(frozen=True)
class Split:
    """`cut` None: by document; else the first `cut` characters train and the rest validates."""

    fraction: float
    cut: int | None

    def parts(self, pieces: Iterable[Piece]) -> Iterator[tuple[Piece, bool]]:
        """Yield each piece with whether it belongs to validation; a piece that lies across the cut becomes two."""
        if self.cut is None:
            yield from self._by_document(pieces)
            return
        position = 0
        for piece in pieces:
            remaining = self.cut - position
            position += len(piece.text)
            if position <= self.cut:
                yield piece, False
            elif remaining <= 0:
                yield piece, True
            else:
                yield Piece(piece.text[:remaining], ends_document=False), False
                yield Piece(piece.text[remaining:], piece.ends_document), True

    def _by_document(self, pieces: Iterable[Piece]) -> Iterator[tuple[Piece, bool]]:
        number = 0
        validates = in_validation(number, self.fraction)
        for piece in pieces:
            yield piece, validates
            if piece.ends_document:
                number += 1
                validates = in_validation(number, self.fraction)


def in_validation(number: int, fraction: float) -> bool:
    """Whether the hash of a document's number puts it into the validation part."""
    digest = hashlib.sha256(b"validation split 1: %d" % number).digest()
    return int.from_bytes(digest[:8], "little") < fraction * 2**64


def read_facts(pieces: Iterable[Piece], fraction: float) -> CorpusFacts:
    """Read a corpus once, counting; whatever is no text in it raises UserError here."""
    documents = characters = total_bytes = hashed_bytes = 0
    validates = in_validation(0, fraction)
    for piece in pieces:
        size = utf8_length(piece.text)
        characters, total_bytes = characters + len(piece.text), total_bytes + size
        hashed_bytes += size * validates
        if piece.ends_document:
            documents += 1
            validates = in_validation(documents, fraction)
    return CorpusFacts(documents, characters, total_bytes, hashed_bytes)


def choose_split(facts: CorpusFacts, fraction: float) -> Split:
    """By document where there are many and the share comes out near the one wanted, else by characters."""
    share = facts.hashed_bytes / max(1, facts.bytes)
    if facts.documents >= MIN_DOCUMENTS and fraction / 2 <= share <= min(2 * fraction, (1 + fraction) / 2):
        return Split(fraction, None)
    return Split(fraction, int(facts.characters * (1 - fraction)))


def utf8_length(text: str) -> int:
    """Bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8"))
