"""Rules that forbid tokens: what they ban gets −inf and no later stage brings it back.

When they leave a row no token at all, its text ends with the reason `no_candidate`: a ban is kept in any case.
"""

import functools
import sys
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from data.tokenizers.base import Tokenizer
from data.tokenizers.tiktoken_bpe import check_encodable
from generation.logits_processors.base import Stage
from generation.logits_processors.row_history import RowStates, n_new_tokens, row_lengths


class SuppressTokens:
    """Never draws the given tokens."""

    stage: Stage = "bans"

    def __init__(self, tokens: Iterable[int]) -> None:
        tokens = sorted(set(tokens))
        self._tokens = torch.tensor(tokens, dtype=torch.int64)
        self.name = f"suppress_tokens={_shorten(tokens)}"

    def __call__(self, token_ids: Tensor, logits: Tensor, prompt_lengths: Tensor) -> Tensor:
        """(B, V) → (B, V)."""
        return logits.index_fill(1, self._tokens.to(logits.device), -torch.inf)


class MinNewTokens:
    """Forbids the end of text until a number of tokens has been generated."""

    stage: Stage = "bans"

    def __init__(self, min_new_tokens: int, end_of_text: int) -> None:
        self.min_new_tokens = min_new_tokens
        self.end_of_text = torch.tensor([end_of_text])
        self.name = f"min_new_tokens={min_new_tokens}"

    def __call__(self, token_ids: Tensor, logits: Tensor, prompt_lengths: Tensor) -> Tensor:
        """(B, V) → (B, V)."""
        if n_new_tokens(token_ids, prompt_lengths) >= self.min_new_tokens:
            return logits
        return logits.index_fill(1, self.end_of_text.to(logits.device), -torch.inf)


class ForcedEnd:
    """Leaves only the end of text for the last of `max_new_tokens` tokens."""

    stage: Stage = "bans"

    def __init__(self, max_new_tokens: int, end_of_text: int) -> None:
        self.max_new_tokens = max_new_tokens
        self.end_of_text = end_of_text
        self.name = f"forced_end={max_new_tokens}"

    def __call__(self, token_ids: Tensor, logits: Tensor, prompt_lengths: Tensor) -> Tensor:
        """(B, V) → (B, V)."""
        if n_new_tokens(token_ids, prompt_lengths) < self.max_new_tokens - 1:
            return logits
        return _only(logits, [[self.end_of_text]] * len(logits))


class AllowedTokens:
    """Allows only the tokens that a function names for the tokens of a row so far (a prefix function)."""

    stage: Stage = "bans"

    def __init__(self, allowed: Callable[[list[int]], Sequence[int]]) -> None:
        self.allowed = allowed
        self.name = "allowed_tokens"

    def __call__(self, token_ids: Tensor, logits: Tensor, prompt_lengths: Tensor) -> Tensor:
        """(B, V) → (B, V)."""
        lengths = row_lengths(token_ids, prompt_lengths).tolist()
        rows = [tokens[:length] for tokens, length in zip(token_ids.tolist(), lengths, strict=True)]
        return _only(logits, [self.allowed(tokens) for tokens in rows])


class NoRepeatNgram:
    """Forbids every token that would complete an n-gram for the second time (Paulus et al. 2017,
    arxiv.org/abs/1705.04304), from a table that grows by one entry a step.
    """

    stage: Stage = "bans"

    def __init__(self, n: int) -> None:
        self.n = n
        self.name = f"no_repeat_ngram={n}"
        self._rows: RowStates[_NgramTable] = RowStates(lambda: _NgramTable(n), _NgramTable.add)

    def __call__(self, token_ids: Tensor, logits: Tensor, prompt_lengths: Tensor) -> Tensor:
        """(B, V) → (B, V)."""
        return _without(logits, [table.completing() for table in self._rows.update(token_ids, prompt_lengths)])


