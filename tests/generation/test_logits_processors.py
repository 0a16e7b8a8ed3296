"""Every logits processor against one table of properties, a naive reference and Hugging Face's own classes."""

import contextlib
import itertools
import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from data.tokenizers.characters import CharacterTokenizer
from generation.logits_processors import bans, penalties, truncation, valid_utf8
from generation.logits_processors.bans import (
    AllowedTokens,
    BanFirst,
    BanTexts,
    ForcedEnd,
    MinNewTokens,
    NoRepeatNgram,
    SuppressTokens,
)
from generation.logits_processors.base import LogitsProcessor
from generation.logits_processors.penalties import (
    FrequencyPenalty,
    LengthDecay,
    LogitBias,
    PresencePenalty,
    RepetitionPenalty,
)
from generation.logits_processors.row_history import TokenCounts
from generation.logits_processors.truncation import Epsilon, Eta, MinP, Temperature, TopK, TopP, Typical
from generation.logits_processors.valid_utf8 import ValidUTF8

INF = math.inf
LETTERS = CharacterTokenizer("ab 1٣.A武")
V = LETTERS.vocab_size
END = LETTERS.end_of_text
N_CASES = 200


@dataclass
class Situation:
    """One random step of a batch: tokens (B, T), logits (B, V), prompt lengths (B,)."""

    token_ids: Tensor
    logits: Tensor
    prompt_lengths: Tensor

    @classmethod
    def draw(cls, chance: random.Random, batch_size: int) -> "Situation":
        prompt_lengths = [chance.randint(1, 5) for _ in range(batch_size)]
        n_new = chance.randint(0, 6)
        longest = max(prompt_lengths) + n_new
        rows = [[chance.randrange(END) for _ in range(length + n_new)] for length in prompt_lengths]
        padded = [row + [-1] * (longest - len(row)) for row in rows]
        logits = [[round(chance.gauss(0, 3), 4) for _ in range(V)] for _ in range(batch_size)]
        for row in logits:
            for token in chance.sample(range(V), chance.randint(0, V - 2)):
                row[token] = -INF
        return cls(torch.tensor(padded), torch.tensor(logits), torch.tensor(prompt_lengths))

    def row(self, index: int) -> "Situation":
        length = self.length(index)
        one = slice(index, index + 1)
        return Situation(self.token_ids[one, :length], self.logits[one], self.prompt_lengths[one])

    def length(self, index: int) -> int:
        return int((self.token_ids[index] >= 0).sum())

    def tokens(self, index: int) -> list[int]:
        tokens: list[int] = self.token_ids[index, : self.length(index)].tolist()
        return tokens


Naive = Callable[[list[int], list[float], int], list[float]]
"""Tokens, logits and prompt length of one row → new logits, in plain Python."""


@dataclass
class Rule:
    """A processor, how it is built from random parameters, its naive reference and a parameter that does nothing."""

    build: Callable[[random.Random], tuple[Callable[[], LogitsProcessor], Naive]]
    identity: Callable[[], LogitsProcessor]


