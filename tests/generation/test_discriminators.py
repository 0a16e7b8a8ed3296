"""Discriminators at work: cached, in step with the rows of a batch, fast or exact, refused where they do not fit."""

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
from generation.guidance import Guidance, Guide
from generation.guidance_config import GuidanceConfig
from generation.inspection import format_next_tokens, next_tokens
from generation.text_generator import TextGenerator
from model.checkpoint import CheckpointError, save_checkpoint
from model.config import ModelConfig
from model.discriminator import Discriminator
from model.next_token_head import NextTokenHead


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
    with pytest.raises(UserError, match="--guidance-mode needs a --discriminator"):
        GuidanceConfig(guidance_mode="fast")


def test_the_fast_mode_needs_its_head(tmp_path: Path) -> None:
    path = str(save_discriminator(tmp_path / "mood.pt", ByteTokenizer()))
    with pytest.raises(UserError, match="without the head of the fast mode; use --guidance-mode exact"):
        build_guidance(GuidanceConfig(discriminator=(path,), guidance_mode="fast"), ByteTokenizer())


def build_next_token_head(n_features: int = 32) -> NextTokenHead:
    torch.manual_seed(6)
    head = NextTokenHead(n_features, 257, 2, rank=3)
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
                    hidden = model.hidden_states(text.unsqueeze(0))
                    features = torch.cat((hidden[:, -1], hidden.sum(dim=1) / len(text) ** 0.5), dim=-1)
                    logits = head(features, candidates[row : row + 1])[0]
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
    states.hidden, states.hidden_total, states.lengths = torch.randn(2, 2), torch.randn(2, 2), [4, 9]
    candidates = torch.tensor([[7, 9, 256], [0, 1, 2]])
    features = torch.cat((states.hidden, states.hidden_total / torch.tensor([[2.0], [3.0]])), dim=-1)
    shares = head(features, candidates).softmax(-1)
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
    (result,) = generator.generate("ab", sampling, processors=[guidance], n_alternatives=257, explain=True)
    for trace in result.traces:
        assert trace.stages[-1].candidates_after == 10
        candidates = [token for token in trace.alternatives if token.chance > 0]
        assert candidates
        assert all(0 < token.desired["first"] < 1 for token in candidates)
