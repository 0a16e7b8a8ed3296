"""What is shown about a step: numbers against direct calculation, tokens as readable words."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from data.tokenizers.characters import CharacterTokenizer
from data.tokenizers.utf8_bytes import ByteTokenizer
from generation.config import SamplingConfig
from generation.inspection import (
    BAR_WIDTH,
    Colours,
    bar,
    format_next_tokens,
    format_trace,
    next_tokens,
    pad,
    token_text,
)
from generation.text_generator import TextGenerator
from model.gpt import GPT


def model_probabilities(generator: TextGenerator, prompt: str) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = generator.model(torch.tensor([generator.encode_prompt(prompt)]))
    return logits[0, -1].softmax(-1)


def test_next_tokens_are_the_models_best_with_their_probability_and_chance(generator: TextGenerator) -> None:
    found = next_tokens(generator, "ab", 7, SamplingConfig(temperature=0.5, top_k=3, valid_utf8=False))
    probabilities = model_probabilities(generator, "ab")
    best = probabilities.topk(7)
    assert [token.token_id for token in found.tokens] == best.indices.tolist()
    assert [token.probability for token in found.tokens] == pytest.approx(best.values.tolist(), rel=1e-4)
    # Temperature 0.5 squares the probabilities; top-k 3 leaves three of them.
    squared = best.values[:3] ** 2 / (best.values[:3] ** 2).sum()
    assert [token.chance for token in found.tokens] == pytest.approx([*squared.tolist(), 0, 0, 0, 0], rel=1e-4)
    assert found.entropy == pytest.approx(float(-(probabilities * probabilities.log()).sum()), rel=1e-4)


def test_at_temperature_0_the_best_token_is_certain(generator: TextGenerator) -> None:
    found = next_tokens(generator, "ab", 3, SamplingConfig(temperature=0, valid_utf8=False))
    assert [token.chance for token in found.tokens] == [1, 0, 0]


def test_more_next_tokens_than_the_vocabulary_has_are_all_of_them(generator: TextGenerator) -> None:
    found = next_tokens(generator, "a", 10**6, SamplingConfig())
    assert math.fsum(token.probability for token in found.tokens) == pytest.approx(1, abs=1e-4)


def test_a_table_has_one_line_a_token_and_escapes_the_prompt(generator: TextGenerator) -> None:
    lines = format_next_tokens(next_tokens(generator, "武\n", 4, SamplingConfig()), generator.tokenizer).splitlines()
    assert lines[0].startswith("after '武\\n' (entropy ")
    assert [line.split()[0] for line in lines[2:]] == ["1", "2", "3", "4"]
    assert "█" * BAR_WIDTH in lines[2]


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (" the", "' the'"),
        ("武", "'武'"),
        ("\n", r"'\n'"),
        ("\x1b[31m", r"'\x1b[31m'"),
        ("it's", r"'it\'s'"),
        ("a\\b", r"'a\\b'"),
        ("\u202e", r"'\u202e'"),
    ],
)
def test_tokens_are_shown_readable(raw: str, shown: str) -> None:
    class OneToken(ByteTokenizer):
        def token_bytes(self, token_id: int) -> bytes:
            return raw.encode()

    assert token_text(OneToken(), 0) == shown


def test_half_characters_and_special_tokens_are_shown_as_what_they_are() -> None:
    tokenizer = ByteTokenizer()
    assert token_text(tokenizer, 0xE6) == r"'\xe6'"
    assert token_text(tokenizer, tokenizer.end_of_text) == "<end of text>"
    assert token_text(CharacterTokenizer("ab"), 17) == "<no text, id 17>"


def test_bars_grow_with_their_share() -> None:
    assert bar(0).strip() == ""
    assert bar(1) == "█" * BAR_WIDTH
    assert bar(0.5) == "█" * (BAR_WIDTH // 2) + " " * (BAR_WIDTH // 2)
    assert len({bar(eighth / 8 / BAR_WIDTH) for eighth in range(9)}) == 9


def test_chinese_takes_two_columns() -> None:
    assert pad("武a", 5) == "武a  "


def test_a_trace_tells_what_each_processor_did(generator: TextGenerator) -> None:
    probabilities = model_probabilities(generator, "ab")
    first, second = probabilities.topk(2).indices.tolist()
    settings = SamplingConfig(
        suppress_tokens=(first,), valid_utf8=False, top_k=4, temperature=1, max_new_tokens=1, seed=5
    )
    (result,) = generator.generate("ab", settings, n_alternatives=3, explain=True)
    (trace,) = result.traces
    bans, cut = trace.stages
    assert (bans.stage, bans.candidates_before, bans.candidates_after) == ("bans", 257, 256)
    assert (bans.removed, bans.favourite) == (first, second)
    assert (cut.name, cut.candidates_before, cut.candidates_after, cut.removed) == ("top_k=4", 256, 4, None)
    (token,) = result.token_ids
    kept = probabilities.topk(5)
    assert trace.rank == kept.indices.tolist().index(token) + 1
    assert trace.probability == pytest.approx(float(probabilities[token]), rel=1e-4)
    assert trace.chance == pytest.approx(float(probabilities[token] / kept.values[1:].sum()), rel=1e-4)
    remaining = kept.values[1:] / kept.values[1:].sum()
    assert cut.entropy == pytest.approx(float(-(remaining * remaining.log()).sum()), rel=1e-3)
    assert [alternative.token_id for alternative in trace.alternatives] == probabilities.topk(3).indices.tolist()
    assert trace.alternatives[0].chance == 0


def test_a_trace_as_lines_names_who_took_the_lead_and_colours_only_when_asked(generator: TextGenerator) -> None:
    first = int(model_probabilities(generator, "ab").argmax())
    settings = SamplingConfig(suppress_tokens=(first,), max_new_tokens=1)
    (piece,) = generator.stream("ab", settings, n_alternatives=2, explain=True)
    plain = format_trace(piece, 1, generator.tokenizer, Colours(False))
    assert f"took the lead from {token_text(generator.tokenizer, first)}" in plain
    assert "\x1b" not in plain
    assert "\x1b[31m" in format_trace(piece, 1, generator.tokenizer, Colours(True))


def test_a_step_without_candidates_is_traced_as_such(generator: TextGenerator) -> None:
    settings = SamplingConfig(suppress_tokens=tuple(range(257)))
    (piece,) = generator.stream("ab", settings, n_alternatives=2, explain=True)
    assert piece.reason == "no_candidate"
    assert "no candidate is left" in format_trace(piece, 1, generator.tokenizer, Colours(False))
    assert piece.trace is not None
    assert piece.trace.stages[0].candidates_after == 0


@pytest.mark.parametrize("variant", ["gpt2", "ours"])
def test_tracing_changes_no_text(build_model: Callable[..., GPT], variant: str) -> None:
    generator = TextGenerator(build_model(variant), ByteTokenizer())
    settings: Any = SamplingConfig(num_samples=3, top_p=0.9, no_repeat_ngram=2, max_new_tokens=30)
    traced = [result.text for result in generator.generate("a", settings, explain=True)]
    assert traced == [result.text for result in generator.generate("a", settings)]


def test_json_numbers_are_finite(generator: TextGenerator) -> None:
    (result,) = generator.generate("a", SamplingConfig(top_k=2, max_new_tokens=2), n_alternatives=300, explain=True)
    json.dumps([vars(stage) for trace in result.traces for stage in trace.stages], allow_nan=False)
