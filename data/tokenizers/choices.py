"""The words that name a tokenizer on the command line, checked before anything large is loaded."""

import re

from command_line import UserError, closest

TIKTOKEN_NAMES = ("gpt2", "cl100k_base", "o200k_base")
MIN_VOCAB_SIZE = 257
"""256 bytes and end of text."""
MAX_TRAINED_VOCAB_SIZE = 1 << 18

TOKENIZER_CHOICES = ("auto", "char", "byte", "bpe:N", *TIKTOKEN_NAMES)

# Smallest corpus (bytes) for each vocabulary. A token should be seen some hundred times to be learned: 2,048 tokens for
# a megabyte of English leave about 120 on average, and the embedding stays small beside the blocks of our presets.
_AUTO_BPE = ((1 << 30, 32768), (100_000_000, 16384), (10_000_000, 8192), (2_500_000, 4096), (400_000, 2048))
_AUTO_CHAR_BELOW = 100_000


def check_tokenizer_choice(choice: str) -> None:
    """Raise UserError unless the word names a tokenizer; loads nothing."""
    if choice in ("auto", "char", "byte", *TIKTOKEN_NAMES):
        return
    match = re.fullmatch(r"bpe:([0-9]{1,9})", choice, re.ASCII)
    if match is None:
        similar = closest(choice.lower(), ["auto", "char", "byte", "bpe:4096", *TIKTOKEN_NAMES])
        hint = " (such as bpe:4096)" if choice.lower().startswith("bpe") else similar
        raise UserError(f"--tokenizer must be one of {', '.join(TOKENIZER_CHOICES)}, but is {choice!r}{hint}")
    if not MIN_VOCAB_SIZE <= int(match[1]) <= MAX_TRAINED_VOCAB_SIZE:
        raise UserError(
            f"--tokenizer bpe:N needs an N from {MIN_VOCAB_SIZE} (256 bytes and end of text) "
            f"to {MAX_TRAINED_VOCAB_SIZE}, but N is {match[1]}"
        )


def resolve_tokenizer_choice(choice: str, corpus_bytes: int) -> str:
    """What `auto` means for a corpus of this many bytes; any other choice stays what it is.

    char below 100 KB, then bpe:1024, bpe:2048 from 400 KB, 4096 from 2.5 MB, 8192 from 10 MB, 16384 from 100 MB,
    32768 from 1 GiB.
    """
    if choice != "auto":
        return choice
    if corpus_bytes < _AUTO_CHAR_BELOW:
        return "char"
    return f"bpe:{next((vocab for smallest, vocab in _AUTO_BPE if corpus_bytes >= smallest), 1024)}"
