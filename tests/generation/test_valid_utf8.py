"""Which tokens may follow, against Python's own UTF-8 decoder."""

import contextlib
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.tokenizers.base import Tokenizer
from data.tokenizers.characters import CharacterTokenizer
from data.tokenizers.registry import build_tokenizer
from data.tokenizers.utf8_bytes import ByteTokenizer
from generation.config import SamplingConfig
from generation.logits_processors.bans import AllowedTokens
from generation.logits_processors.base import ProcessorChain
from generation.logits_processors.from_config import processors_from_config
from generation.logits_processors.valid_utf8 import ValidUTF8, token_table

BYTES = ByteTokenizer()
MIXED = "The old fox, 武松打虎。 Größe, Привет 😀👩‍👩‍👧 \ufffd 1٣\n"
BPE = build_tokenizer("bpe:400", lambda: iter([MIXED * 20]), 2000)
ENDINGS = [b"", *(bytes([first] + [0x80] * more) for more in range(3) for first in (0x80, 0xBF))]
PLENTY = 10**9


def missing_bytes(raw: bytes) -> int | None:
    """The fewest bytes behind which Python decodes `raw`; None when there are none."""
    for ending in ENDINGS:
        with contextlib.suppress(UnicodeDecodeError):
            (raw + ending).decode()
            return len(ending)
    return None


def test_the_bytes_of_every_character_and_of_no_other_sequence_are_accepted() -> None:
    """All sequences of one and two bytes, and every bound of the third and fourth."""
    states, needed = token_table(BYTES)
    bounds = (0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xFF)
    leads = (0xC2, 0xE0, 0xE1, 0xEC, 0xED, 0xEE, 0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5)
    for raw in itertools.chain(
        itertools.product(range(256), repeat=2), itertools.product(leads, bounds, bounds, bounds)
    ):
        state, accepted = 0, True
        for position, value in enumerate(raw, start=1):
            still_missing = missing_bytes(bytes(raw[:position])) if accepted else None
            accepted = accepted and still_missing is not None
            if accepted:
                assert needed[state, value] == still_missing, raw
            else:
                # What broke a character: judged once, the sequence is over.
                assert needed[state, value] > 3, raw
                break
            state = states[state, value]


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["byte", "bpe"])
def test_every_text_can_still_be_drawn_to_its_last_token(tokenizer: ByteTokenizer) -> None:
    @settings(max_examples=60, deadline=None, database=None)
    @given(st.text(st.sampled_from(MIXED), max_size=30) | st.text(max_size=10))
    def check(text: str) -> None:
        tokens = tokenizer.encode(text)
        processor = ValidUTF8(tokenizer, tokenizer.vocab_size, max_new_tokens=len(tokens))
        prompt = [ord("x")]
        for position, token in enumerate(tokens):
            so_far = torch.tensor([prompt + tokens[:position]])
            logits = processor(so_far, torch.zeros(1, tokenizer.vocab_size), torch.tensor([1]))
            assert logits[0, token] == 0

    check()


def banned_behind(text: bytes, max_new_tokens: int = PLENTY) -> set[int]:
    processor = ValidUTF8(BYTES, 257, max_new_tokens)
    logits = processor(torch.tensor([[0, *text]]), torch.zeros(1, 257), torch.tensor([1]))
    return set(logits[0].isneginf().nonzero().flatten().tolist())


def test_a_text_does_not_end_inside_a_character_and_begins_none_that_would_be_cut() -> None:
    assert BYTES.end_of_text in banned_behind("武".encode()[:2])
    assert BYTES.end_of_text not in banned_behind("武".encode())
    assert {0xC3, 0xE6, 0xF0} <= banned_behind(b"", max_new_tokens=1)
    assert {0xC3, 0xE6, 0xF0} & banned_behind(b"", max_new_tokens=3) == {0xF0}
    assert banned_behind("武".encode()[:2], max_new_tokens=3) == set(range(257)) - set(range(0x80, 0xC0))


def test_it_gives_way_where_another_rule_leaves_nothing_else() -> None:
    chain = ProcessorChain([AllowedTokens(lambda tokens: [ord("a")]), ValidUTF8(BYTES, 257, PLENTY)])
    logits = chain(torch.tensor([[0, 0xE6], [0, 0x41]]), torch.zeros(2, 257), torch.tensor([1, 1]))
    assert logits.isfinite().nonzero().tolist() == [[0, ord("a")], [1, ord("a")]]


def test_it_is_there_by_default_and_only_where_tokens_hold_parts_of_characters() -> None:
    def order(tokenizer: Tokenizer, *, valid_utf8: bool = SamplingConfig().valid_utf8) -> str:
        sampling = SamplingConfig(valid_utf8=valid_utf8)
        return str(ProcessorChain(processors_from_config(sampling, tokenizer, tokenizer.vocab_size)))

    assert order(BYTES) == "valid_utf8 → temperature=0.8"
    assert order(BYTES, valid_utf8=False) == "temperature=0.8"
    assert order(CharacterTokenizer("a武")) == "temperature=0.8"
