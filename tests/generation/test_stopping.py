"""Where texts end: stop strings against a search of the whole text, limits in combination."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation.stopping import LineLimit, SentenceLimit, StopStrings, TextLimits, TimeLimit

SHORT = st.text(alphabet="ab武", min_size=1, max_size=4)


def first_completed(text: str, stops: list[str]) -> str | None:
    """What stands before the first completed stop string: grow the text one character at a time and look."""
    for end in range(1, len(text) + 1):
        matching = [stop for stop in stops if text[:end].endswith(stop)]
        if matching:
            return text[: end - max(map(len, matching))]
    return None


def run(limit: StopStrings, pieces: list[str]) -> str:
    passed = ""
    for piece in pieces:
        passed += limit.push(piece)
        if limit.reached:
            return passed
    return passed + limit.finish()


@given(st.lists(st.text(alphabet="ab武", max_size=5), max_size=8), st.lists(SHORT, min_size=1, max_size=3))
def test_text_ends_before_the_first_completed_stop_string_however_it_is_cut(
    pieces: list[str], stops: list[str]
) -> None:
    text = "".join(pieces)
    limit = StopStrings(stops)
    expected = first_completed(text, stops)
    assert run(limit, pieces) == (text if expected is None else expected)
    assert limit.reached == (expected is not None)


@given(st.lists(st.text(alphabet="ab", max_size=3), max_size=8), st.lists(SHORT, min_size=1, max_size=3))
def test_what_is_held_back_is_shorter_than_the_longest_stop_string(pieces: list[str], stops: list[str]) -> None:
    limit, passed, given_so_far = StopStrings(stops), "", ""
    for piece in pieces:
        passed += limit.push(piece)
        given_so_far += piece
        if limit.reached:
            return
        assert len(given_so_far) - len(passed) < max(map(len, stops))
        assert given_so_far.startswith(passed)


def test_keep_leaves_the_stop_string_in_the_text() -> None:
    assert run(StopStrings(["<end>"], keep=True), ["one <e", "nd> two"]) == "one <end>"


def test_a_repeating_beginning_does_not_hide_the_stop_string() -> None:
    assert run(StopStrings(["aab"]), list("aaab")) == "a"


def test_of_two_stop_strings_the_one_completed_first_counts() -> None:
    assert run(StopStrings(["abc", "b"]), ["abc"]) == "a"


def test_the_earliest_of_several_limits_ends_the_text_and_names_the_reason() -> None:
    class Later(StopStrings):
        reason = "later"

    limits = TextLimits([Later(["two"]), StopStrings(["one"])])
    assert limits.push("zero one two") == "zero "
    assert limits.reason == "stop_string"


def test_what_one_limit_held_back_is_given_when_another_ends_the_text() -> None:
    limits = TextLimits([StopStrings(["!"]), StopStrings(["abc"])])
    assert limits.push("xab") == "x"
    assert limits.push("!") == "ab"
    assert limits.reason == "stop_string"


def test_a_time_limit_is_reached_when_the_time_is_up() -> None:
    assert not TimeLimit(1000).reached
    assert TimeLimit(1e-9).reached


def pass_through(limit: SentenceLimit | LineLimit, pieces: list[str]) -> str:
    passed = ""
    for piece in pieces:
        passed += limit.push(piece)
        if limit.reached:
            return passed
    return passed + limit.finish()


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize(
    ("text", "n", "expected"),
    [
        ("One. Two! Three?", 2, "One. Two!"),
        ("It is 3.5 km... far. Yes", 1, "It is 3.5 km..."),
        ('"Stop!" he said. And', 1, '"Stop!"'),
        ("他走了。「真的？」她问。好", 1, "他走了。"),
        ("他走了。「真的？」她问。好", 2, "他走了。「真的？」"),
        ("A title\n\nThe text. More", 1, "A title\n"),
        ("no end at all", 1, "no end at all"),
        ("One.", 1, "One."),
    ],
)
def test_a_text_ends_behind_its_last_allowed_sentence(text: str, n: int, expected: str, size: int) -> None:
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    assert pass_through(SentenceLimit(n), pieces) == expected


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize(("n", "expected"), [(1, "one"), (2, "one\n"), (3, "one\n\ntwo"), (4, "one\n\ntwo\n")])
def test_a_text_ends_at_the_break_of_its_last_allowed_line(n: int, expected: str, size: int) -> None:
    text = "one\n\ntwo\n"
    assert pass_through(LineLimit(n), [text[i : i + size] for i in range(0, len(text), size)]) == expected
