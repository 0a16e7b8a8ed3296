"""Samples that are drawn side by side come out whole and one behind the other, whichever ends first."""

import random
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from generation.decoding import Piece
from generation.output import write_samples

TEXTS = st.lists(st.lists(st.text("ab武\n", max_size=3), min_size=1, max_size=5), min_size=1, max_size=6)


def line(text: str) -> str:
    return text if text.endswith("\n") else text + "\n"


@given(TEXTS, st.randoms(use_true_random=False), st.integers(1, 3))
def test_every_sample_is_written_once_behind_its_prompt_in_any_order_of_pieces(
    texts: list[list[str]], chance: random.Random, num_samples: int
) -> None:
    texts = texts[: len(texts) // num_samples * num_samples]
    prompts = [f"prompt {number} " for number in range(len(texts) // num_samples)]
    waiting = {sample: list(pieces) for sample, pieces in enumerate(texts)}
    pieces = []
    while waiting:
        sample = chance.choice(sorted(waiting))
        text = waiting[sample].pop(0)
        pieces.append(Piece(sample, text, 0, 0.0, None if waiting[sample] else "end_of_text"))
        if not waiting[sample]:
            del waiting[sample]
    written: list[str] = []
    write_samples(iter(pieces), prompts, num_samples, written.append)
    expected = [line(prompts[sample // num_samples] + "".join(parts)) for sample, parts in enumerate(texts)]
    assert "".join(written) == "".join(expected)


def test_the_first_sample_streams_and_a_later_one_waits() -> None:
    seen = []
    written: list[str] = []

    def pieces() -> Iterator[Piece]:
        for sample, text, reason in [(0, "a", None), (1, "x", "end"), (0, "b", None), (0, "c", "end")]:
            yield Piece(sample, text, 0, 0.0, reason)
            seen.append("".join(written))

    write_samples(pieces(), [">"], 2, written.append)
    assert [*seen, "".join(written)] == [">a", ">a", ">ab", ">abc\n>x\n", ">abc\n>x\n"]
