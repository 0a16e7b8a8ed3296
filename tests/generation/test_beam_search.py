"""Beam search against an enumeration of all texts, and the best of n draws against the draws themselves."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from command_line import UserError
from data.tokenizers.characters import CharacterTokenizer
from generation.beam_search import search_beams
from generation.best_of import draw_best, mean_log_probability
from generation.config import SamplingConfig
from generation.text_generator import Result, TextGenerator
from tests.generation.conftest import BuildModel

LETTERS = CharacterTokenizer("abcd")
V, END = LETTERS.vocab_size, LETTERS.end_of_text
N_TOKENS = 4
ALL = V**N_TOKENS


@pytest.fixture
def letters(build_model: BuildModel) -> TextGenerator:
    """A tiny model over four letters and the end of text."""
    return TextGenerator(build_model("ours", vocab_size=V), LETTERS)


Tokens = tuple[int, ...]


def log_probabilities(generator: TextGenerator, prompt: str, so_far: Tokens, sampling: SamplingConfig) -> list[float]:
    """Of each token behind a prompt and tokens, behind all processors: one uncached pass, nothing remembered."""
    prompt_ids = generator.encode_prompt(prompt)
    token_ids = torch.tensor([[*prompt_ids, *so_far]])
    with torch.no_grad():
        logits = generator.model(token_ids)[:, -1]
    processed = generator.build_chain(sampling)(token_ids, logits, torch.tensor([len(prompt_ids)]))
    of_tokens: list[float] = processed.double().log_softmax(-1)[0].tolist()
    return of_tokens


def all_texts(generator: TextGenerator, prompt: str, sampling: SamplingConfig) -> dict[Tokens, float]:
    """Every sequence of tokens that ends or has N_TOKENS, with its log-probability behind the processors."""
    found: dict[Tokens, float] = {}
    beginnings: dict[Tokens, float] = {(): 0.0}
    for n_tokens in range(1, N_TOKENS + 1):
        following: dict[Tokens, float] = {}
        for beginning, score in beginnings.items():
            for token, share in enumerate(log_probabilities(generator, prompt, beginning, sampling)):
                if share > -math.inf:
                    is_whole = token == END or n_tokens == N_TOKENS
                    (found if is_whole else following)[(*beginning, token)] = score + share
        beginnings = following
    return found


def naive_beams(generator: TextGenerator, prompt: str, sampling: SamplingConfig, n_beams: int) -> list[Tokens]:
    """The n best of all continuations and all texts that have ended, step by step."""
    beams: dict[Tokens, float] = {(): 0.0}
    for _ in range(sampling.max_new_tokens):
        grown = {tokens: score for tokens, score in beams.items() if END in tokens}
        for tokens, score in beams.items():
            if END not in tokens:
                shares = log_probabilities(generator, prompt, tokens, sampling)
                grown |= {(*tokens, t): score + share for t, share in enumerate(shares) if share > -math.inf}
        beams = dict(sorted(grown.items(), key=lambda beam: -beam[1])[:n_beams])
    return list(beams)


@pytest.mark.parametrize("prompt", ["", "ab", "dcba"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"repetition_penalty": 1.5, "suppress_tokens": (1,)},
        {"no_repeat_ngram": 2},
        {"top_k": 2},
        {"min_new_tokens": 3, "force_end": True},
    ],
    ids=str,
)
def test_beams_of_full_width_find_the_most_probable_texts_of_all(
    letters: TextGenerator, prompt: str, settings: dict[str, Any]
) -> None:
    sampling = SamplingConfig(max_new_tokens=N_TOKENS, num_samples=3, temperature=0, **settings)
    expected = all_texts(letters, prompt, sampling)
    best = sorted(expected, key=lambda tokens: -expected[tokens])[:3]
    assert math.fsum(map(math.exp, expected.values())) == pytest.approx(1)
    results = search_beams(letters, [prompt], sampling, ALL)
    assert [tuple(result.token_ids) for result in results] == best
    assert [result.text for result in results] == [LETTERS.decode(list(tokens)) for tokens in best]
    assert {result.reason for result in results} <= {"end_of_text", "max_new_tokens"}


@pytest.mark.parametrize("settings", [{}, {"no_repeat_ngram": 2, "min_new_tokens": 12}], ids=str)
@pytest.mark.parametrize("n_beams", [2, 3, 7])
def test_few_beams_are_the_best_of_their_continuations_at_every_step(
    letters: TextGenerator, n_beams: int, settings: dict[str, Any]
) -> None:
    """Beams change places, so a processor that remembers its rows would take one for another."""
    sampling = SamplingConfig(max_new_tokens=12, num_samples=n_beams, temperature=0, **settings)
    for prompt in ("ac", "bd"):
        results = search_beams(letters, [prompt], sampling, n_beams)
        assert [tuple(result.token_ids) for result in results] == naive_beams(letters, prompt, sampling, n_beams)


def test_log_probabilities_are_those_of_the_model(letters: TextGenerator) -> None:
    sampling = SamplingConfig(max_new_tokens=N_TOKENS, temperature=0)
    expected = all_texts(letters, "ab", sampling)
    (result,) = search_beams(letters, ["ab"], SamplingConfig(max_new_tokens=N_TOKENS, repetition_penalty=1.2), 8)
    assert math.fsum(result.log_probabilities) == pytest.approx(expected[tuple(result.token_ids)], abs=1e-4)


def test_one_beam_is_greedy_inside_and_beyond_the_window(build_model: BuildModel) -> None:
    generator = TextGenerator(build_model("llama", vocab_size=V), LETTERS)
    sampling = SamplingConfig(max_new_tokens=100, temperature=0, min_new_tokens=100)
    (greedy,) = generator.generate("ab", sampling)
    (found,) = search_beams(generator, ["ab"], sampling, 1)
    assert (found.token_ids, found.reason) == (greedy.token_ids, "max_new_tokens")


def test_more_beams_find_a_text_that_greedy_decoding_misses(letters: TextGenerator) -> None:
    sampling = SamplingConfig(max_new_tokens=N_TOKENS, temperature=0)
    prompts = ["".join(word) for word in itertools.product("abcd", repeat=3)]

    def totals(results: Sequence[Result]) -> list[float]:
        return [math.fsum(result.log_probabilities) for result in results]

    greedy = totals(letters.generate(prompts, sampling))
    found = totals(search_beams(letters, prompts, sampling, ALL))
    assert all(ours >= theirs - 1e-5 for ours, theirs in zip(found, greedy, strict=True))
    assert sum(ours > theirs + 0.01 for ours, theirs in zip(found, greedy, strict=True)) > 5


def test_beams_end_where_texts_end(letters: TextGenerator) -> None:
    class TwoTokens:
        reason = "two_tokens"

        def __call__(self, token_ids: Sequence[Sequence[int]], texts: Sequence[str]) -> list[bool]:
            return [len(row) == 2 for row in token_ids]

    sampling = SamplingConfig(max_new_tokens=20, min_new_tokens=20, stop=("a",), num_samples=4)
    for result in search_beams(letters, ["bc"], sampling, 4):
        assert "a" not in result.text
        assert result.reason == ("stop_string" if LETTERS.encode("a")[0] in result.token_ids else "max_new_tokens")
    plain = SamplingConfig(max_new_tokens=20, min_new_tokens=20, num_samples=2)
    ended = search_beams(letters, ["bc"], plain, 4, criteria=[TwoTokens()])
    assert [(len(result.token_ids), result.reason) for result in ended] == [(2, "two_tokens")] * 2
    (late,) = search_beams(letters, ["bc"], SamplingConfig(min_new_tokens=9, time_limit_seconds=1e-9), 4)
    assert (len(late.token_ids), late.reason) == (1, "time_limit")
    (nothing,) = search_beams(letters, ["bc"], SamplingConfig(suppress_tokens=tuple(range(V))), 4)
    assert (nothing.token_ids, nothing.reason) == ([], "no_candidate")


def test_a_prompt_that_finds_fewer_texts_leaves_the_numbers_of_the_next_alone(letters: TextGenerator) -> None:
    sampling = SamplingConfig(max_new_tokens=3, top_k=1, num_samples=2)
    found = search_beams(letters, ["a", "b"], sampling, 2)
    assert [(result.sample, result.prompt) for result in found] == [(0, "a"), (2, "b")]


def test_a_time_limit_is_one_for_all_prompts(letters: TextGenerator) -> None:
    sampling = SamplingConfig(max_new_tokens=5, min_new_tokens=5, time_limit_seconds=1e-9)
    assert [result.prompt for result in search_beams(letters, ["a", "b"], sampling, 2)] == ["a"]


def test_more_samples_than_beams_are_refused(letters: TextGenerator) -> None:
    with pytest.raises(UserError, match=r"--num-samples \(3\) must not be above --beams \(2\)"):
        search_beams(letters, ["a"], SamplingConfig(num_samples=3), 2)


@pytest.mark.parametrize("score", [mean_log_probability, lambda result: -len(result.text)], ids=["mean", "shortest"])
def test_the_best_of_n_draws_is_the_one_of_the_highest_score(
    letters: TextGenerator, score: Callable[[Result], float]
) -> None:
    sampling = SamplingConfig(num_samples=2, max_new_tokens=12, seed=4)
    drawn = letters.generate(["a", "b"], SamplingConfig(num_samples=10, max_new_tokens=12, seed=4))
    expected = [sorted(drawn[first : first + 5], key=lambda result: -score(result))[0] for first in (0, 5, 10, 15)]
    assert draw_best(letters, ["a", "b"], sampling, 5, score=score) == expected
    assert draw_best(letters, ["a", "b"], sampling, 1) == letters.generate(["a", "b"], sampling)


def test_the_score_of_a_text_is_its_mean_log_probability_and_none_is_worse_than_no_token() -> None:
    result = Result(0, "", "ab", "max_new_tokens", [0, 1], [-1.0, -2.0])
    assert mean_log_probability(result) == -1.5
    assert mean_log_probability(Result(0, "", "", "no_candidate", [], [])) == -math.inf
