"""Streamed pieces against the text decoded at once."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.tokenizers.base import Tokenizer
from data.tokenizers.characters import CharacterTokenizer
from data.tokenizers.huggingface import HuggingFaceTokenizer
from data.tokenizers.registry import build_tokenizer
from data.tokenizers.tiktoken_bpe import load_tiktoken
from data.tokenizers.utf8_bytes import ByteTokenizer
from generation.config import SamplingConfig
from generation.text_generator import TextGenerator
from generation.text_stream import TextStream
from model.gpt import GPT

CACHE = Path(__file__).parents[3] / "shared" / "tiktoken_cache"
needs_cache = pytest.mark.skipif(not CACHE.is_dir(), reason="tiktoken's files (../shared/tiktoken_cache) are not here")
MIXED = "The old fox, 武松打虎。 Größe, Привет, ça — 😀👩‍👩‍👧 \ufffd 1٣\n\n"
BYTES = ByteTokenizer()


def small_llama() -> HuggingFaceTokenizer:
    """Spaces as ▁, one of them before every text, and single bytes as <0xNN>: Llama-2's way with few tokens."""
    special = ["<unk>", "<s>", "</s>"]
    pieces = ["▁", "a", "b", "▁a", "▁▁", "武"]
    vocabulary = [*special, *(f"<0x{value:02X}>" for value in range(256)), *pieces]
    spec: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {**dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)}
            | {"id": number, "content": token, "special": True}
            for number, token in enumerate(special)
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "byte_fallback": True,
            "fuse_unk": True,
            "unk_token": "<unk>",
            "vocab": {token: number for number, token in enumerate(vocabulary)},
            "merges": [["▁", "a"], ["▁", "▁"]],
        },
    }
    return HuggingFaceTokenizer("small", json.dumps(spec), vocab_size=len(vocabulary), end_of_text=2, begin_of_text=1)


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "char": lambda: CharacterTokenizer("".join(sorted(set(MIXED)))),
    "byte": ByteTokenizer,
    "bpe": lambda: build_tokenizer("bpe:400", lambda: iter([MIXED * 20]), 2000),
    "huggingface": small_llama,
    "gpt2": lambda: load_tiktoken("gpt2"),
}
named = [pytest.param(name, marks=needs_cache) if name == "gpt2" else name for name in TOKENIZERS]


@cache
def tokenizer(name: str) -> Tokenizer:
    return TOKENIZERS[name]()


@pytest.fixture(autouse=True)
def tiktoken_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(CACHE))


def stream(token_ids: list[int], name: str = "byte") -> list[str]:
    decoder = TextStream(tokenizer(name), begins_text=True)
    return [*(decoder.push(token_id) for token_id in token_ids), decoder.finish()]


@pytest.mark.parametrize("name", named)
def test_pieces_of_any_text_join_to_it_and_none_is_broken(name: str) -> None:
    encodes = tokenizer(name)
    characters = st.sampled_from(MIXED)
    texts = st.text(characters) if name == "char" else st.text() | st.text(characters)

    @settings(max_examples=100, deadline=None, database=None)
    @given(texts)
    def check(text: str) -> None:
        pieces = stream(encodes.encode(text), name)
        assert "".join(pieces) == text
        assert "".join(pieces).count("\ufffd") == text.count("\ufffd")

    check()


@pytest.mark.parametrize("name", named)
def test_pieces_of_any_tokens_join_to_the_decoded_whole(name: str) -> None:
    decodes = tokenizer(name)

    @settings(max_examples=100, deadline=None, database=None)
    @given(st.lists(st.integers(0, decodes.vocab_size - 1), max_size=30))
    def check(token_ids: list[int]) -> None:
        assert "".join(stream(token_ids, name)) == decodes.decode(token_ids)

    check()


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


@pytest.mark.parametrize("prompt", ["", "a", "a "])
def test_a_space_that_the_vocabulary_puts_before_a_text_is_not_shown(
    build_model: Callable[..., GPT], prompt: str
) -> None:
    decodes = tokenizer("huggingface")
    generator = TextGenerator(build_model(vocab_size=decodes.vocab_size), decodes)
    space = decodes.encode("a")[0]
    assert decodes.token_bytes(space) == b" a"
    biased = SamplingConfig(logit_bias=(f"{space}:9",), num_samples=10, max_new_tokens=20)
    for result in generator.generate(prompt, biased):
        assert prompt + result.text == decodes.decode([*decodes.encode(prompt), *result.token_ids])
