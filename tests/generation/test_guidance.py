"""Guidance is Bayes' rule: proved by enumeration on a language small enough to list all of its texts."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from command_line import UserError
from data.tokenizers.characters import CharacterTokenizer
from generation.config import SamplingConfig
from generation.guidance import LOWEST_LOG_PROBABILITY, Guidance, Guide
from generation.logits_processors.base import ProcessorChain
from generation.logits_processors.truncation import Temperature
from generation.sampling import draw
from generation.text_generator import TextGenerator
from model.config import ModelConfig
from model.gpt import GPT

V, T = 5, 4
"""All texts of the toy language: 5⁴ = 625, each of four tokens behind the prompt token 0."""

Text = tuple[int, ...]
Rule = Callable[[Text], bool]


class ToyLanguage:
    """A random next-token table for every prefix, and exact answers by enumeration, all in float64."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.logits: dict[Text, Tensor] = {
            prefix: 2 * torch.randn(V, dtype=torch.float64, generator=generator)
            for length in range(T)
            for prefix in itertools.product(range(V), repeat=length)
        }

    def probability(self, text: Text, steps: Callable[[Text], Tensor]) -> float:
        """Of a whole text, as the product of its steps."""
        return math.prod(float(steps(text[:t]).softmax(-1)[text[t]]) for t in range(T))

    def distribution(self, steps: Callable[[Text], Tensor]) -> Tensor:
        """The probabilities of all 625 texts, when `steps` gives the logits behind each prefix."""
        texts = itertools.product(range(V), repeat=T)
        return torch.tensor([self.probability(text, steps) for text in texts], dtype=torch.float64)

    def guided(self, guidance: Guidance) -> Callable[[Text], Tensor]:
        """The logits behind a prefix after guidance."""

        def steps(prefix: Text) -> Tensor:
            return guidance(torch.tensor([[0, *prefix]]), self.logits[prefix].unsqueeze(0), torch.tensor([1]))[0]

        return steps


def chi_square_deviation(counts: Tensor, expected: Tensor) -> float:
    """How many standard deviations the counts lie from what was expected; frequent outcomes only."""
    frequent = expected >= 5
    counts, expected = counts[frequent], expected[frequent]
    statistic, freedom = float(((counts - expected) ** 2 / expected).sum()), int(frequent.sum()) - 1
    # Wilson & Hilferty 1931: the cube root of χ²/n is nearly normal.
    root, spread = (statistic / freedom) ** (1 / 3), math.sqrt(2 / (9 * freedom))
    return float((root - (1 - 2 / (9 * freedom))) / spread)


def _dot(first: Sequence[float], second: Sequence[float]) -> float:
    return math.fsum(a * b for a, b in zip(first, second, strict=True))


class Oracle:
    """Knows the true p(rule | prefix): sums over all ways in which the language may end the text."""

    def __init__(self, language: ToyLanguage, rule: Rule, name: str = "oracle") -> None:
        self.name = name
        # p(rule) and p(not rule) apart: one minus the other would lose the small ones.
        self._odds: dict[Text, tuple[float, float]] = {
            text: (1.0, 0.0) if rule(text) else (0.0, 1.0) for text in itertools.product(range(V), repeat=T)
        }
        for length in reversed(range(T)):
            for prefix in itertools.product(range(V), repeat=length):
                ahead = language.logits[prefix].softmax(-1).tolist()
                with_rule, without = zip(*(self._odds[(*prefix, x)] for x in range(V)), strict=True)
                self._odds[prefix] = _dot(ahead, with_rule), _dot(ahead, without)

    def log_odds(self, token_ids: Tensor, prompt_lengths: Tensor, candidates: Tensor) -> Tensor:
        return torch.tensor(
            [
                [self._of((*row[1:], x)) for x in of_row]
                for row, of_row in zip(token_ids.tolist(), candidates.tolist(), strict=True)
            ],
            dtype=torch.float64,
        )

    def _of(self, prefix: Text) -> float:
        with_rule, without = self._odds[prefix]
        return -math.inf if with_rule == 0 else math.inf if without == 0 else math.log(with_rule / without)


