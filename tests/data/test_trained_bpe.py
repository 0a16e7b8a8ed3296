"""The BPE that is trained by `tokenizers` and run by tiktoken is one and the same tokenizer."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import tokenizers

from command_line import UserError
from data.tokenizers.trained_bpe import byte_of_printable, bytes_of_printable, train_bpe

PROJECT = Path(__file__).parents[2]
ENGLISH = (PROJECT / "data/tales/en/bright.txt").read_text(encoding="utf-8")[:150_000]
CHINESE = (PROJECT / "data/tales/zh/bright.txt").read_text(encoding="utf-8")[:60_000]
CODE = (PROJECT / "command_line.py").read_text(encoding="utf-8")
EMOJI = "😀👩‍👩‍👧‍👦🇨🇳👍🏽 é e\u0301 \u200d \ufeff ¿ʃ Ⅷ ½ ²"


def _mixed_strings(count: int) -> Iterator[str]:
    rng = random.Random(5)
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(1, 4)):
            text = rng.choice([ENGLISH, CHINESE, CODE, EMOJI * 20])
            start = rng.randrange(len(text) - 60)
            parts.append(text[start : start + rng.randint(1, 60)])
        parts.append(rng.choice(["", " ", "\n", "  \n\n ", "'ll 'S don't 1234567 ", "\r\n\t", "<|endoftext|>"]))
        rng.shuffle(parts)
        yield "".join(parts)


@pytest.mark.parametrize("vocab_size", [300, 2048])
def test_ids_equal_those_of_the_package_that_trained_it(vocab_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tokenizers.Tokenizer] = []
    original = tokenizers.Tokenizer

    def recorded(model: tokenizers.models.Model) -> tokenizers.Tokenizer:
        trained.append(original(model))
        return trained[-1]

    monkeypatch.setattr(tokenizers, "Tokenizer", recorded)
    ours = train_bpe(vocab_size, [ENGLISH, CHINESE, CODE])
    (reference,) = trained
    assert ours.vocab_size == vocab_size == reference.get_vocab_size() + 1
    assert ours.end_of_text == vocab_size - 1
    for text in _mixed_strings(6000):
        assert ours.encode(text) == reference.encode(text, add_special_tokens=False).ids, repr(text)


def test_merges_are_learned() -> None:
    tokenizer = train_bpe(1000, [ENGLISH])
    assert len(tokenizer.encode(ENGLISH)) < 0.45 * len(ENGLISH)
    assert tokenizer.encode(" the") == [tokenizer.tokens.index(b" the")]


def test_a_small_corpus_gives_fewer_ids_and_says_so() -> None:
    tokenizer = train_bpe(5000, ["aa aa bb"])
    assert tokenizer.vocab_size == len(tokenizer.tokens) < 262
    assert tokenizer.name == "bpe:5000"
    assert tokenizer.decode(tokenizer.encode("aa ∞")) == "aa ∞"


def test_training_reads_no_more_than_it_has_to(capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer = train_bpe(300, (ENGLISH[:100] for _ in range(5)))
    assert tokenizer.vocab_size == 300
    assert capfd.readouterr() == ("", "")  # no progress bar of its own


@pytest.mark.parametrize("vocab_size", [0, 256, 10**6])
def test_an_impossible_vocabulary_is_refused(vocab_size: int) -> None:
    with pytest.raises(UserError, match=f"from 257 .* but N is {vocab_size}"):
        train_bpe(vocab_size, ["text"])


def test_printable_stand_ins_are_those_of_the_package() -> None:
    assert set(byte_of_printable()) == set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    assert sorted(byte_of_printable().values()) == list(range(256))


def test_printable_stand_ins_spell_bytes_as_the_package_does() -> None:
    split = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    text = "".join(map(chr, range(0x250))) + "狐狸🦊"
    ((written, _),) = split.pre_tokenize_str(text)
    assert bytes_of_printable(written) == text.encode()


@pytest.mark.parametrize("character", [" ", "\xad", "\n", "\x80", "\u0144", "狐", "\ud800"])
def test_what_stands_for_no_byte_is_refused(character: str) -> None:
    with pytest.raises(UnicodeEncodeError) as caught:
        bytes_of_printable(f"a{character}b")
    assert caught.value.start == 1
