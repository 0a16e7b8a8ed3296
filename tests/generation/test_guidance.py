"""Guidance is Bayes' rule: proved by enumeration on a language small enough to list all of its texts."""

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from command_line import UserError
from data.tokenizers.characters import CharacterTokenizer
from data.tokenizers.utf8_bytes import ByteTokenizer
from generation.config import SamplingConfig
from generation.context_window import ContextWindow
from generation.discriminators import DiscriminatorScorer, NextTokenScorer, build_guidance, load_guide
from generation.guidance import LOWEST_LOG_PROBABILITY, Guidance, Guide
from generation.guidance_config import GuidanceConfig
from generation.inspection import format_next_tokens, next_tokens
from generation.logits_processors.base import ProcessorChain
from generation.logits_processors.truncation import Temperature
from generation.sampling import draw
from generation.text_generator import TextGenerator
from model.checkpoint import CheckpointError, save_checkpoint
from model.config import ModelConfig
from model.discriminator import Discriminator
from model.next_token_head import NextTokenHead

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
    frequent = expected * n_texts >= 5
    counts, expected = counts[frequent], expected[frequent] * n_texts
    statistic, freedom = float(((counts - expected) ** 2 / expected).sum()), int(frequent.sum()) - 1
    # Wilson & Hilferty 1931: the cube root of χ²/n is nearly normal. Three standard deviations: p > 0.001.
    deviation = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    assert deviation < 3


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


# ---- discriminators in decoding ----------------------------------------------------------------------------------


def build_discriminator(**overrides: Any) -> Discriminator:
    shape: dict[str, Any] = {"vocab_size": 257, "context_length": 64, "n_layer": 2, "n_head": 2, "n_embd": 16}
    torch.manual_seed(5)
    discriminator = Discriminator(ModelConfig(**{**shape, "positions": "rotary", **overrides}), 2)
    with torch.no_grad():
        for parameter in discriminator.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.4)
    return discriminator.eval()


def scorer_of(discriminator: Discriminator) -> DiscriminatorScorer:
    return DiscriminatorScorer(discriminator, 0, ByteTokenizer().end_of_text, name="first")


class Fresh:
    """Scores as a scorer does that has never seen anything before: nothing cached."""

    name = "fresh"

    def __init__(self, discriminator: Discriminator) -> None:
        self.discriminator = discriminator

    def log_odds(self, token_ids: Tensor, prompt_lengths: Tensor, candidates: Tensor) -> Tensor:
        return scorer_of(self.discriminator).log_odds(token_ids, prompt_lengths, candidates)


class Compared:
    """Asks two scorers and remembers the largest difference between their answers."""

    name = "compared"

    def __init__(self, first: Any, second: Any) -> None:
        self.first, self.second, self.largest, self.calls = first, second, 0.0, 0

    def log_odds(self, token_ids: Tensor, prompt_lengths: Tensor, candidates: Tensor) -> Tensor:
        answer: Tensor = self.first.log_odds(token_ids, prompt_lengths, candidates)
        other = self.second.log_odds(token_ids, prompt_lengths, candidates)
        self.largest = max(self.largest, float((answer - other).abs().max()))
        self.calls += 1
        return answer


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"context_length": 12},
        {"positions": "learned", "context_length": 9},
        {"bigram_rows": 31, "context_length": 12},
    ],
    ids=["all in view", "sliding", "sliding, learned positions", "sliding, bigrams"],
)
def test_cached_scores_equal_uncached_ones_over_ending_rows_and_sliding_windows(
    generator: TextGenerator, shape: dict[str, Any]
) -> None:
    discriminator = build_discriminator(**shape)
    compared = Compared(scorer_of(discriminator), Fresh(discriminator))
    sampling = SamplingConfig(max_new_tokens=40, num_samples=3, temperature=1, stop=("e", "A"))
    guidance = Guidance([Guide(compared, 2.0)], 10)
    results = generator.generate(["a", "bcd", ""], sampling, processors=[guidance])
    assert len({len(result.token_ids) for result in results}) > 2
    assert compared.calls > 20
    assert compared.largest < 1e-4


@torch.no_grad()
def test_scores_are_those_of_a_plain_pass_over_start_prefix_and_candidate() -> None:
    discriminator, end = build_discriminator(), ByteTokenizer().end_of_text
    candidates = torch.tensor([[1, 2, 3], [4, 5, 6]])
    scores = scorer_of(discriminator).log_odds(
        torch.tensor([[7, 8, 9], [end, 10, -1]]), torch.tensor([3, 2]), candidates
    )
    for row, prefix in enumerate([[end, 7, 8, 9], [end, 10]]):
        for column, token in enumerate(candidates[row].tolist()):
            logits = discriminator(torch.tensor([[*prefix, token]]))[0, -1]
            torch.testing.assert_close(scores[row, column], logits[0] - logits[1])


