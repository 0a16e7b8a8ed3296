"""Every tokenizer: lossless, blind to special tokens in a text, rebuilt from plain data, safe against strange input."""

import base64
import itertools
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import regex  # type: ignore[import-untyped]
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from command_line import UserError
from data.tokenizers.base import END_OF_TEXT, Tokenizer
from data.tokenizers.choices import TIKTOKEN_NAMES, check_tokenizer_choice, resolve_tokenizer_choice
from data.tokenizers.chunks import CHUNK_CHARACTERS, split_text
from data.tokenizers.registry import build_tokenizer, tokenizer_from_state, tokenizer_hash
from data.tokenizers.tiktoken_bpe import PATTERNS, load_tiktoken

PROJECT = Path(__file__).parents[2]
CACHE = PROJECT.parent / "shared" / "tiktoken_cache"
needs_cache = pytest.mark.skipif(not CACHE.is_dir(), reason="tiktoken's files (../shared/tiktoken_cache) are not here")

TALES = (PROJECT / "data/tales/en/bright.txt").read_text(encoding="utf-8")[:60_000]
TALES_ZH = (PROJECT / "data/tales/zh/gloomy.txt").read_text(encoding="utf-8")[:30_000]
OFFLINE = ("char", "byte", "bpe:257", "bpe:700")


@cache
def tokenizer(choice: str) -> Tokenizer:
    if choice in TIKTOKEN_NAMES:
        previous = os.environ.get("TIKTOKEN_CACHE_DIR")
        os.environ["TIKTOKEN_CACHE_DIR"] = str(CACHE)
        try:
            return load_tiktoken(choice)
        finally:
            os.environ.pop("TIKTOKEN_CACHE_DIR")
            if previous is not None:
                os.environ["TIKTOKEN_CACHE_DIR"] = previous
    return build_tokenizer(choice, lambda: iter([TALES, TALES_ZH]), len(TALES))


choices = [*OFFLINE, *(pytest.param(name, marks=needs_cache) for name in TIKTOKEN_NAMES)]
known_characters = st.text(alphabet=st.sampled_from(sorted(set(TALES + TALES_ZH))))


@pytest.mark.parametrize("choice", choices)
def test_decoding_gives_back_any_text(choice: str) -> None:
    encodes = tokenizer(choice)

    @settings(max_examples=150, deadline=None, database=None)
    @given(known_characters if choice == "char" else st.text())
    def check(text: str) -> None:
        token_ids = encodes.encode(text)
        assert encodes.decode(token_ids) == text
        assert b"".join(map(encodes.token_bytes, token_ids)) == text.encode("utf-8")
        assert all(0 <= token_id < encodes.vocab_size for token_id in token_ids)
        assert encodes.end_of_text not in token_ids
        assert getattr(encodes, "encode_array")(text).tolist() == token_ids  # noqa: B009

    check()


@pytest.mark.parametrize("choice", [choice for choice in choices if choice != "char"])
def test_every_code_point_survives(choice: str) -> None:
    text = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000, 7)]))
    assert tokenizer(choice).decode(tokenizer(choice).encode(text)) == text


@pytest.mark.parametrize("choice", choices)
def test_end_of_text_within_a_text_is_ordinary(choice: str) -> None:
    encodes = tokenizer(choice)
    text = f"a {END_OF_TEXT} b"
    if choice == "char":
        text = text.replace("|", "").replace("<", "").replace(">", "")
    token_ids = encodes.encode(text)
    assert encodes.end_of_text not in token_ids
    assert len(token_ids) > 3
    assert encodes.decode(token_ids) == text
    assert encodes.decode([encodes.end_of_text]) == ""


@pytest.mark.parametrize("choice", choices)
def test_state_is_plain_data_and_rebuilds_the_tokenizer(choice: str) -> None:
    original = tokenizer(choice)
    state = json.loads(json.dumps(original.state()))
    rebuilt = tokenizer_from_state(state)
    assert tokenizer_hash(rebuilt) == tokenizer_hash(original)
    assert rebuilt.encode(TALES + TALES_ZH) == original.encode(TALES + TALES_ZH)
    assert (rebuilt.name, rebuilt.vocab_size, rebuilt.end_of_text) == (
        original.name,
        original.vocab_size,
        original.end_of_text,
    )


