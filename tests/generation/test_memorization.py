"""The longest verbatim copy, by hand and against an enumeration of all substrings."""

import random
from collections.abc import Iterator

import pytest

from generation.memorization import longest_copy


def by_enumeration(sample: str, documents: list[str]) -> str:
    """The first of the longest substrings of the sample that are substrings of a document."""
    for length in range(len(sample), 0, -1):
        for start in range(len(sample) - length + 1):
            if any(sample[start : start + length] in document for document in documents):
                return sample[start : start + length]
    return ""


def test_a_copy_is_found_inside_a_sample_of_new_text() -> None:
    corpus = "Pip the fox had a fine red tail. He ran through the forest."
    assert longest_copy("Mia had a fine red hat", corpus) == " had a fine red "


def test_a_sample_that_is_all_copied_is_returned_whole() -> None:
    assert longest_copy("fox had", "Pip the fox had a fine red tail.") == "fox had"


@pytest.mark.parametrize("sample", ["", "XYZ"])
def test_a_sample_that_shares_no_character_has_no_copy(sample: str) -> None:
    assert longest_copy(sample, "all lower case") == ""


def test_a_copy_lies_within_one_document() -> None:
    assert longest_copy("end begin", ["the end", " begin again"]) == " begin"


def test_the_longest_copy_may_come_from_any_document_of_a_stream() -> None:
    def documents() -> Iterator[str]:
        yield from ("a cat", "a cat sat", "a c")

    assert longest_copy("then a cat sat down", documents()) == "a cat sat"


def test_characters_are_compared_not_bytes() -> None:
    assert longest_copy("那武松打了虎", "话说武松打虎的故事") == "武松打"


@pytest.mark.parametrize("seed", range(30))
def test_equals_the_enumeration_of_all_substrings(seed: int) -> None:
    generator = random.Random(seed)
    alphabet = "ab" if seed % 2 else "abcde"
    sample = "".join(generator.choices(alphabet, k=25))
    documents = ["".join(generator.choices(alphabet, k=20)) for _ in range(4)]
    # Of equally long copies the record keeps the one from the earlier document, so only the length is one for all.
    found = longest_copy(sample, documents)
    assert len(found) == len(by_enumeration(sample, documents))
    assert found in sample
    assert any(found in document for document in documents)
    assert longest_copy(sample, documents[0]) == by_enumeration(sample, documents[:1])
