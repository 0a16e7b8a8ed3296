"""The order of the stages, the chain as a whole against hand calculation, and bans that look at text."""

import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from command_line import UserError
from data.tokenizers.characters import CharacterTokenizer
from data.tokenizers.utf8_bytes import ByteTokenizer
from generation.config import SamplingConfig
from generation.logits_processors.bans import (
    CHARACTER_CLASSES,
    BanFirst,
    BanTexts,
)
from generation.logits_processors.base import STAGES, LogitsProcessor, ProcessorChain, Stage
from generation.logits_processors.from_config import processors_from_config
from generation.logits_processors.penalties import LengthDecay
from generation.logits_processors.truncation import TopK
from generation.sampling import draw, most_probable, uniform_block

INF = math.inf
LETTERS = CharacterTokenizer("ab 1٣.A武")
V = LETTERS.vocab_size


class Recorder:
    def __init__(self, stage: Any, seen: list[str]) -> None:
        self.stage, self.name, self.seen = stage, f"at_{stage}", seen

    def __call__(self, token_ids: Tensor, logits: Tensor, prompt_lengths: Tensor) -> Tensor:
        self.seen.append(self.stage)
        return logits


def test_processors_work_in_the_order_of_the_stages_whatever_order_they_are_given_in() -> None:
    seen: list[str] = []
    shuffled = list(STAGES)
    random.Random(3).shuffle(shuffled)
    chain = ProcessorChain([Recorder(stage, seen) for stage in shuffled])
    chain(torch.zeros(1, 1), torch.zeros(1, 2), torch.ones(1))
    assert seen == ["raw", "penalties", "bans", "temperature", "truncation", "guidance", "final_truncation"]
    assert str(chain) == " → ".join(f"at_{stage}" for stage in STAGES)


def test_an_unknown_stage_is_named_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"stage of Recorder must be one of raw, .* 'trunction' \(did you mean trunca"):
        ProcessorChain([Recorder("trunction", [])])


class Returns:
    stage: Stage = "bans"
    name = "returns"

    def __init__(self, result: Any) -> None:
        self.result = result

    def __call__(self, token_ids: Tensor, logits: Tensor, prompt_lengths: Tensor) -> Any:
        return self.result


@pytest.mark.parametrize(("result", "found"), [(None, "None"), (torch.zeros(3), r"shape \(3,\)")])
def test_a_processor_that_returns_no_logits_is_named(result: Any, found: str) -> None:
    nothing = torch.zeros(1, 0, dtype=torch.int64)
    expected = rf"the processor returns must return logits of shape \(1, 3\), but returned {found}"
    with pytest.raises(UserError, match=expected):
        ProcessorChain([Returns(result)])(nothing, torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64))


def test_logits_that_a_processor_made_nan_are_an_error_and_never_a_token() -> None:
    logits = torch.tensor([[0.0, 1.0], [0.0, torch.nan]])
    for choose in (most_probable, lambda rows: draw(rows, torch.tensor([0.5, 0.5], dtype=torch.float64))):
        with pytest.raises(UserError, match="a logits processor made logits that are not numbers"):
            choose(logits)


def test_every_option_builds_its_processor_in_its_stage_and_a_default_config_only_its_temperature() -> None:
    everything = SamplingConfig(
        min_new_tokens=1, force_end=True, length_decay=1.1, temperature=0.5, top_k=3, top_p=0.9, min_p=0.1,
        typical_p=0.9, epsilon_cutoff=0.01, eta_cutoff=0.01, repetition_penalty=1.2, presence_penalty=0.1,
        frequency_penalty=0.1, no_repeat_ngram=2, ban_text=("ab",), ban_first=("digits",), suppress_tokens=(1,),
        logit_bias=("2:1.5",),
    )  # fmt: skip
    chain = ProcessorChain(processors_from_config(everything, LETTERS, V))
    assert str(chain) == (
        "logit_bias=2:1.5 → repetition_penalty=1.2 → presence_penalty=0.1 → frequency_penalty=0.1 → length_decay=1.1 "
        "from 0 → suppress_tokens=1 → no_repeat_ngram=2 → ban_text='ab' → ban_first=digits → min_new_tokens=1 → "
        "forced_end=200 → temperature=0.5 → top_k=3 → top_p=0.9 → min_p=0.1 → typical_p=0.9 → epsilon_cutoff=0.01 → "
        "eta_cutoff=0.01"
    )
    assert str(ProcessorChain(processors_from_config(SamplingConfig(), LETTERS, V))) == "temperature=0.8"
    assert str(ProcessorChain(processors_from_config(SamplingConfig(temperature=0), LETTERS, V))) == "(none)"


