"""Streamed pieces against the text decoded at once."""

from hypothesis import given
from hypothesis import strategies as st

from data.tokenizers.utf8_bytes import ByteTokenizer
from generation.text_stream import TextStream

BYTES = ByteTokenizer()


def stream(token_ids: list[int]) -> list[str]:
    decoder = TextStream(BYTES)
    return [*(decoder.push(token_id) for token_id in token_ids), decoder.finish()]


@given(st.text())
def test_pieces_of_any_text_join_to_it(text: str) -> None:
    assert "".join(stream(BYTES.encode(text))) == text


@given(st.lists(st.integers(0, 255)))
def test_pieces_of_any_bytes_join_to_the_decoded_whole(token_ids: list[int]) -> None:
    assert "".join(stream(token_ids)) == BYTES.decode(token_ids)


@given(st.text(alphabet="aé武😀"))
def test_no_piece_of_a_valid_text_holds_a_broken_character(text: str) -> None:
    assert all("\ufffd" not in piece for piece in stream(BYTES.encode(text)))


def test_a_literal_replacement_character_passes_at_once() -> None:
    assert stream(BYTES.encode("a\ufffdb")) == ["a", "", "", "\ufffd", "b", ""]


def test_an_unfinished_character_becomes_one_replacement_at_the_end() -> None:
    assert stream(list("武".encode()[:2])) == ["", "", "\ufffd"]