class Fixed:
    """Gives every token one log-odds, whatever came before."""

    def __init__(self, log_odds: list[float], name: str = "fixed") -> None:
        self.name = name
        self.table = torch.tensor(log_odds, dtype=torch.float64)

    def log_odds(self, token_ids: Tensor, prompt_lengths: Tensor, candidates: Tensor) -> Tensor:
        return self.table[candidates]


RULES: dict[str, Rule] = {
    "holds a 3": lambda text: 3 in text,
    "ends with 2": lambda text: text[-1] == 2,
    "adds up to 8": lambda text: sum(text) == 8,
    "is 4411": lambda text: text == (4, 4, 1, 1),
}


def conditional(language: ToyLanguage, rule: Rule) -> Tensor:
    """p(text | rule) of all texts, by Bayes' rule on the enumerated p(text)."""
    joint = language.distribution(lambda prefix: language.logits[prefix])
    holds = torch.tensor([float(rule(text)) for text in itertools.product(range(V), repeat=T)], dtype=torch.float64)
    return joint * holds / (joint * holds).sum()


def apply(guidance: Guidance, logits: Tensor) -> Tensor:
    return guidance(torch.zeros(len(logits), 1, dtype=torch.int64), logits, torch.ones(len(logits), dtype=torch.int64))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_strength_one_with_a_perfect_discriminator_gives_exactly_the_conditional_distribution(rule: Rule) -> None:
    language = ToyLanguage()
    guidance = Guidance([Guide(Oracle(language, rule), 1.0)], n_candidates=V)
    achieved = language.distribution(language.guided(guidance))
    assert 0.5 * (achieved - conditional(language, rule)).abs().sum() < 1e-6


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_strength_minus_one_gives_exactly_the_distribution_of_texts_without_the_attribute(rule: Rule) -> None:
    language = ToyLanguage(1)
    guidance = Guidance([Guide(Oracle(language, rule), -1.0)], n_candidates=V)
    achieved = language.distribution(language.guided(guidance))
    assert 0.5 * (achieved - conditional(language, lambda text: not rule(text))).abs().sum() < 1e-6


