"""Cut a long text into bounded pieces without changing its token ids.

Byte-pair tokenizers first split a text by a regular expression and merge bytes only inside a split. A cut at a border
of two splits therefore changes nothing, as long as the expression finds the same borders on both sides. That holds
between a letter and a following space, line break or punctuation mark (never an apostrophe, which may begin "'ll"):
in all four expressions of `tiktoken_bpe.PATTERNS` a split ends with the last letter of a word, and what they look
ahead for concerns white space at the end of a split only.

A stretch of more than `limit` characters without such a place (a million spaces, a base64 file) is cut after exactly
`limit` characters. Its ids may then differ from those of an encoder that holds the whole text at once; they are still
the same every time, and decode to the same text. The bound is what keeps regular expressions from overflowing their
stack (tiktoken pull request #587) and merging from going quadratic.
"""

import re
from collections.abc import Iterator

CHUNK_CHARACTERS = 1 << 16
"""Characters encoded in one call: few enough for every pattern, enough that the call costs nothing."""

_LAST_CUT = re.compile(r".*[A-Za-z\u4e00-\u9fff](?=[\s,.;:!?，。；：！？、])", re.DOTALL)
_SEARCHED = 4096
"""Characters before the limit among which a cut is looked for first; nearly every text has one there."""


def find_cut(text: str, start: int, limit: int) -> int:
    """The last place in `(start, start + limit]` where cutting keeps the ids, or `start + limit` if there is none."""
    stop = start + limit
    for begin in (max(start, stop - _SEARCHED), start):
        match = _LAST_CUT.match(text, begin, stop + 1)
        if match:
            return match.end()
    return stop


def split_text(text: str, limit: int = CHUNK_CHARACTERS) -> Iterator[str]:
    """Yield pieces of at most `limit` characters that join to the text; nothing for an empty text."""
    start = 0
    while len(text) - start > limit:
        cut = find_cut(text, start, limit)
        yield text[start:cut]
        start = cut
    if start < len(text):
        yield text[start:] if start else text
