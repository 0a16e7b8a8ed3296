"""Draws against the probabilities they must follow, by formula and by torch.multinomial."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from command_line import UserError
from generation.logits_processors.truncation import Temperature, TopK
from generation.sampling import NO_CANDIDATE, UniformNumbers, draw, most_probable, uniform_block

WORDS = ["closer", "every", "effort", "forward", "inches", "moves", "pizza", "toward", "you"]
TEXTBOOK_LOGITS = torch.tensor([[4.51, 0.89, -1.90, 6.75, 1.63, -1.62, -1.89, 6.28, 1.79]])
NO_TOKENS, NO_LENGTHS = torch.empty(1, 0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    """Pearson's statistic over the possible outcomes; impossible ones must not have happened."""
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    expected = probabilities[possible] * counts.sum()
    return float(((counts[possible] - expected) ** 2 / expected).sum())


def limit_of(n_outcomes: int) -> float:
    """Where a chi-square statistic lies with probability 1e-4, by Wilson and Hilferty's approximation (1931)."""
    freedom = n_outcomes - 1
    return freedom * (1 - 2 / (9 * freedom) + 3.72 * math.sqrt(2 / (9 * freedom))) ** 3


def draw_many(logits: Tensor, n_draws: int, seed: int = 0) -> Tensor:
    """How often each token is drawn: (1, V) → (V,)."""
    uniforms = torch.from_numpy(np.concatenate([uniform_block(seed, 0, b) for b in range(-(-n_draws // 64))])[:n_draws])
    return draw(logits.expand(n_draws, -1), uniforms).bincount(minlength=logits.shape[1])


def entropy(logits: Tensor) -> float:
    probabilities = logits.double().softmax(-1)
    return float(torch.special.entr(probabilities).sum())


def test_textbook_greedy_picks_forward() -> None:
    assert WORDS[int(most_probable(TEXTBOOK_LOGITS))] == "forward"


def test_textbook_top_3_keeps_closer_forward_toward() -> None:
    kept = TopK(3)(NO_TOKENS, TEXTBOOK_LOGITS, NO_LENGTHS)[0].isfinite()
    assert {word for word, is_kept in zip(WORDS, kept, strict=True) if is_kept} == {"closer", "forward", "toward"}


def test_textbook_temperature_5_flattens_and_a_tenth_sharpens() -> None:
    at = {t: entropy(Temperature(t)(NO_TOKENS, TEXTBOOK_LOGITS, NO_LENGTHS)) for t in (0.1, 1.0, 5.0)}
    by_hand = {t: (TEXTBOOK_LOGITS.double() / t).softmax(-1) for t in at}
    for temperature, probabilities in by_hand.items():
        expected = float(-(probabilities * probabilities.log()).sum())
        assert at[temperature] == pytest.approx(expected, abs=1e-5)
    assert at[0.1] < 0.1 < at[1.0] < 1.3 < at[5.0]


def test_textbook_draws_follow_the_probabilities() -> None:
    probabilities = TEXTBOOK_LOGITS[0].double().softmax(-1)
    assert chi_square(draw_many(TEXTBOOK_LOGITS, 10_000), probabilities) < limit_of(len(WORDS))


def test_draws_and_torch_multinomial_have_the_same_distribution() -> None:
    torch.manual_seed(3)
    logits = 2 * torch.randn(1, 12)
    n_draws = 40_000
    ours = draw_many(logits, n_draws).double()
    theirs = torch.multinomial(logits.softmax(-1)[0], n_draws, replacement=True).bincount(minlength=12).double()
    # Two samples of equal size: sum of (a − b)² / (a + b) is chi-square distributed.
    assert float(((ours - theirs) ** 2 / (ours + theirs)).sum()) < limit_of(12)


def test_every_draw_is_the_token_whose_interval_holds_the_number() -> None:
    torch.manual_seed(4)
    logits = torch.randn(200, 30).masked_fill(torch.rand(200, 30) < 0.5, -torch.inf)
    uniforms = torch.rand(200, dtype=torch.float64)
    for row, number, chosen in zip(logits.double(), uniforms.tolist(), draw(logits, uniforms).tolist(), strict=True):
        edges = row.softmax(-1).cumsum(-1).tolist()
        assert (edges[chosen - 1] if chosen else 0.0) - 1e-12 <= number <= edges[chosen] + 1e-12


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2.0**-53])
def test_a_banned_token_is_never_drawn_even_at_the_borders(uniform: float) -> None:
    logits = torch.full((1, 50_000), -torch.inf)
    logits[0, 1:-1] = 0.1
    logits[0, 25_000] = -torch.inf
    assert logits[0, draw(logits, torch.tensor([uniform], dtype=torch.float64))].isfinite()


@pytest.mark.parametrize("shift", [-2000.0, 2000.0])
def test_a_shift_of_all_logits_changes_no_draw(shift: float) -> None:
    logits, uniforms = torch.tensor([[0.0, 1.0, 2.0]]).expand(20, -1), torch.arange(20, dtype=torch.float64) / 20
    assert torch.equal(draw(logits + shift, uniforms), draw(logits, uniforms))


def test_a_row_without_candidates_draws_none_and_leaves_the_others_alone() -> None:
    logits = torch.tensor([[-torch.inf, -torch.inf], [-torch.inf, 3.0]])
    uniforms = torch.tensor([0.3, 0.3], dtype=torch.float64)
    assert draw(logits, uniforms).tolist() == [NO_CANDIDATE, 1]
    assert most_probable(logits).tolist() == [NO_CANDIDATE, 1]


@pytest.mark.parametrize(("logit", "message"), [(torch.nan, "not numbers"), (torch.inf, r"infinite \(\+inf\)")])
def test_logits_without_probabilities_are_named(logit: float, message: str) -> None:
    logits = torch.tensor([[1.0, 2.0], [logit, 3.0]])
    with pytest.raises(UserError, match=message):
        draw(logits, torch.tensor([0.3, 0.3], dtype=torch.float64))
    with pytest.raises(UserError, match=message):
        most_probable(logits)


def test_random_numbers_depend_on_seed_sample_and_step_alone() -> None:
    whole = UniformNumbers(7, range(5))
    expected = [whole.at(step).tolist() for step in range(150)]
    for sample in (0, 3):
        alone = UniformNumbers(7, [sample])
        assert [alone.at(step).item() for step in range(150)] == [numbers[sample] for numbers in expected]
    shrinking = UniformNumbers(7, range(5))
    shrinking.at(10)
    shrinking.keep_rows([4, 1])
    for step in (10, 63, 64, 149):
        assert shrinking.at(step).tolist() == [expected[step][4], expected[step][1]]


def test_random_numbers_are_uniform_and_differ_between_seeds_samples_and_steps() -> None:
    numbers = np.stack([uniform_block(seed, sample, b) for seed in (0, 1) for sample in range(50) for b in (0, 1)])
    flat = numbers.ravel()
    assert len(np.unique(flat)) == flat.size
    counts = torch.from_numpy(np.histogram(flat, bins=20, range=(0, 1))[0])
    assert chi_square(counts, torch.full((20,), 1 / 20)) < limit_of(20)
    # Neighbouring streams must not move together.
    assert abs(np.corrcoef(numbers[0::4].ravel(), numbers[2::4].ravel())[0, 1]) < 0.05


def test_random_numbers_are_philox_4x64_of_seed_sample_and_step() -> None:
    generator = np.random.Generator(np.random.Philox(key=np.array([11, 5], dtype=np.uint64)))
    expected = generator.random(192)
    actual = np.concatenate([uniform_block(11, 5, block) for block in range(3)])
    assert np.array_equal(actual, expected)