def softmax(logits: Sequence[float]) -> list[float]:
    highest = max(logits)
    weights = [math.exp(logit - highest) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def entropy(logits: Sequence[float]) -> float:
    return -sum(p * math.log(p) for p in softmax(logits) if p > 0)


def keep(logits: Sequence[float], kept: Callable[[int], bool]) -> list[float]:
    return [logit if kept(token) else -INF for token, logit in enumerate(logits)]


def first_to_reach(order: Sequence[int], probabilities: Sequence[float], mass: float) -> set[int]:
    kept: set[int] = set()
    total = 0.0
    for token in order:
        # As in the processor: a token stays while those before it fall short of the mass.
        if total >= mass:
            break
        kept.add(token)
        total += probabilities[token]
    return kept


def temperature_rule(chance: random.Random) -> Any:
    t = chance.choice([0.1, 0.7, 3.0])
    return lambda: Temperature(t), lambda _, logits, __: [logit / t for logit in logits]


def top_k_rule(chance: random.Random) -> Any:
    k = chance.randint(1, V + 2)

    def naive(_: list[int], logits: list[float], __: int) -> list[float]:
        return keep(logits, set(sorted(range(V), key=lambda t: (-logits[t], t))[:k]).__contains__)

    return lambda: TopK(k), naive


def top_p_rule(chance: random.Random) -> Any:
    p = chance.uniform(0.05, 0.99)

    def naive(_: list[int], logits: list[float], __: int) -> list[float]:
        order = sorted(range(V), key=lambda t: (-logits[t], t))
        return keep(logits, first_to_reach(order, softmax(logits), p).__contains__)

    return lambda: TopP(p), naive


def typical_rule(chance: random.Random) -> Any:
    p = chance.uniform(0.05, 0.99)

    def naive(_: list[int], logits: list[float], __: int) -> list[float]:
        probabilities, expected = softmax(logits), entropy(logits)
        strangeness = [abs(-math.log(q) - expected) if q > 0 else INF for q in probabilities]
        order = sorted(range(V), key=lambda t: (strangeness[t], t))
        return keep(logits, first_to_reach(order, probabilities, p).__contains__)

    return lambda: Typical(p), naive


def min_p_rule(chance: random.Random) -> Any:
    p = chance.uniform(0.01, 1)
    return lambda: MinP(p), lambda _, logits, __: keep(
        logits, lambda t: softmax(logits)[t] >= p * max(softmax(logits)) * (1 - 1e-6)
    )


def epsilon_rule(chance: random.Random) -> Any:
    e = chance.uniform(0.001, 0.9)
    return lambda: Epsilon(e), lambda _, logits, __: keep(
        logits, lambda t: softmax(logits)[t] >= e or logits[t] == max(logits)
    )


def eta_rule(chance: random.Random) -> Any:
    e = chance.uniform(0.001, 0.9)

    def naive(_: list[int], logits: list[float], __: int) -> list[float]:
        lowest = min(e, math.sqrt(e) * math.exp(-entropy(logits)))
        return keep(logits, lambda t: softmax(logits)[t] >= lowest or logits[t] == max(logits))

    return lambda: Eta(e), naive


def penalty_rule(kind: str) -> Callable[[random.Random], Any]:
    def rule(chance: random.Random) -> Any:
        amount = chance.choice([0.5, 1.3, 2.0])
        window, new_only = chance.choice([None, 1, 3]), chance.random() < 0.5
        classes: dict[str, Any] = {
            "repetition": RepetitionPenalty,
            "presence": PresencePenalty,
            "frequency": FrequencyPenalty,
        }

        def naive(tokens: list[int], logits: list[float], prompt_length: int) -> list[float]:
            positions = range(len(tokens))[-window if window else None :]
            counted = [tokens[i] for i in positions if not new_only or i >= prompt_length]
            if kind == "repetition":
                changed = [logit / amount if logit > 0 else logit * amount for logit in logits]
                return [changed[t] if t in counted else logits[t] for t in range(V)]
            if kind == "presence":
                return [logits[t] - amount * (t in counted) for t in range(V)]
            return [logits[t] - amount * counted.count(t) for t in range(V)]

        return lambda: classes[kind](amount, TokenCounts(V, window=window, new_only=new_only)), naive

    return rule


def length_decay_rule(chance: random.Random) -> Any:
    start, factor = chance.randint(0, 4), chance.choice([1.1, 2.0, 50.0])

    def naive(tokens: list[int], logits: list[float], prompt_length: int) -> list[float]:
        behind = max(0, len(tokens) - prompt_length - start)
        raised = logits[END] + abs(logits[END]) * (factor**behind - 1) if logits[END] > -INF else -INF
        return [raised if t == END else logits[t] for t in range(V)]

    return lambda: LengthDecay(start, factor, END), naive


def logit_bias_rule(chance: random.Random) -> Any:
    biases = {token: chance.uniform(-5, 5) for token in chance.sample(range(V), 3)}
    return lambda: LogitBias(biases), lambda _, logits, __: [logits[t] + biases.get(t, 0) for t in range(V)]


def suppress_rule(chance: random.Random) -> Any:
    tokens = chance.sample(range(V), chance.randint(1, V - 1))
    return lambda: SuppressTokens(tokens), lambda _, logits, __: keep(logits, lambda t: t not in tokens)


def min_new_tokens_rule(chance: random.Random) -> Any:
    n = chance.randint(1, 6)
    return lambda: MinNewTokens(n, END), lambda tokens, logits, prompt: keep(
        logits, lambda t: t != END or len(tokens) - prompt >= n
    )


def forced_end_rule(chance: random.Random) -> Any:
    n = chance.randint(1, 6)
    return lambda: ForcedEnd(n, END), lambda tokens, logits, prompt: keep(
        logits, lambda t: t == END or len(tokens) - prompt < n - 1
    )


def allowed_rule(chance: random.Random) -> Any:
    def allowed(tokens: list[int]) -> list[int]:
        return [tokens[0], len(tokens) % V]

    return lambda: AllowedTokens(allowed), lambda tokens, logits, _: keep(logits, lambda t: t in allowed(tokens))


def no_repeat_ngram_rule(chance: random.Random) -> Any:
    n = chance.randint(1, 4)

    def naive(tokens: list[int], logits: list[float], _: int) -> list[float]:
        ngrams = [tokens[i : i + n] for i in range(len(tokens) - n + 1)]
        return keep(logits, lambda t: [*tokens, t][-n:] not in ngrams)

    return lambda: NoRepeatNgram(n), naive


def ban_texts_rule(chance: random.Random) -> Any:
    texts = chance.sample(["a", "ab", "b a", "1٣", "武", "aab."], 2)

    def naive(tokens: list[int], logits: list[float], _: int) -> list[float]:
        forms = {form for text in texts for form in (text, text[0].upper() + text[1:], text.upper())}

        def completes(token: int) -> bool:
            return token != END and any(LETTERS.decode([*tokens, token]).endswith(form) for form in forms)

        return keep(logits, lambda t: not completes(t))

    return lambda: BanTexts(texts, LETTERS), naive


def ban_first_rule(chance: random.Random) -> Any:
    kinds = chance.sample(["digits", "letters", "punctuation", "uppercase"], 2)
    pattern = {"digits": r"[1٣]", "letters": r"[abA武]", "punctuation": r"[.]", "uppercase": r"A"}
    banned = re.compile(rf"\s*({'|'.join(pattern[kind] for kind in kinds)})")

    def naive(tokens: list[int], logits: list[float], prompt_length: int) -> list[float]:
        begun = LETTERS.decode(tokens[prompt_length:])
        texts = [begun + (LETTERS.decode([t]) if t != END else "") for t in range(V)]
        return keep(logits, lambda t: begun.strip() != "" or not banned.match(texts[t]))

    return lambda: BanFirst(kinds, LETTERS), naive


class Parts(CharacterTokenizer):
    """As many tokens as LETTERS, but most hold parts of characters."""

    PARTS = (b"a", b"\xe6", b"\xad", b"\xa6", b"\xad\xa6\xe6", b"\xf0\x9f", b"\x98\x80", b"\xc3\xa9b\xed", b"")

    def token_bytes(self, token_id: int) -> bytes:
        return self.PARTS[token_id]


PARTS = Parts(LETTERS.characters)


@cache
def tokens_needed(raw: bytes) -> float:
    """The fewest of PARTS behind which a text is valid; infinitely many when it is broken."""
    for n_more in range(4):
        for ending in itertools.product(Parts.PARTS[:END], repeat=n_more):
            with contextlib.suppress(UnicodeDecodeError):
                (raw + b"".join(ending)).decode()
                return n_more
    return INF


def valid_utf8_rule(chance: random.Random) -> Any:
    n = chance.randint(1, 9)

    def naive(tokens: list[int], logits: list[float], prompt_length: int) -> list[float]:
        raw = b"".join(map(PARTS.token_bytes, tokens[prompt_length:]))
        tails = (raw[-length:] for length in (3, 2, 1) if length <= len(raw))
        begun = next((tail for tail in tails if tail[0] >= 0xC0 and 0 < tokens_needed(tail) < INF), b"")
        n_left = max(0, n - 1 - (len(tokens) - prompt_length))
        needed = [tokens_needed(begun + PARTS.token_bytes(t)) for t in range(V)]
        kept = keep(logits, lambda t: needed[t] <= n_left and not (t == END and begun))
        return kept if max(kept) > -INF else logits

    return lambda: ValidUTF8(PARTS, V, n), naive


RULES: dict[str, Rule] = {
    "temperature": Rule(temperature_rule, lambda: Temperature(1.0)),
    "top_k": Rule(top_k_rule, lambda: TopK(V)),
    "top_p": Rule(top_p_rule, lambda: TopP(1.0)),
    "typical": Rule(typical_rule, lambda: Typical(1.0)),
    "min_p": Rule(min_p_rule, lambda: MinP(0.0)),
    "epsilon": Rule(epsilon_rule, lambda: Epsilon(0.0)),
    "eta": Rule(eta_rule, lambda: Eta(0.0)),
    "repetition": Rule(penalty_rule("repetition"), lambda: RepetitionPenalty(1.0, TokenCounts(V))),
    "presence": Rule(penalty_rule("presence"), lambda: PresencePenalty(0.0, TokenCounts(V))),
    "frequency": Rule(penalty_rule("frequency"), lambda: FrequencyPenalty(0.0, TokenCounts(V))),
    "length_decay": Rule(length_decay_rule, lambda: LengthDecay(0, 1.0, END)),
    "logit_bias": Rule(logit_bias_rule, lambda: LogitBias({0: 0.0})),
    "suppress": Rule(suppress_rule, lambda: SuppressTokens([])),
    "min_new_tokens": Rule(min_new_tokens_rule, lambda: MinNewTokens(0, END)),
    "forced_end": Rule(forced_end_rule, lambda: ForcedEnd(10**9, END)),
    "allowed": Rule(allowed_rule, lambda: AllowedTokens(lambda _: range(V))),
    "no_repeat_ngram": Rule(no_repeat_ngram_rule, lambda: NoRepeatNgram(100)),
    "ban_texts": Rule(ban_texts_rule, lambda: BanTexts(["not in the vocabulary"], LETTERS)),
    "ban_first": Rule(ban_first_rule, lambda: BanFirst([], LETTERS)),
    "valid_utf8": Rule(valid_utf8_rule, lambda: ValidUTF8(LETTERS, V, 1)),
}


def apply(processor: LogitsProcessor, situation: Situation) -> Tensor:
    return processor(situation.token_ids, situation.logits, situation.prompt_lengths)


@pytest.fixture(params=sorted(RULES))
def rule(request: pytest.FixtureRequest) -> Rule:
    return RULES[request.param]


def cases(rule: Rule) -> Any:
    """N_CASES times: a function that builds the processor anew, its reference, and a random situation."""
    for number in range(N_CASES):
        chance = random.Random(number)
        build, naive = rule.build(chance)
        yield build, naive, Situation.draw(chance, batch_size=chance.randint(1, 4))


def test_every_processor_of_the_room_stands_in_the_table() -> None:
    modules = (bans, penalties, truncation, valid_utf8)
    classes = {value for module in modules for value in vars(module).values() if hasattr(value, "stage")}
    tested = {type(rule.identity()) for rule in RULES.values()}
    assert len(tested) == len(RULES)
    assert classes == tested


def test_equals_its_naive_reference(rule: Rule) -> None:
    for build, naive, situation in cases(rule):
        result = apply(build(), situation)
        for index, row in enumerate(situation.logits.tolist()):
            expected = torch.tensor(naive(situation.tokens(index), row, int(situation.prompt_lengths[index])))
            assert torch.equal(result[index].isneginf(), expected.isneginf())
            assert result[index].allclose(expected, rtol=1e-5, atol=1e-5)


def test_input_is_untouched_and_the_result_holds_no_nan_and_revives_nothing(rule: Rule) -> None:
    for build, _, situation in cases(rule):
        before = situation.logits.clone()
        result = apply(build(), situation)
        assert torch.equal(situation.logits, before)
        assert not result.isnan().any()
        assert result[before.isneginf()].isneginf().all()
        assert (result.dtype, result.shape) == (before.dtype, before.shape)


def test_a_batch_equals_its_rows_one_by_one(rule: Rule) -> None:
    for build, _, situation in cases(rule):
        together = apply(build(), situation)
        for index in range(len(together)):
            assert torch.equal(together[index : index + 1], apply(build(), situation.row(index)))


def test_its_identity_changes_no_bit(rule: Rule) -> None:
    for _, _, situation in cases(rule):
        assert torch.equal(apply(rule.identity(), situation), situation.logits)


def test_a_row_without_candidates_stays_one(rule: Rule) -> None:
    for build, _, situation in cases(rule):
        situation.logits[0] = -INF
        result = apply(build(), situation)
        assert result[0].isneginf().all()
        assert not result.isnan().any()


def test_step_by_step_equals_all_at_once(rule: Rule) -> None:
    """A processor that remembers its rows must give what a fresh one gives, also when rows leave."""
    for build, _, situation in list(cases(rule))[:60]:
        remembering = build()
        rows = [situation.tokens(index) for index in range(len(situation.logits))]
        prompts = situation.prompt_lengths.tolist()
        keep_from = 0
        for step in range(len(rows[0]) - prompts[0] + 1):
            if step == 2 and len(rows) > 1:
                keep_from = 1
            part = [row[: prompt + step] for row, prompt in zip(rows, prompts, strict=True)][keep_from:]
            longest = max(map(len, part))
            now = Situation(
                torch.tensor([row + [-1] * (longest - len(row)) for row in part]),
                situation.logits[keep_from:],
                situation.prompt_lengths[keep_from:],
            )
            assert torch.equal(apply(remembering, now), apply(build(), now))


def test_min_p_1_keeps_the_most_probable_tokens() -> None:
    situation = Situation(torch.tensor([[0]]), torch.tensor([[1.0, 2.0, 2.0]]), torch.tensor([1]))
    assert apply(MinP(1.0), situation).tolist() == [[-INF, 2.0, 2.0]]


def test_tokens_that_reach_top_p_exactly_are_enough() -> None:
    # Each of the four has a probability of exactly 1/4.
    situation = Situation(torch.tensor([[0]]), torch.zeros(1, 4), torch.tensor([1]))
    assert apply(TopP(0.5), situation).tolist() == [[0.0, 0.0, -INF, -INF]]


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e30, 1e300])
def test_a_row_without_candidates_stays_one_at_an_extreme_temperature(temperature: float) -> None:
    logits = torch.tensor([[-INF, -INF], [-INF, 3.0]])
    situation = Situation(torch.tensor([[0], [0]]), logits, torch.tensor([1, 1]))
    assert apply(Temperature(temperature), situation).tolist() == [[-INF, -INF], [-INF, 0.0]]


def test_another_text_one_token_longer_is_counted_anew() -> None:
    counts = TokenCounts(5)
    assert counts.update(torch.tensor([[0, 1]]), torch.tensor([2])).tolist() == [[1, 1, 0, 0, 0]]
    assert counts.update(torch.tensor([[2, 3, 4]]), torch.tensor([3])).tolist() == [[0, 0, 1, 1, 1]]


@pytest.mark.parametrize("processor", [TopP(1e-300), Typical(1e-300)])
def test_a_share_that_is_0_in_float32_keeps_one_token(processor: LogitsProcessor) -> None:
    situation = Situation(torch.tensor([[0]]), torch.tensor([[1.0, 2.0, 2.0]]), torch.tensor([1]))
    assert apply(processor, situation).isfinite().sum() == 1