def test_hash_differs_between_tokenizers() -> None:
    assert len({tokenizer_hash(tokenizer(choice)) for choice in OFFLINE}) == len(OFFLINE)


@needs_cache
@pytest.mark.parametrize("name", TIKTOKEN_NAMES)
def test_ids_equal_those_of_tiktoken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(CACHE))
    reference = tiktoken.get_encoding(name)
    ours = tokenizer(name)
    assert PATTERNS[name] == reference._pat_str
    assert (ours.vocab_size, ours.end_of_text) == (reference.n_vocab, reference.eot_token)

    @settings(max_examples=150, deadline=None, database=None)
    @given(st.text() | st.text(alphabet="a'sLl,. \n\t!好。1/"))
    def check(text: str) -> None:
        assert ours.encode(text) == reference.encode_ordinary(text)

    check()
    assert ours.encode(TALES + TALES_ZH) == reference.encode_ordinary(TALES + TALES_ZH)


def test_tiktoken_without_a_network_names_the_offline_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> tiktoken.Encoding:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tiktoken, "get_encoding", refuse)
    with pytest.raises(UserError, match=r"--tokenizer gpt2 .*char, byte, bpe:N.*TIKTOKEN_CACHE_DIR"):
        build_tokenizer("gpt2", lambda: iter([]), 0)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_cut_after_a_word_changes_no_split(pattern: str) -> None:
    # `regex`, which comes with tiktoken, reads the same expressions; without \p classes of its own Python's re cannot.
    expression = regex.compile(PATTERNS[pattern])

    @settings(max_examples=400, deadline=None, database=None)
    @given(st.text(alphabet="ab'sLl,. \n\r\t!好文。1/é\u0301", min_size=2, max_size=40))
    def check(text: str) -> None:
        for position in range(1, len(text)):
            if text[position - 1] in "absLl好文" and text[position] in ",. \n\r\t!。":
                parts = expression.findall(text[:position]) + expression.findall(text[position:])
                assert expression.findall(text) == parts

    check()


@settings(max_examples=200, deadline=None, database=None)
@given(st.text(alphabet="abL',. \n!好文。1/", max_size=60), st.integers(1, 12))
def test_a_text_is_cut_after_a_word_or_at_the_limit(text: str, limit: int) -> None:
    chunks = list(split_text(text, limit))
    assert "".join(chunks) == text
    for chunk, following in itertools.pairwise(chunks):
        after_word = [
            i for i in range(1, limit + 1) if (chunk + following)[i - 1 : i] in {*"abL好文"}
            and (chunk + following)[i : i + 1] in {*",. \n!。"}
        ]  # fmt: skip
        assert len(chunk) == (max(after_word) if after_word else limit)


@pytest.mark.parametrize(
    "text",
    [
        " " * 1_000_000,
        " " * 1_000_000 + "x",
        "a" * 10_000_000,
        "\n" * 300_000,
        "字" * 300_000,
        "0123456789" * 50_000,
        "\U0001f600" * 100_000,
    ],
    ids=["spaces", "spaces-x", "10MB-line", "newlines", "chinese", "digits", "emoji"],
)
def test_huge_texts_without_a_break_survive(text: str) -> None:
    encodes = tokenizer("bpe:700")
    assert encodes.decode(encodes.encode(text)) == text


def test_a_long_ordinary_text_has_the_ids_of_one_call() -> None:
    text = (TALES + TALES_ZH) * 3
    assert len(text) > 3 * CHUNK_CHARACTERS
    encodes = tokenizer("bpe:700")
    encoding: tiktoken.Encoding = getattr(encodes, "_encoding")  # noqa: B009
    assert encodes.encode(text) == encoding.encode_ordinary(text)


@pytest.mark.parametrize("choice", ["char", "byte", "bpe:700"])
def test_a_lone_surrogate_is_named_with_its_position(choice: str) -> None:
    with pytest.raises(UserError, match=r"U\+D83D.* position 5"):
        tokenizer(choice).encode("hello\ud83d")