class _NgramTable:
    """Which tokens have followed each run of n − 1 tokens of a row."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.last: tuple[int, ...] = ()
        self.following: dict[tuple[int, ...], set[int]] = {}

    def add(self, token: int, is_new: bool) -> "_NgramTable":
        if len(self.last) == self.n - 1:
            self.following.setdefault(self.last, set()).add(token)
        self.last = (*self.last, token)[1 - self.n :] if self.n > 1 else ()
        return self

    def completing(self) -> set[int]:
        return self.following.get(self.last, set())


def _capitalised(text: str) -> str:
    """The text with its first letter as a capital, behind white space too."""
    word = text.lstrip()
    return text[: len(text) - len(word)] + word[:1].upper() + word[1:]


class BanTexts:
    """Never writes the given texts, also capitalised or in capitals, whatever tokens they are made of.

    Works on bytes: a token is banned when, behind what the row ends with, it would complete the text. So the text is
    found inside a token, across tokens, and with or without a leading space.
    """

    stage: Stage = "bans"

    def __init__(self, texts: Sequence[str], tokenizer: Tokenizer) -> None:
        for text in texts:
            check_encodable(text)
        self.name = "ban_text=" + ",".join(repr(text) for text in texts)
        variants = {form for text in texts for form in (text, _capitalised(text), text.upper())}
        self._longest = max(len(form.encode()) for form in variants)
        self._token_bytes = tokenizer.token_bytes
        vocabulary = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
        self._always: set[int] = set()
        # beginning of a banned text → tokens that complete it
        self._completing: dict[bytes, set[int]] = {}
        for banned in (form.encode() for form in variants):
            self._always |= {token for token, raw in enumerate(vocabulary) if banned in raw}
            for cut in range(1, len(banned)):
                tokens = {token for token, raw in enumerate(vocabulary) if raw.startswith(banned[cut:])}
                self._completing.setdefault(banned[:cut], set()).update(tokens)
        self._rows: RowStates[bytes] = RowStates(bytes, self._add)

    def _add(self, tail: bytes, token: int, is_new: bool) -> bytes:
        return (tail + self._token_bytes(token))[-self._longest :]

    def _banned_behind(self, tail: bytes) -> set[int]:
        ends = (tail[-length:] for length in range(1, len(tail) + 1))
        return self._always.union(*(self._completing.get(end, ()) for end in ends))

    def __call__(self, token_ids: Tensor, logits: Tensor, prompt_lengths: Tensor) -> Tensor:
        """(B, V) → (B, V)."""
        return _without(logits, [self._banned_behind(tail) for tail in self._rows.update(token_ids, prompt_lengths)])


CHARACTER_CLASSES: dict[str, Callable[[str], bool]] = {
    # The digits of every script, also ² and ①, but not ½ or 五.
    "digits": str.isdigit,
    "letters": str.isalpha,
    "uppercase": str.isupper,
    "lowercase": str.islower,
    "punctuation": lambda character: not character.isalnum() and not character.isspace(),
}


_SURROGATES = range(0xD800, 0xE000)
_RARELY_ALLOWED = 0.1
"""Of the characters that some first bytes can become: with no more of them allowed, the bytes are banned.

