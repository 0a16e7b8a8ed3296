"""Attributes that a program can check, ready for `--rule training/attributes.py:NAME`; write your own like them.

A rule takes the text of a finished sample and returns True or False, or the name of a label.
"""

_SENTENCE_ENDS = (".", "!", "?", "…", "。", "！", "？")
_CLOSERS = "\"'”’»)]」』）"


def asks_a_question(text: str) -> bool:
    """Whether the text asks at least one question."""
    return "?" in text or "？" in text


def ends_with_a_sentence(text: str) -> bool:
    """Whether the text stops where a sentence stops, though its number of tokens is fixed in advance.

    Samples of `--sample-tokens N` tokens teach the discriminator how many are left, since it counts from the start of
    the text; decode with the same N as --max-new-tokens and with an empty prompt.
    """
    return text.rstrip().rstrip(_CLOSERS).endswith(_SENTENCE_ENDS)
