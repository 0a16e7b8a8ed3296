"""Attributes that a program can check, ready for `--rule training/attributes.py:NAME`; write your own like them.

A rule takes the text of a finished sample and returns True or False, or the name of a label.
"""

import re

_SENTENCE_ENDS = (".", "!", "?", "…", "。", "！", "？")
_SEA_WORD = re.compile(
    r"\b(sea|ocean|wave|tide|shore|beach|sand|shell|island|port|harbou?r|lighthouse|boat|ship|sail|oar|anchor|net|"
    r"captain|sailor|fisherm[ae]n|fish|gull|whale)s?\b"
)
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


def tells_of_the_sea(text: str) -> bool:
    """Whether the text holds two different words of the sea: a topic, and a rare one (English)."""
    return len(set(_SEA_WORD.findall(text.lower()))) >= 2
