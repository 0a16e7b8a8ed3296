"""Whole characters only: forbids tokens whose bytes would break a character.

A token of a byte-level vocabulary may hold a part of a character, and a model that is not sure enough draws parts that
do not fit together, seen as U+FFFD. Which bytes may come next depends on at most three bytes before them, so UTF-8 is
an automaton of eight states; what every token does in every state stands in one table.
"""

from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.tokenizers.base import Tokenizer
from generation.logits_processors.base import Stage
from generation.logits_processors.row_history import n_new_tokens

# Between characters, or inside one that misses 1, 2 or 3 more bytes. Behind the first bytes E0, ED, F0 and F4 the
# second one has bounds of its own, so that no character has two forms and none is half of a surrogate pair or above
# U+10FFFF (RFC 3629, section 4).
_BETWEEN, _ONE, _TWO, _THREE, _E0, _ED, _F0, _F4, _REJECTED = range(9)
_TRANSITIONS = (
    (_BETWEEN, 0x00, 0x7F, _BETWEEN),
    (_BETWEEN, 0xC2, 0xDF, _ONE),
    (_BETWEEN, 0xE0, 0xE0, _E0),
    (_BETWEEN, 0xE1, 0xEC, _TWO),
    (_BETWEEN, 0xED, 0xED, _ED),
    (_BETWEEN, 0xEE, 0xEF, _TWO),
    (_BETWEEN, 0xF0, 0xF0, _F0),
    (_BETWEEN, 0xF1, 0xF3, _THREE),
    (_BETWEEN, 0xF4, 0xF4, _F4),
    (_ONE, 0x80, 0xBF, _BETWEEN),
    (_TWO, 0x80, 0xBF, _ONE),
    (_THREE, 0x80, 0xBF, _TWO),
    (_E0, 0xA0, 0xBF, _ONE),
    (_ED, 0x80, 0x9F, _ONE),
    (_F0, 0x90, 0xBF, _TWO),
    (_F4, 0x80, 0x8F, _TWO),
)
_NEVER = 4
"""More tokens than any character needs: stands for a token that breaks one."""

TokenTable = tuple[NDArray[np.uint8], NDArray[np.uint8]]
# Processors are built for every batch; the table of 200,000 tokens takes a quarter of a second.
_TABLES: WeakKeyDictionary[Tokenizer, TokenTable] = WeakKeyDictionary()


class ValidUTF8:
    """Bans tokens that would break a character, and those that begin one which `max_new_tokens` leaves no room for.

    Where that would leave no token at all (another rule allows only such ones), it gives way.
    """

    name = "valid_utf8"
    stage: Stage = "bans"

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, max_new_tokens: int) -> None:
        """`vocab_size` is the model's; what it has more than the tokenizer stands for no text."""
        self.max_new_tokens = max_new_tokens
        states_behind, needed = token_table(tokenizer)
        # One number at a time is read faster from bytes than from an array.
        self._states_behind = [row.tobytes() for row in states_behind]
        nameless = np.zeros((len(needed), vocab_size - needed.shape[1]), dtype=np.uint8)
        self._needed = torch.from_numpy(np.concatenate((needed, nameless), axis=1))  # (8, V)
        self._n_left = -1
        self._bans = torch.empty(0)

    def __call__(self, token_ids: Tensor, logits: Tensor, prompt_lengths: Tensor) -> Tensor:
        """(B, V) → (B, V)."""
        n_new = n_new_tokens(token_ids, prompt_lengths)
        # As many tokens as a character may need are as good as any number.
        n_left = min(max(self.max_new_tokens - n_new - 1, 0), _NEVER - 1)
        if n_left != self._n_left:
            banned = (self._needed > n_left).to(logits.device)
            self._n_left, self._bans = n_left, logits.new_zeros(banned.shape).masked_fill(banned, -torch.inf)  # (8, V)
        states = self._states(token_ids, prompt_lengths, n_new)
        # Adding a row to all rows is the quickest way, and nearly always they stand in the same state.
        whole = logits + self._bans[states[0] if len(set(states)) == 1 else states]
        if float(whole.amax(dim=1).min()) > -torch.inf:
            return whole
        return torch.where(whole.amax(dim=1, keepdim=True) == -torch.inf, logits, whole)

    def _states(self, token_ids: Tensor, prompt_lengths: Tensor, n_new: int) -> list[int]:
        """Where in a character each of B rows stands.

        Its last three tokens tell, since a character misses no more bytes than three when it has begun. A prompt is a
        text, so it ends between two characters.
        """
        n_read = min(3, n_new)
        ends = prompt_lengths + n_new
        if ends.shape[0] == 1 or int(ends.min()) == token_ids.shape[1]:
            last = token_ids[:, token_ids.shape[1] - n_read :]
        else:
            last = token_ids.gather(1, ends.unsqueeze(1) + torch.arange(-n_read, 0, device=ends.device))
        states = []
        for tokens in last.tolist():
            state = _BETWEEN
            for token in tokens:
                state = self._states_behind[state][token]
            states.append(state)
        return states


def token_table(tokenizer: Tokenizer) -> TokenTable:
    """For each state and token the state behind it, and the fewest tokens that finish the character begun there.

    Both (8, vocabulary); _NEVER for a token that breaks a character, as one without text, such as the end, does
    to a character that has begun.
    """
    if tokenizer not in _TABLES:
        _TABLES[tokenizer] = _build_table(tokenizer)
    return _TABLES[tokenizer]


def _build_table(tokenizer: Tokenizer) -> TokenTable:
    vocabulary = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
    flat = np.frombuffer(b"".join(vocabulary), dtype=np.uint8)
    lengths = np.array([len(raw) for raw in vocabulary])
    starts = lengths.cumsum() - lengths
    next_state = _byte_table()
    states = np.repeat(np.arange(_REJECTED, dtype=np.uint8)[:, None], len(vocabulary), axis=1)
    is_broken = np.zeros(states.shape, dtype=bool)
    is_broken[1:, lengths == 0] = True
    for position in range(lengths.max(initial=0)):
        longer = np.flatnonzero(lengths > position)
        values = flat[starts[longer] + position]
        behind = next_state[states[:, longer], values]
        is_broken[:, longer] |= behind == _REJECTED
        # As a decoder does: what cannot go on the character begins the next one, or is dropped.
        begun = next_state[_BETWEEN, values]
        restarted = np.where(begun == _REJECTED, np.uint8(_BETWEEN), begun)
        states[:, longer] = np.where(behind == _REJECTED, restarted, behind)
    needed = np.full(_REJECTED, _NEVER, dtype=np.uint8)
    needed[_BETWEEN] = 0
    for _ in range(_NEVER - 1):
        behind = np.where(is_broken, np.uint8(_NEVER), needed[states])
        needed = np.minimum(needed, behind.min(axis=1) + np.uint8(1))
    return states, np.where(is_broken, np.uint8(_NEVER), needed[states])


def _byte_table() -> NDArray[np.uint8]:
    """The state behind each state and byte, (8, 256)."""
    table = np.full((_REJECTED, 256), _REJECTED, dtype=np.uint8)
    for state, first, last, behind in _TRANSITIONS:
        table[state, first : last + 1] = behind
    return table


def has_parts_of_characters(tokenizer: Tokenizer) -> bool:
    """Whether any token could break a character; those of a character tokenizer cannot."""
    _, needed = token_table(tokenizer)
    return bool(needed[_BETWEEN].any())
