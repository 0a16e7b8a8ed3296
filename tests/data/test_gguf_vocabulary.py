"""Vocabularies in GGUF files: llama.cpp gives our ids, or the export says why it cannot."""

import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from command_line import UserError
from data.tokenizers.base import END_OF_TEXT, Tokenizer
from data.tokenizers.choices import TIKTOKEN_NAMES
from data.tokenizers.gguf_vocabulary import gguf_vocabulary
from data.tokenizers.huggingface_files import import_tokenizer
from data.tokenizers.registry import build_tokenizer
from data.tokenizers.tiktoken_bpe import load_tiktoken

PROJECT = Path(__file__).parents[2]
CACHE = PROJECT.parent / "shared" / "tiktoken_cache"
needs_cache = pytest.mark.skipif(not CACHE.is_dir(), reason="tiktoken's files (../shared/tiktoken_cache) are not here")
ENGLISH, CHINESE = (
    (PROJECT / f"data/tales/{name}.txt").read_text(encoding="utf-8")[:20_000] for name in ("en/gloomy", "zh/bright")
)
OTHER = ("🙂👍🏽 🇨🇭", "Größe", "for (int i = 0; i < 1000; ++i)", "don't  THEY'LL", "x = 3.14159\n    y", "Привет")


@cache
def mixed_lines() -> tuple[str, ...]:
    draw = random.Random(7)
    tales = [line for line in (ENGLISH + CHINESE).splitlines() if line and line != END_OF_TEXT]
    return tuple(
        " ".join(draw.choice(draw.choice([tales, OTHER])) for _ in range(draw.randint(1, 3))) for _ in range(1000)
    )


def written(vocabulary: dict[str, Any], path: Path) -> Any:
    """llama.cpp with nothing but a vocabulary."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in vocabulary.items():
        kind = {bool: "bool", int: "uint32", str: "string"}.get(type(value), "array")
        getattr(writer, f"add_{kind}")(key, value)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return llama_cpp.Llama(str(path), vocab_only=True, verbose=False)


def assert_same_ids(tokenizer: Tokenizer, path: Path, lines: tuple[str, ...]) -> None:
    theirs = written(gguf_vocabulary(tokenizer), path)
    for line in lines:
        ids = tokenizer.encode(line)
        assert theirs.tokenize(line.encode(), add_bos=False) == ids, line
    begin = [] if tokenizer.begin_of_text is None else [tokenizer.begin_of_text]
    assert theirs.tokenize(line.encode(), add_bos=True) == [*begin, *ids]
    assert theirs.token_eos() == tokenizer.end_of_text
    assert theirs.n_vocab() == tokenizer.vocab_size
    theirs.close()


large = [pytest.param(name, marks=[needs_cache, pytest.mark.slow][: 1 + (name != "gpt2")]) for name in TIKTOKEN_NAMES]


@pytest.mark.parametrize("choice", ["byte", "bpe:257", "bpe:900", *large])
def test_llama_cpp_gives_our_ids(choice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(CACHE))
    texts = [ENGLISH, CHINESE]
    tokenizer = load_tiktoken(choice) if choice in TIKTOKEN_NAMES else build_tokenizer(choice, lambda: iter(texts), 1)
    assert_same_ids(tokenizer, tmp_path / "vocabulary.gguf", mixed_lines())


def test_ascii_characters_become_bytes(tmp_path: Path) -> None:
    lines = tuple(line for line in mixed_lines() if line.isascii())
    tokenizer = build_tokenizer("char", lambda: iter(lines), 1)
    assert_same_ids(tokenizer, tmp_path / "vocabulary.gguf", lines)


def test_longer_characters_are_refused_by_name() -> None:
    tokenizer = build_tokenizer("char", lambda: iter(["abc 从前"]), 1)
    with pytest.raises(UserError, match="no single token for '从'; train with --tokenizer byte or bpe:N"):
        gguf_vocabulary(tokenizer)


def test_sentencepiece_vocabulary_gives_the_same_ids(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    (tmp_path / "text").write_text(ENGLISH + CHINESE, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=2000,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    tokenizer = import_tokenizer(tmp_path, 2048, "llama")
    assert_same_ids(tokenizer, tmp_path / "vocabulary.gguf", mixed_lines())