def test_a_batch_draws_what_its_samples_draw_alone(generator: TextGenerator) -> None:
    guidance = Guidance([Guide(scorer_of(build_discriminator(context_length=12)), 2.0)], 10)
    for batch_size in (1, 8):
        sampling = SamplingConfig(max_new_tokens=30, num_samples=4, batch_size=batch_size)
        results = generator.generate(["ab", "c"], sampling, processors=[guidance])
        texts = [result.token_ids for result in results]
        if batch_size == 1:
            alone = texts
    assert texts == alone


def test_strength_zero_draws_the_unguided_texts(generator: TextGenerator) -> None:
    sampling = SamplingConfig(max_new_tokens=30, num_samples=4)
    guidance = Guidance([Guide(scorer_of(build_discriminator()), 0.0)], 5)
    plain, guided = generator.generate("ab", sampling), generator.generate("ab", sampling, processors=[guidance])
    assert plain == guided


def save_discriminator(path: Path, tokenizer: Any, kind: str = "discriminator") -> Path:
    discriminator = build_discriminator(vocab_size=tokenizer.vocab_size)
    save_checkpoint(
        path,
        model_config=discriminator.config,
        state_dict=discriminator.state_dict(),
        tokenizer=tokenizer.state(),
        provenance={"labels": ["gloomy", "bright"]},
        kind=kind,
    )
    return path


def test_a_guide_leads_to_the_first_label_or_to_the_one_named(tmp_path: Path) -> None:
    path = save_discriminator(tmp_path / "mood.pt", ByteTokenizer())
    row = torch.tensor([[1, 2]]), torch.tensor([2]), torch.tensor([[3, 4]])
    first, second = (load_guide(f"{path}{label}", 2.0, ByteTokenizer()) for label in ("", ":bright"))
    assert (first.scorer.name, second.scorer.name) == ("gloomy", "bright")
    torch.testing.assert_close(first.scorer.log_odds(*row), -second.scorer.log_odds(*row))


def test_an_unknown_label_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    path = save_discriminator(tmp_path / "mood.pt", ByteTokenizer())
    with pytest.raises(UserError, match=r"are gloomy, bright, not 'glomy' \(did you mean gloomy\?\)"):
        load_guide(f"{path}:glomy", 1.0, ByteTokenizer())


def test_a_discriminator_of_another_tokenizer_is_refused_in_one_line(tmp_path: Path) -> None:
    path = save_discriminator(tmp_path / "mood.pt", CharacterTokenizer("abc"))
    with pytest.raises(UserError, match="was trained for another tokenizer") as caught:
        load_guide(str(path), 1.0, ByteTokenizer())
    assert "\n" not in str(caught.value)


def test_a_missing_discriminator_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.pt"):
        load_guide(str(tmp_path / "nothing.pt"), 1.0, ByteTokenizer())


def test_strengths_belong_to_discriminators_in_their_order(tmp_path: Path) -> None:
    path = str(save_discriminator(tmp_path / "mood.pt", ByteTokenizer()))
    config = GuidanceConfig(
        discriminator=(path, f"{path}:bright"), guidance_strength=(2.0, -1.5), guidance_candidates=7
    )
    (guidance,) = build_guidance(config, ByteTokenizer())
    assert [(guide.scorer.name, guide.strength) for guide in guidance.guides] == [("gloomy", 2.0), ("bright", -1.5)]
    assert guidance.name == "guidance(gloomy^2, bright^-1.5; 7 candidates)"
    with pytest.raises(UserError, match="given 1 times for 2 --discriminator"):
        GuidanceConfig(discriminator=(path, path), guidance_strength=(2.0,))


def test_the_fast_mode_needs_its_head(tmp_path: Path) -> None:
    path = str(save_discriminator(tmp_path / "mood.pt", ByteTokenizer()))
    with pytest.raises(UserError, match="without the head of the fast mode; use --guidance-mode exact"):
        build_guidance(GuidanceConfig(discriminator=(path,), guidance_mode="fast"), ByteTokenizer())


def build_next_token_head(n_embd: int = 16) -> NextTokenHead:
    torch.manual_seed(6)
    head = NextTokenHead(n_embd, 257, 2, rank=3)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    return head.eval()


