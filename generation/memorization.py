"""How much of a generated text was learned by heart: its longest run of characters that stands in the training text."""

from collections.abc import Iterable


def longest_copy(sample: str, corpus: str | Iterable[str]) -> str:
    """The longest run of characters of the sample that stands verbatim in the corpus.

    A corpus given as documents is read once, one document at a time, and a copy lies within one document. Give the
    sample without its prompt, which may well be a quotation.
    """
    longest = ""
    for text in [corpus] if isinstance(corpus, str) else corpus:
        longest = _longer_copy(sample, text, longest)
    return longest


def _longer_copy(sample: str, text: str, longest: str) -> str:
    """The longest copy from `text`, where it is longer than the one already known.

    A run that is one character longer is looked for at every start: what beats the record once is extended until it
    ends, so a text is searched len(sample) + len(result) times, and Python's search reads gigabytes a second.
    """
    length = len(longest)
    for start in range(len(sample)):
        while start + length < len(sample) and sample[start : start + length + 1] in text:
            length += 1
            longest = sample[start : start + length]
    return longest
