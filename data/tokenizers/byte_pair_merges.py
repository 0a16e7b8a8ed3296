"""Two ways to write down a byte-pair vocabulary, and when they mean the same.

tiktoken keeps ranks: of all adjacent pairs whose joined bytes are a token, the one with the lowest rank is merged.
Hugging Face (and GGUF) keep a list of merges: of all adjacent pairs in the list, the earliest is merged.

Both give the same ids if each token's merge in the list is the one that ranks arrive at. To see why it is enough to
look at each token alone: when two parts of a token t stand side by side and are about to become t, nothing has been
merged over t's borders, so what happened inside them is what happens to t by itself.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import TypeVar

Token = TypeVar("Token", bytes, str)
"""Bytes, or characters for SentencePiece, whose scores order merges as ranks do."""


def last_merge(token: Token, ranks: Mapping[Token, int]) -> tuple[Token, Token] | None:
    """The two parts that a token is merged from at last; None when the ranks never leave two parts of it."""
    no_token = len(ranks)
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        candidates = [ranks.get(left + right, no_token) for left, right in itertools.pairwise(parts)]
        lowest = min(candidates)
        if lowest == no_token:
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
    listed: dict[Token, list[tuple[Token, Token]]] = {}
    latest = -1
    for left, right in merges:
        rank = ranks.get(left + right, -1)
        if rank < latest:
            return False
        latest = rank
        listed.setdefault(left + right, []).append((left, right))
    parts: dict[Token, tuple[Token, Token]] = {}
    since = {part: -1 for pair in merges for part in pair if len(part) == 1}
    for token, rank in ranks.items():
        pairs = listed.get(token, [])
        quick = (pair for pair in pairs if pair[0] in since and pair[1] in since)
        arrived_at = next((pair for pair in quick if _stay_apart(*pair, rank, ranks, since, parts)), None)
        if arrived_at is not None:
            parts[token], since[token] = arrived_at, rank
        elif len(token) > 1:
            merge = last_merge(token, ranks)
            # Only a word that is this token as a whole gives one without merge; tiktoken looks for that first.
            if merge not in pairs and not (merge is None and ignore_merges):
                return False
    return True


def _stay_apart(
    left: Token,
    right: Token,
    limit: int,
    ranks: Mapping[Token, int],
    since: Mapping[Token, int],
    parts: Mapping[Token, tuple[Token, Token]],
) -> bool:
    """Whether two tokens side by side both come to be under the ranks below `limit`, nothing being merged across them.

    `parts` has the last merge of every longer token in them, `since` the rank at which it came to be, above those of
    its parts, and −1 for a single byte. So merges inside a token come in the order of their ranks, and the way back,
    from the later of the two to its parts, meets every pair that ever stood at the border, and how long it stood there.
    That takes as many steps as the tokens are deep; `last_merge` goes over all parts at every step. (The idea is that
    of the crate `bpe`, GitHub 2024, github.com/github/rust-gems.)
    """
    while ranks.get(left + right, limit) >= limit:
        if since[left] > since[right]:
            limit, left = since[left], parts[left][1]
        elif since[right] >= 0:
            # Of two pairs of equal rank the one further left is merged first: that across the border.
            limit, right = since[right] + 1, parts[right][0]
        else:
            return True
    return False