@torch.no_grad()
def test_the_fast_mode_reads_the_hidden_state_of_the_newest_token_of_every_row(generator: TextGenerator) -> None:
    """Over rows that end at different times, and beyond the context of 16 of the language model."""
    head, model = build_next_token_head(), generator.model
    fast = NextTokenScorer(head, 0, name="fast", language_model="abc")
    largest, calls = 0.0, 0

    class Checked:
        name = "checked"

        def read_from(self, states: Any, language_model: str | None) -> None:
            fast.read_from(states, language_model)

        def log_odds(self, token_ids: Tensor, prompt_lengths: Tensor, candidates: Tensor) -> Tensor:
            nonlocal largest, calls
            answers = fast.log_odds(token_ids, prompt_lengths, candidates)
            for row, tokens in enumerate(token_ids):
                text = tokens[tokens >= 0]
                if len(text) <= 16:  # later the window has moved
                    logits = head(model.hidden_states(text.unsqueeze(0))[:, -1], candidates[row : row + 1])[0]
                    largest = max(largest, float((answers[row] - (logits[:, 0] - logits[:, 1])).abs().max()))
                    calls += 1
            return answers

    sampling = SamplingConfig(max_new_tokens=30, num_samples=3, temperature=1, stop=("e", "A"))
    generator.generate(["a", "bcd", ""], sampling, processors=[Guidance([Guide(Checked(), 2.0)], 10)])
    assert calls > 60
    assert largest < 1e-4


def test_the_fast_mode_scores_prefix_token_and_both_together() -> None:
    head, hidden = build_next_token_head(4), torch.randn(1, 4)
    scores = head(hidden, torch.tensor([[7, 9]]))[0]
    for row, token in enumerate((7, 9)):
        for label in range(2):
            queries = head.queries.weight[3 * label : 3 * label + 3]  # (R, C)
            expected = head.prefix.weight[label] @ hidden[0] + head.prefix.bias[label] + head.token.weight[token, label]
            expected = expected + head.vectors.weight[token] @ (queries @ hidden[0])
            torch.testing.assert_close(scores[row, label], expected)


@torch.no_grad()
@pytest.mark.parametrize("n_labels", [2, 3])
def test_the_log_odds_of_the_fast_mode_are_those_of_its_class_logits(n_labels: int) -> None:
    """For two labels they are one folded product; for more, each label against all others together."""
    torch.manual_seed(7)
    head, states = NextTokenHead(4, 257, n_labels, rank=3), ContextWindow.__new__(ContextWindow)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    states.hidden, candidates = torch.randn(2, 4), torch.tensor([[7, 9, 256], [0, 1, 2]])
    shares = head(states.hidden, candidates).softmax(-1)
    for label in range(n_labels):
        scorer = NextTokenScorer(head, label, name="label", language_model="abc")
        scorer.read_from(states, "abc")
        scores = scorer.log_odds(torch.zeros(2, 1), torch.ones(2), candidates)
        torch.testing.assert_close(scores, torch.logit(shares[..., label]), rtol=1e-4, atol=1e-4)


def test_the_fast_mode_is_refused_for_another_language_model(generator: TextGenerator) -> None:
    scorer = NextTokenScorer(build_next_token_head(), 0, name="mood", language_model="abc")
    generator.checkpoint_sha256 = "def"
    with pytest.raises(UserError, match="fast mode of the discriminator mood was trained for another language model"):
        generator.generate("a", SamplingConfig(max_new_tokens=2), processors=[Guidance([Guide(scorer, 1.0)], 3)])


def test_what_the_discriminator_says_stands_beside_both_distributions(generator: TextGenerator) -> None:
    scorer = scorer_of(build_discriminator())
    found = next_tokens(generator, "ab", 257, SamplingConfig(temperature=1), [Guidance([Guide(scorer, 2.0)], 10)])
    candidates = [token for token in found.tokens if token.desired]
    weights = [token.probability * token.desired["first"] ** 2 for token in candidates]
    assert len(candidates) == 10
    for token, weight in zip(candidates, weights, strict=True):
        assert token.chance == pytest.approx(weight / sum(weights), rel=1e-4)
    assert all(token.chance == 0 for token in found.tokens if not token.desired)
    lines = format_next_tokens(found, generator.tokenizer).splitlines()
    assert lines[1].split() == ["model", "settings", "first"]
    first = found.tokens.index(candidates[0])
    assert f"{100 * candidates[0].desired['first']:.2f} %" in lines[2 + first]


def test_every_explained_step_shows_what_the_discriminator_said(generator: TextGenerator) -> None:
    guidance = Guidance([Guide(scorer_of(build_discriminator()), 2.0)], 10)
    sampling = SamplingConfig(max_new_tokens=5, temperature=1)
    (result,) = generator.generate("ab", sampling, processors=[guidance], n_alternatives=257)
    for trace in result.traces:
        assert trace.stages[-1].candidates_after == 10
        candidates = [token for token in trace.alternatives if token.chance > 0]
        assert candidates
        assert all(0 < token.desired["first"] < 1 for token in candidates)
