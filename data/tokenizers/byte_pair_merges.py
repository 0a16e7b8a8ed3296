"""Two ways to write down a byte-pair vocabulary, and when they mean the same.

tiktoken keeps ranks: of all adjacent pairs whose joined bytes are a token, the one with the lowest rank is merged.
Hugging Face (and GGUF) keep a list of merges: of all adjacent pairs in the list, the earliest is merged.

Both give the same ids if each token's merge in the list is the one that ranks arrive at. To see why it is enough to
look at each token alone: when two parts of a token t stand side by side and are about to become t, nothing has been
merged over t's borders, so what happened inside them is what happens to t by itself under all ranks below its own.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import TypeVar

Token = TypeVar("Token", bytes, str)
"""Bytes, or characters for SentencePiece, whose scores order merges as ranks do."""


def last_merge(token: Token, ranks: Mapping[Token, int]) -> tuple[Token, Token] | None:
    """The two parts that a token is merged from at last; None when ranks below its own never leave two parts."""
    limit = ranks[token]
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        candidates = [ranks.get(left + right, limit) for left, right in itertools.pairwise(parts)]
        lowest = min(candidates)
        if lowest >= limit:
            return None
        at = candidates.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return (parts[0], parts[1]) if len(parts) == 2 else None


def merges_from_ranks(tokens: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """The merges of a vocabulary whose ids are its ranks, in order; empty tokens are none.

    With `ignore_merges` (a whole word that is a token needs no merging) they give tiktoken's ids.
    """
    ranks = {token: rank for rank, token in enumerate(tokens) if token}
    merges = (last_merge(token, ranks) for token in tokens if len(token) > 1)
    return [merge for merge in merges if merge is not None]


def merges_equal_ranks(tokens: Sequence[Token], merges: Sequence[tuple[Token, Token]], ignore_merges: bool) -> bool:
    """Whether a list of merges gives the same ids as the ranks of its tokens do in tiktoken."""
    ranks = {token: rank for rank, token in enumerate(tokens) if token}
    listed: dict[Token, set[tuple[Token, Token]]] = {}
    latest = -1
    for left, right in merges:
        rank = ranks.get(left + right, -1)
        if rank < latest:
            return False
        latest = rank
        listed.setdefault(left + right, set()).add((left, right))
    for token in ranks:
        if len(token) == 1:
            continue
        merge = last_merge(token, ranks)
        if merge is None:
            # Only a word that is this token as a whole gives it; tiktoken always looks for that first.
            if not ignore_merges:
                return False
        elif merge not in listed.get(token, ()):
            return False
    return True