def test_ids_that_stand_for_no_text_are_never_drawn() -> None:
    chain = ProcessorChain(processors_from_config(SamplingConfig(), LETTERS, V + 3))
    result = chain(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, V + 3), torch.ones(1, dtype=torch.int64))
    assert result.isneginf().tolist() == [[False] * V + [True] * 3]


@pytest.mark.parametrize("settings", [{"suppress_tokens": (V,)}, {"logit_bias": (f"{V}:1",)}])
def test_a_token_id_outside_the_vocabulary_is_named(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"must name a token id from 0 to {V - 1}, but names {V}"):
        processors_from_config(SamplingConfig(**settings), LETTERS, V)


def test_draws_follow_the_distribution_computed_by_hand_after_the_whole_chain() -> None:
    """100,000 draws: bias, repetition penalty, ban, temperature, top-k and top-p on five tokens."""
    config = SamplingConfig(
        logit_bias=("0:0.5",), repetition_penalty=2.0, suppress_tokens=(4,), temperature=0.5, top_k=3, top_p=0.95
    )
    tokenizer = CharacterTokenizer("abcd")
    chain = ProcessorChain(processors_from_config(config, tokenizer, 5))
    logits = torch.tensor([[1.0, 1.2, 0.8, -0.5, 3.0]])
    processed = chain(torch.tensor([[1, 3]]), logits, torch.tensor([2]))
    # By hand: bias 1.5, 1.2, 0.8, −0.5, 3 → tokens 1 and 3 occurred: 1.5, 0.6, 0.8, −1, 3 → 4 banned → halved
    # temperature doubles: 3, 1.2, 1.6, −2 → top 3: tokens 0, 2, 1 → e^3 : e^1.6 : e^1.2 = 20.09 : 4.95 : 3.32, so the
    # first two reach 0.883 and top-p 0.95 keeps all three.
    weights = [math.exp(3.0), math.exp(1.2), math.exp(1.6), 0.0, 0.0]
    expected = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    n_draws = 100_000
    uniforms = torch.cat([torch.from_numpy(uniform_block(1, 2, b)) for b in range(n_draws // 64 + 1)])[:n_draws]
    counts = draw(processed.expand(n_draws, -1), uniforms).bincount(minlength=5)
    assert counts[3:].sum() == 0
    statistic = float(((counts[:3] - n_draws * expected[:3]) ** 2 / (n_draws * expected[:3])).sum())
    assert statistic < 18.4  # chi-square with 2 degrees of freedom exceeds this once in 10,000 times


def test_top_k_keeps_exactly_k_of_equal_logits_and_the_lower_ids() -> None:
    result = TopK(2)(torch.zeros(1, 1), torch.tensor([[1.0, 2.0, 1.0, 1.0]]), torch.ones(1))
    assert result.tolist() == [[1.0, 2.0, -INF, -INF]]


# ---- bans by text ------------------------------------------------------------------------------------------------

BYTES = ByteTokenizer()


def banned_bytes(processor: LogitsProcessor, text: bytes, prompt_length: int) -> set[int]:
    logits = processor(torch.tensor([list(text)]), torch.zeros(1, 257), torch.tensor([prompt_length]))
    return set(logits[0].isneginf().nonzero().flatten().tolist())


@pytest.mark.parametrize("digit", ["7", "٣", "३", "²", "５", "𝟗"])
def test_ban_first_catches_a_digit_of_any_script_byte_by_byte(digit: str) -> None:
    raw = digit.encode()
    for begun in (b"", b" \n "):
        assert raw[-1] in banned_bytes(BanFirst(["digits"], BYTES), b"1" + begun + raw[:-1], prompt_length=1)


def is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def begins_character(raw: bytes) -> bool:
    """Whether the lowest or the highest bytes that can follow finish a character of several bytes."""
    n_missing = (2 if raw[0] < 0xE0 else 3 if raw[0] < 0xF0 else 4) - len(raw)
    return any(is_utf8(raw + n_missing * last) for last in (b"\x80", b"\xbf"))


@pytest.mark.parametrize("kind", CHARACTER_CLASSES)
def test_ban_first_never_leads_to_bytes_that_no_allowed_character_goes_on_with(kind: str) -> None:
    generator = random.Random(0)
    for _ in range(300):
        raw = b""
        while not raw or not is_utf8(raw):
            banned = banned_bytes(BanFirst([kind], BYTES), b"1" + raw, prompt_length=1)
            # Characters of one byte lead nowhere.
            allowed = [raw + bytes([byte]) for byte in range(0x80, 256) if byte not in banned]
            possible = [longer for longer in allowed if begins_character(longer)]
            assert possible, raw
            raw = generator.choice(possible)
        assert not CHARACTER_CLASSES[kind](raw.decode())


def test_ban_first_bans_beginnings_of_which_nearly_everything_is_banned() -> None:
    beginnings = {0xC3: "À to ÿ, × and ÷", 0xE4: "CJK and hexagrams", 0xE5: "CJK", 0xE2: "“ → ● and some letters"}
    banned = banned_bytes(BanFirst(["letters"], BYTES), b"1", prompt_length=1)
    assert banned & beginnings.keys() == {0xC3, 0xE4, 0xE5}
    assert not banned_bytes(BanFirst(["lowercase"], BYTES), b"1", prompt_length=1) & beginnings.keys()
    assert not banned_bytes(BanFirst(["digits"], BYTES), b"1", prompt_length=1) & beginnings.keys()


def test_ban_first_leaves_alone_what_no_character_goes_on_with() -> None:
    banned = banned_bytes(BanFirst(["letters", "punctuation"], BYTES), b"1\xe0", prompt_length=1)
    # Behind E0, only A0 to BF go on: 80 to 9F would spell a character that has a shorter form.
    assert banned & set(range(0xA0, 0xC0))
    assert not banned & set(range(0x80, 0xA0))


def test_ban_first_ends_with_the_first_character_and_ignores_the_prompt() -> None:
    digits = set(b"0123456789")
    assert digits <= banned_bytes(BanFirst(["digits"], BYTES), b"prompt", prompt_length=6)
    assert digits <= banned_bytes(BanFirst(["digits"], BYTES), b"prompt  ", prompt_length=6)
    assert banned_bytes(BanFirst(["digits"], BYTES), b"prompt x", prompt_length=6) == set()
    assert banned_bytes(BanFirst(["digits"], BYTES), b"prompt\xe6\xad\xa6", prompt_length=6) == set()


def test_a_banned_text_is_caught_inside_tokens_across_tokens_and_capitalised() -> None:
    class Pieces(ByteTokenizer):
        vocab_size = 6

        def token_bytes(self, token_id: int) -> bytes:
            return [b" bad", b"ba", b"d", b"Bad", b"dog", b"good"][token_id]

    processor = BanTexts(["bad"], Pieces())
    logits = processor(torch.tensor([[1], [5]]), torch.zeros(2, 6), torch.tensor([1, 1]))
    assert logits.isneginf().nonzero().tolist() == [[0, 0], [0, 2], [0, 3], [0, 4], [1, 0], [1, 3]]
    assert banned_bytes(BanTexts([" tin"], BYTES), b"a Ti", prompt_length=4) == {ord("n")}
    assert banned_bytes(BanTexts([" tin"], BYTES), b"a tI", prompt_length=4) == set()


def test_a_ban_of_half_a_character_is_refused() -> None:
    with pytest.raises(UserError, match="lone surrogate"):
        BanTexts(["a\udcff"], BYTES)


def test_length_decay_stays_a_number_behind_a_large_bias() -> None:
    logits = torch.tensor([[0.0, 1e30]])
    token_ids = torch.zeros(1, 300, dtype=torch.int64)
    raised = LengthDecay(0, 100.0, end_of_text=1)(token_ids, logits, torch.tensor([1]))
    assert raised.tolist() == [[0.0, torch.finfo(torch.float32).max]]
