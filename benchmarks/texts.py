"""Texts of any size for questions about corpora: made-up words, frequent ones and ever new rare ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np

_CONSONANTS, _VOWELS = "bcdfghjklmnprstvwz", "aeiou"
_WORDS_BY_LENGTH = (60, 5_000, 194_940)
"""Words of one, two and three syllables, of which 90, 8,100 and 729,000 are possible."""
_WORDS = sum(_WORDS_BY_LENGTH)
_ZIPF_EXPONENT = 1.05
"""Slightly above 1, as in English (Piantadosi 2014, doi.org/10.3758/s13423-014-0585-6)."""
_WORDS_A_BLOCK = 1 << 18
_WORDS_A_DOCUMENT = 120


def write_text(path: Path, n_bytes: int, seed: int = 0) -> None:
    """Write documents of made-up words, at least `n_bytes` of them, in constant memory."""
    generator = np.random.default_rng(seed)
    words = _made_up_words(generator)
    shares = 1 / np.arange(1, _WORDS + 1) ** _ZIPF_EXPONENT
    borders = np.cumsum(shares / shares.sum())
    written = 0
    with path.open("w", encoding="ascii", newline="\n") as file:
        while written < n_bytes:
            numbers = np.searchsorted(borders, generator.random(_WORDS_A_BLOCK)).clip(max=_WORDS - 1)
            for first in range(0, len(numbers), _WORDS_A_DOCUMENT):
                document = " ".join(words[number] for number in numbers[first : first + _WORDS_A_DOCUMENT].tolist())
                written += file.write(f"{document}.\n<|endoftext|>\n")
                if written >= n_bytes:
                    break


def _made_up_words(generator: np.random.Generator) -> list[str]:
    """Different words, the frequent ones first: some of one syllable, more of two, most of three."""
    syllables = [consonant + vowel for consonant in _CONSONANTS for vowel in _VOWELS]
    words: list[str] = []
    for length, count in enumerate(_WORDS_BY_LENGTH, start=1):
        numbers = generator.choice(len(syllables) ** length, size=count, replace=False).tolist()
        words += ["".join(syllables[n // len(syllables) ** i % len(syllables)] for i in range(length)) for n in numbers]
    return words
