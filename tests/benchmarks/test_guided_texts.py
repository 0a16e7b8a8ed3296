"""What is measured of guided texts, by hand-made cases; and that every arm is drawn once."""

import random
from pathlib import Path

import pytest
import torch

from benchmarks.guided_texts import TextFolder, Texts, WordBonus, accepted, best_of, telling_tokens
from benchmarks.text_measures import Judge, distinct, judge_accuracy, repetition, wilson_interval
from data.tokenizers.utf8_bytes import ByteTokenizer
from generation.text_generator import TextGenerator
from model.config import ModelConfig
from model.gpt import GPT


def test_distinct_counts_ngrams_of_all_texts_together() -> None:
    # the cat sat, cat sat the | the cat sat: three triples, two of them different
    assert distinct(["The cat sat the", "the cat sat"], 3) == pytest.approx(2 / 3)
    assert distinct(["a b", ""], 3) == 0


def test_repetition_counts_what_a_text_itself_has_held_before() -> None:
    assert repetition(["a b a b a b"], 2) == pytest.approx(3 / 5)
    assert repetition(["a b", "a b"], 2) == 0


def test_the_interval_is_wilsons() -> None:
    # 8 of 10, by the formula by hand.
    low, high = wilson_interval(0.8, 10)
    assert [low, high] == pytest.approx([0.490, 0.943], abs=1e-3)
    assert wilson_interval(1.0, 500)[0] > 0.99


def _texts(chance: random.Random, n: int) -> list[tuple[str, bool]]:
    """Six words each; gloomy ones hold more rain, bright ones more sun."""
    labels = [chance.random() < 0.5 for _ in range(n)]
    return [(" ".join(chance.choices(["rain", "sun", "hill"], [3, 1, 4] if g else [1, 3, 4], k=6)), g) for g in labels]


def test_the_judge_comes_near_the_best_possible_answers() -> None:
    chance = random.Random(0)
    judge, unseen = Judge(_texts(chance, 400)), _texts(chance, 400)
    answers = judge.holds([text for text, _ in unseen])
    # Bayes: more rain than sun is gloomy; equal counts are a coin.
    counts = [text.count("rain") - text.count("sun") for text, _ in unseen]
    best = sum(0.5 if c == 0 else (c > 0) == g for c, (_, g) in zip(counts, unseen, strict=True)) / 400
    right = sum(answer == g for answer, (_, g) in zip(answers, unseen, strict=True)) / 400
    assert right > best - 0.05
    assert all(answer == (c > 0) for answer, c in zip(answers, counts, strict=True) if abs(c) >= 3)


def test_no_text_is_judged_by_what_was_learned_from_it() -> None:
    """Labels at random, every text twice: only one who has seen a form of the text could be right more often."""
    chance = random.Random(1)
    texts = [(f"word{number} " * 3, chance.random() < 0.5) for number in range(200)]
    for accuracy in judge_accuracy([[text, text] for text in texts]):
        assert accuracy < 0.62


POOL = [
    Texts("one", ["a", "b", "c", "d"], [[1], [2, 2], [3], [4]], 5, 2.0),
    Texts("two", ["e", "f", "g", "h"], [[5], [6], [7], [8, 8, 8]], 6, 3.0),
]


def test_best_of_n_keeps_the_highest_of_every_n_and_pays_for_all() -> None:
    best = best_of(POOL, 2, lambda ids: [-abs(row[0] - 2.4) for row in ids])
    assert best.texts == ["b", "c", "e", "g"]
    assert best.drawn_tokens == 11
    assert best.tokens_per_second == pytest.approx(5 / 5.0)


def test_rejection_pays_for_what_it_threw_away() -> None:
    kept = accepted(POOL, [False, True, False, False, False, True, False, False])
    assert kept.texts == ["b", "f"]
    assert kept.drawn_tokens == 7  # six texts, the last of which was accepted
    assert kept.cpu_seconds == pytest.approx(5.0 * 6 / 8)


def test_telling_tokens_are_those_of_the_highest_ratio() -> None:
    with_it, without = [[1, 2, 3]] * 20, [[1, 2, 4]] * 18 + [[1, 3]] * 2
    assert telling_tokens(with_it, without, 3) == [3, 2, 1]  # 4 stands in no text that has it


def test_a_word_bonus_raises_only_its_tokens() -> None:
    logits = torch.zeros(2, 5)
    raised = WordBonus([1, 3], 2.5)(torch.zeros(2, 1), logits, torch.ones(2))
    assert raised.tolist() == [[0, 2.5, 0, 2.5, 0]] * 2
    assert not logits.any()


def test_texts_are_drawn_once_and_read_back_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = GPT(ModelConfig(vocab_size=257, context_length=80, n_layer=1, n_head=1, n_embd=8)).eval()
    generator = TextGenerator(model, ByteTokenizer())
    drawn = TextFolder(generator, tmp_path, 3).unguided(1)
    monkeypatch.setattr(generator, "generate", lambda *_, **__: pytest.fail("drawn twice"))
    assert TextFolder(generator, tmp_path, 3).unguided(1) == drawn
    assert len(drawn.texts) == 3