def test_an_unknown_character_is_named_with_its_position() -> None:
    with pytest.raises(UserError, match=r"'ß' \(U\+00DF\) at position 2 .*--tokenizer char"):
        tokenizer("char").encode("Spß")
    with pytest.raises(UserError, match=r"U\+10FFFF"):
        tokenizer("char").encode("\U0010ffff")


@pytest.mark.parametrize("choice", choices)
def test_an_id_outside_the_vocabulary_is_refused(choice: str) -> None:
    for token_id in (-1, tokenizer(choice).vocab_size):
        with pytest.raises(ValueError, match=f"token id {token_id} is outside the vocabulary"):
            tokenizer(choice).decode([token_id])


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("gpt", r"must be one of auto, char, .* but is 'gpt' \(did you mean gpt2\?\)"),
        ("", "must be one of"),
        ("bpe", "such as bpe:4096"),
        ("bpe:", "must be one of"),
        ("bpe:-5", "must be one of"),
        ("bpe:٣٠٠", "must be one of"),
        ("bpe:256", "from 257 .* but N is 256"),
        ("bpe:999999999", "but N is 999999999"),
        ("Char", "did you mean char"),
    ],
)
def test_a_wrong_choice_is_answered_before_anything_loads(choice: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_tokenizer_choice(choice)


@pytest.mark.parametrize(
    ("corpus_bytes", "choice"),
    [
        (0, "char"),
        (99_999, "char"),
        (100_000, "bpe:1024"),
        (399_999, "bpe:1024"),
        (400_000, "bpe:2048"),
        (900_000, "bpe:2048"),
        (2_500_000, "bpe:4096"),
        (10_000_000, "bpe:8192"),
        (100_000_000, "bpe:16384"),
        (1 << 30, "bpe:32768"),
    ],
)
def test_auto_goes_by_the_size_of_the_corpus(corpus_bytes: int, choice: str) -> None:
    assert resolve_tokenizer_choice("auto", corpus_bytes) == choice


def _bpe_state(**changes: object) -> dict[str, Any]:
    return {**tokenizer("bpe:257").state(), **changes}


def _packed(*tokens: bytes) -> str:
    return base64.b64encode(b"".join(len(token).to_bytes(2, "little") + token for token in tokens)).decode()


ALL_BYTES = [bytes([value]) for value in range(256)]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([], "not a table"),
        ({}, "kind 'None' is none of char, byte, bpe, tiktoken"),
        ({"kind": ["bpe"], "version": 1}, "kind"),
        ({"kind": "byte", "version": 2}, "version '?2'?"),
        ({"kind": "byte", "version": True}, "version"),
        ({"kind": "byte", "version": 1, "more": 1}, "entries"),
        ({"kind": "char", "version": 1}, "characters are not a text"),
        ({"kind": "char", "version": 1, "characters": ""}, "characters are not a text"),
        ({"kind": "char", "version": 1, "characters": "ba"}, "not sorted"),
        ({"kind": "char", "version": 1, "characters": "aa"}, "not sorted"),
        ({"kind": "char", "version": 1, "characters": "a\ud800"}, "surrogate"),
        (_bpe_state(name=7), "name"),
        (_bpe_state(pattern="(a+)+$"), "pattern"),
        (_bpe_state(pattern=None), "pattern"),
        (_bpe_state(end_of_text=0), "end_of_text"),
        (_bpe_state(end_of_text=257), "end_of_text"),
        (_bpe_state(end_of_text=-1), "end_of_text"),
        (_bpe_state(end_of_text="256"), "end_of_text"),
        (_bpe_state(tokens=5), "tokens"),
        (_bpe_state(tokens="!!!"), "base64"),
        (_bpe_state(tokens="é"), "base64"),
        (_bpe_state(tokens=_packed(*ALL_BYTES, b"ab")[:-4]), "end in the middle"),
        (_bpe_state(tokens=_packed(*ALL_BYTES, b"a", b"")), "twice"),
        (_bpe_state(tokens=_packed(*ALL_BYTES[1:], b"")), "256 single bytes"),
    ],
)
def test_a_wrong_state_is_refused_by_name(state: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tokenizer_from_state(state)