E4 begins the commonest Chinese characters and 64 hexagrams; without letters, only the hexagrams would be left.
"""


class BanFirst:
    """Forbids kinds of characters as the first one that is generated, spaces not counted.

    It counts from the end of each row's prompt and holds until a character other than space has been generated. A
    character whose bytes come in several tokens is judged when it is complete, and its first bytes by what they can
    become: where nearly all of it is banned, so are they, or the model would be led to where only a rare sign is left.
    """

    stage: Stage = "bans"

    def __init__(self, kinds: Sequence[str], tokenizer: Tokenizer) -> None:
        self.name = "ban_first=" + ",".join(kinds)
        self._kinds = tuple(kinds)
        self._vocabulary = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
        self._banned_behind: dict[bytes, set[int]] = {}
        # None once the first character has come, else its bytes so far.
        self._rows: RowStates[bytes | None] = RowStates(bytes, self._add)

    def _add(self, begun: bytes | None, token: int, is_new: bool) -> bytes | None:
        if begun is None or not is_new:
            return begun
        raw = begun + self._vocabulary[token]
        return None if _first_character(raw) else _unfinished(raw)

    def _banned(self, begun: bytes | None) -> set[int]:
        if begun is None:
            return set()
        if begun not in self._banned_behind:
            self._banned_behind[begun] = {
                token for token, raw in enumerate(self._vocabulary) if self._is_banned_beginning(begun + raw)
            }
        return self._banned_behind[begun]

    def _is_banned_beginning(self, raw: bytes) -> bool:
        first = _first_character(raw)
        if first:
            return _is_one_of(self._kinds, first)
        tail = _unfinished(raw)
        return bool(tail) and _becomes_mostly(self._kinds, tail)

    def __call__(self, token_ids: Tensor, logits: Tensor, prompt_lengths: Tensor) -> Tensor:
        """(B, V) → (B, V)."""
        return _without(logits, [self._banned(begun) for begun in self._rows.update(token_ids, prompt_lengths)])


def _first_character(raw: bytes) -> str:
    """The first complete character that is no space, or an empty string."""
    return raw.removesuffix(_unfinished(raw)).decode("utf-8", errors="replace").lstrip()[:1]


def _unfinished(raw: bytes) -> bytes:
    """The bytes at the end that begin a character without finishing it."""
    for length in range(1, min(3, len(raw)) + 1):
        tail = raw[-length:]
        if tail[0] >= 0xC0:
            return tail if _announced(tail[0]) > length else b""
        if tail[0] < 0x80:
            break
    return b""


def _announced(first: int) -> int:
    """How many bytes the first byte of a longer character announces."""
    return 2 if first < 0xE0 else 3 if first < 0xF0 else 4


def _is_one_of(kinds: Sequence[str], character: str) -> bool:
    return any(CHARACTER_CLASSES[kind](character) for kind in kinds)


@functools.cache
def _becomes_mostly(kinds: tuple[str, ...], begun: bytes) -> bool:
    """Whether nearly all characters that these first bytes of one can become are of the kinds."""
    n_bytes = _announced(begun[0])
    prefix = begun[0] & (0x7F >> n_bytes)
    for byte in begun[1:]:
        prefix = prefix << 6 | byte & 0x3F
    bits = 6 * (n_bytes - len(begun))
    # A character has only its shortest form.
    lowest = max(prefix << bits, {2: 0x80, 3: 0x800, 4: 0x10000}[n_bytes])
    # A quarter of a million follow some first bytes, but those of one kind stand together: every sixteenth will do.
    codes = range(lowest, min((prefix + 1) << bits, sys.maxunicode + 1), 16 if bits > 12 else 1)
    possible = [chr(code) for code in codes if code not in _SURROGATES]
    n_others = sum(not _is_one_of(kinds, character) for character in possible)
    return bool(possible) and n_others <= _RARELY_ALLOWED * len(possible)


def _without(logits: Tensor, banned: Sequence[Iterable[int]]) -> Tensor:
    """The logits (B, V) with each row's banned tokens at −inf."""
    pairs = [(row, token) for row, tokens in enumerate(banned) for token in tokens]
    if not pairs:
        return logits
    rows, tokens = torch.tensor(pairs, device=logits.device).T
    return logits.index_put((rows, tokens), torch.tensor(-torch.inf, device=logits.device, dtype=logits.dtype))


def _only(logits: Tensor, allowed: Sequence[Sequence[int]]) -> Tensor:
    """The logits (B, V) with all but each row's allowed tokens at −inf."""
    keep = torch.zeros_like(logits, dtype=torch.bool)
    for row, tokens in enumerate(allowed):
        keep[row, torch.tensor(list(tokens), dtype=torch.int64, device=logits.device)] = True
    return logits.masked_fill(~keep, -torch.inf)


def _shorten(tokens: Sequence[int]) -> str:
    shown = ",".join(str(token) for token in tokens[:5])
    return shown if len(tokens) <= 5 else f"{shown},… ({len(tokens)})"