def test_drawn_texts_follow_the_conditional_distribution() -> None:
    language, rule, n_texts = ToyLanguage(2), RULES["adds up to 8"], 20_000
    guidance = Guidance([Guide(Oracle(language, rule), 1.0)], n_candidates=V)
    expected = conditional(language, rule)
    steps = {prefix: language.guided(guidance)(prefix) for prefix in language.logits}
    uniforms = torch.rand(T, n_texts, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    drawn: list[Text] = [()] * n_texts
    for step in range(T):
        chosen = draw(torch.stack([steps[prefix] for prefix in drawn]), uniforms[step]).tolist()
        drawn = [(*prefix, token) for prefix, token in zip(drawn, chosen, strict=True)]
    numbers = torch.tensor([int("".join(map(str, text)), V) for text in drawn])
    counts = torch.bincount(numbers, minlength=V**T).double()
    assert counts[expected == 0].sum() == 0
    assert chi_square_deviation(counts, expected * n_texts) < 3  # p > 0.001


class ExactOracle:
    """Knows the true p(rule | prefix) of a small GPT: goes through all ways in which a text of `T` tokens may end."""

    name = "oracle"

    def __init__(self, model: GPT, end: int, rule: Callable[[Text], bool], max_tokens: int) -> None:
        self._model, self._end, self._rule, self._max_tokens = model, end, rule, max_tokens
        self._known: dict[Text, float] = {}
        self.texts: dict[Text, float] = {}
        """Probability of every whole text."""
        self.desired((), 1.0)

    @torch.no_grad()
    def desired(self, text: Text, probability: float = 0.0) -> float:
        if text not in self._known:
            if len(text) == self._max_tokens or text[-1:] == (self._end,):
                self.texts[text] = probability
                self._known[text] = float(self._rule(text))
            else:
                logits = self._model(torch.tensor([[self._end, *text]]))[0, -1].double()
                steps = logits.softmax(-1).tolist()
                self._known[text] = sum(p * self.desired((*text, x), probability * p) for x, p in enumerate(steps))
        return self._known[text]

    def log_odds(self, token_ids: Tensor, prompt_lengths: Tensor, candidates: Tensor) -> Tensor:
        return torch.tensor(
            [
                [torch.logit(torch.tensor(self.desired((*row[1:], x)), dtype=torch.float64)) for x in of_row]
                for row, of_row in zip(token_ids.tolist(), candidates.tolist(), strict=True)
            ]
        )


def test_texts_of_the_text_generator_follow_the_conditional_distribution() -> None:
    """The whole way, from prompt to finished texts of different lengths, with a GPT and a rule about its texts."""
    torch.manual_seed(3)
    tokenizer, n_texts = CharacterTokenizer("abc"), 3000
    end, (b,) = tokenizer.end_of_text, tokenizer.encode("b")
    model = GPT(ModelConfig(vocab_size=tokenizer.vocab_size, context_length=8, n_layer=1, n_head=1, n_embd=8)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.6)
    oracle = ExactOracle(model, end, lambda text: text.count(b) == 1, max_tokens=3)
    sampling = SamplingConfig(temperature=1, max_new_tokens=3, num_samples=n_texts, seed=1)
    guidance = Guidance([Guide(oracle, 1.0)], tokenizer.vocab_size)
    results = TextGenerator(model, tokenizer).generate("", sampling, processors=[guidance])
    drawn = Counter(tuple(result.token_ids) for result in results)
    holding = {text: p / oracle.desired(()) for text, p in oracle.texts.items() if text.count(b) == 1}
    assert 0.05 < oracle.desired(()) < 0.6
    assert sum(holding.values()) == pytest.approx(1)
    assert set(drawn) <= set(holding)
    counts = torch.tensor([float(drawn[text]) for text in holding])
    assert chi_square_deviation(counts, n_texts * torch.tensor(list(holding.values()))) < 3


def test_strength_zero_returns_the_very_same_logits() -> None:
    logits = torch.randn(3, 40)
    assert apply(Guidance([Guide(Fixed([1.0] * 40), 0.0)], n_candidates=2), logits) is logits


def test_guidance_changes_the_order_of_two_candidates_of_different_attribute() -> None:
    """One probability for all candidates, the common mistake, cancels when they are normalised: no order changes."""
    logits = torch.tensor([[1.0, 0.5, -3.0]])
    assert apply(Guidance([Guide(Fixed([-2.0, 2.0, 0.0]), 2.0)], 3), logits).argmax() == 1
    constant = apply(Guidance([Guide(Fixed([-2.0, -2.0, -2.0]), 2.0)], 3), logits)
    torch.testing.assert_close(constant.softmax(-1), logits.softmax(-1))


def test_the_result_is_the_formula_candidate_by_candidate() -> None:
    logits, odds = torch.randn(1, 6, dtype=torch.float64), [-2.0, 0.0, 1.0, 3.0, -1.0, 0.5]
    guided = apply(Guidance([Guide(Fixed(odds), 1.7)], 6), logits).softmax(-1)[0]
    weights = [math.exp(logits[0, x]) * (1 / (1 + math.exp(-odds[x]))) ** 1.7 for x in range(6)]
    expected = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    torch.testing.assert_close(guided, expected)


def test_a_negative_strength_multiplies_the_probability_of_not_desired() -> None:
    logits, odds = torch.randn(1, 6, dtype=torch.float64), [-2.0, 0.0, 1.0, 3.0, -1.0, 0.5]
    guided = apply(Guidance([Guide(Fixed(odds), -1.7)], 6), logits).softmax(-1)[0]
    weights = [math.exp(logits[0, x]) * (1 / (1 + math.exp(odds[x]))) ** 1.7 for x in range(6)]
    expected = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    torch.testing.assert_close(guided, expected)


def test_the_expected_log_probability_of_the_attribute_never_falls_as_the_strength_grows() -> None:
    """A theorem: its derivative by λ is the variance of ln p(desired | prefix + x) over the candidates."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        logits = 3 * torch.randn(1, 12, dtype=torch.float64, generator=generator)
        odds = 3 * torch.randn(12, dtype=torch.float64, generator=generator)
        scorer = Fixed(odds.tolist())
        strengths = [0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0]
        steps = [apply(Guidance([Guide(scorer, strength)], 12), logits).softmax(-1)[0] for strength in strengths]
        expected = [float((step * torch.nn.functional.logsigmoid(odds)).sum()) for step in steps]
        assert all(later >= earlier - 1e-12 for earlier, later in itertools.pairwise(expected))


def test_two_discriminators_commute() -> None:
    first, second = (
        Guide(Fixed([2.0, -1.0, 0.3, 0.0], "first"), 2.0),
        Guide(Fixed([-1.0, 0.5, 4.0, 1.0], "second"), -1.3),
    )
    logits = torch.randn(5, 4)
    assert torch.equal(apply(Guidance([first, second], 3), logits), apply(Guidance([second, first], 3), logits))


def test_only_the_most_probable_candidates_are_left() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    guided = apply(Guidance([Guide(Fixed([9.0, -9.0, 9.0, -9.0]), 1.0)], 2), logits)
    assert torch.isfinite(guided[0]).tolist() == [False, True, False, True]


def test_what_was_banned_stays_banned_whatever_its_score() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 1.0, -torch.inf]])
    guided = apply(Guidance([Guide(Fixed([0.0, math.inf, 0.0, math.nan]), 4.0)], 4), logits)
    assert torch.isfinite(guided[0]).tolist() == [True, False, True, False]


def test_an_impossible_candidate_is_practically_never_drawn_and_a_sure_one_keeps_its_logit() -> None:
    logits = torch.zeros(1, 3, dtype=torch.float64)
    guided = apply(Guidance([Guide(Fixed([-math.inf, math.inf, 0.0]), 1.0)], 3), logits)
    assert guided[0].tolist() == [LOWEST_LOG_PROBABILITY, 0.0, pytest.approx(math.log(0.5))]


def test_where_every_candidate_is_impossible_the_language_model_decides() -> None:
    logits = torch.randn(1, 5, dtype=torch.float64)
    guided = apply(Guidance([Guide(Fixed([-math.inf] * 5), 8.0)], 5), logits)
    torch.testing.assert_close(guided.softmax(-1), logits.softmax(-1))


def test_a_discriminator_that_answers_nan_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="discriminator mood answers with no number"):
        apply(Guidance([Guide(Fixed([0.0, math.nan], "mood"), 1.0)], 2), torch.zeros(1, 2))


def test_guidance_works_behind_temperature_so_that_strength_keeps_its_meaning() -> None:
    logits, odds = torch.tensor([[1.0, 0.0]], dtype=torch.float64), [-1.0, 1.0]
    chain = ProcessorChain([Guidance([Guide(Fixed(odds), 1.0)], 2), Temperature(0.5)])
    guided = chain(torch.zeros(1, 1, dtype=torch.int64), logits, torch.tensor([1])).softmax(-1)[0]
    weights = [math.exp(2.0) / (1 + math.exp(1)), 1 / (1 + math.exp(-1))]
    torch.testing.assert_close(guided, torch.tensor(weights, dtype=torch.float64) / sum(weights))
