"""The counting baseline against a slow textbook implementation, by enumeration and by hand."""

import math
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from training.counting import (
    COUNTING_LIMIT_BYTES,
    OUTCOMES,
    character_nats,
    counting_bits_per_byte,
    counting_seconds,
)

END = "\N{END OF TEXT}"


def discount_of(counts: Counter[str]) -> dict[int, float]:
    """Chen and Goodman's three discounts from the numbers of n-grams seen once to four times."""
    seen = Counter(counts.values())
    if not all(seen[k] for k in (1, 2, 3, 4)):
        return {1: 0.5, 2: 1.0, 3: 1.5}
    y = seen[1] / (seen[1] + 2 * seen[2])
    estimates = {k: k - (k + 1) * y * seen[k + 1] / seen[k] for k in (1, 2, 3)}
    return estimates if all(0 < d < k for k, d in estimates.items()) else {1: 0.5, 2: 1.0, 3: 1.5}


class TextbookKneserNey:
    """Modified Kneser–Ney by recursion over dictionaries of strings."""

    def __init__(self, text: str, order: int) -> None:
        self.order = order
        padded = END * order + text
        grams = {n: Counter(padded[i - n + 1 : i + 1] for i in range(order, len(padded))) for n in range(1, order + 2)}
        self.counts = {n: Counter(gram[1:] for gram in grams[n + 1]) for n in range(1, order)}
        self.counts[order] = grams[order]
        self.discounts = {n: discount_of(self.counts[n]) for n in self.counts}
        self.followers: dict[str, Counter[str]] = defaultdict(Counter)
        for n in self.counts:
            for gram, count in self.counts[n].items():
                self.followers[f"{n}{gram[:-1]}"][gram[-1]] += count

    def probability(self, character: str, history: str, n: int | None = None) -> float:
        n = self.order if n is None else n
        if n == 0:
            return 1 / OUTCOMES
        context = history[len(history) - n + 1 :]
        lower = self.probability(character, history, n - 1)
        followers = self.followers.get(f"{n}{context}")
        if not followers:
            return lower
        taken = {w: self.discounts[n][min(count, 3)] for w, count in followers.items()}
        own = followers[character] - taken.get(character, 0)
        return (own + sum(taken.values()) * lower) / followers.total()

    def nats(self, text: str) -> list[float]:
        padded = END * self.order + text
        return [-math.log(self.probability(padded[i], padded[:i])) for i in range(self.order, len(padded))]


def random_text(seed: int, length: int, alphabet: str) -> str:
    """Text whose characters depend on the one before, so that n-grams of every small count occur."""
    generator = random.Random(seed)
    text = alphabet[0]
    while len(text) < length:
        start = alphabet.index(text[-1]) * 3 + 1
        text += alphabet[(start + min(generator.randrange(12), generator.randrange(12))) % len(alphabet)]
    return text


def documents_to_text(documents: list[str]) -> str:
    return "".join(document + END for document in documents)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("alphabet", ["ab", "abcdefghij klm", "武松打虎，天晴 ab😀"])
def test_equals_the_textbook_recursion(order: int, alphabet: str) -> None:
    training = [random_text(seed, 150, alphabet) for seed in range(4)]
    validation = [random_text(9, 60, alphabet), "zß" + random_text(8, 30, alphabet)]
    expected = TextbookKneserNey(documents_to_text(training), order).nats(documents_to_text(validation))
    result = counting_bits_per_byte(training, validation, order)
    n_bytes = len("".join(validation).encode())
    assert result.nats_per_character == pytest.approx(sum(expected) / len(expected), rel=1e-12)
    assert result.bits_per_byte == pytest.approx(sum(expected) / math.log(2) / n_bytes, rel=1e-12)
    assert result.order == order


@pytest.mark.parametrize("length", [30, 3000])
def test_probabilities_of_everything_that_may_come_next_sum_to_one(length: int) -> None:
    alphabet, unseen = [ord(c) for c in "abcdefgh"] + [0x110000], ord("z")
    training = np.array([ord(c) for c in random_text(1, length, "abcdefgh")] + [0x110000])
    for history in ("", "a", "ab", "abcd", "hgfedcba"):
        text = [np.array([*map(ord, history), w], dtype=np.int64) for w in [*alphabet, unseen]]
        for order in range(5):
            last = [math.exp(-list(character_nats(training, t, 5))[order][-1]) for t in text]
            assert sum(last[:-1]) + (OUTCOMES - len(alphabet)) * last[-1] == pytest.approx(1, abs=1e-12)


def test_unigram_by_hand() -> None:
    # a a b b b END: counts 2, 3, 1; no n-gram is seen 4 times, so 0.5, 1 and 1.5 are taken, 3 of 6 in all.
    result = counting_bits_per_byte(["aabbb"], ["bx"], order=1)
    floor = 3 / 6 / OUTCOMES
    expected = -math.log(1.5 / 6 + floor) - math.log(floor) - math.log(0.5 / 6 + floor)
    assert result.nats_per_character == pytest.approx(expected / 3)
    assert result.bits_per_byte == pytest.approx(expected / math.log(2) / 2)


def test_multibyte_characters_count_as_characters_and_divide_by_their_bytes() -> None:
    result = counting_bits_per_byte(["武松打虎" * 20], ["武松打虎"], order=3)
    assert result.bits_per_byte * 12 * math.log(2) == pytest.approx(result.nats_per_character * 5)


def test_the_order_is_chosen_on_the_training_text_alone() -> None:
    training = [random_text(seed, 400, "abcdefghij") for seed in range(5)]
    orders = {counting_bits_per_byte(training, [text]).order for text in ("abc", "zzzzzz", training[0], "武")}
    assert len(orders) == 1


def test_the_chosen_order_follows_how_far_the_text_looks_back() -> None:
    generator = random.Random(0)
    independent = "".join(generator.choice("abcd") for _ in range(20_000))
    looking_back = "abcd"
    while len(looking_back) < 20_000:  # decided by the characters one and three places before
        looking_back += "abcd"[(ord(looking_back[-1]) + 2 * ord(looking_back[-3]) + generator.randrange(2)) % 4]
    assert counting_bits_per_byte([independent], ["abcd"]).order == 1
    assert counting_bits_per_byte([looking_back], ["abcd"]).order >= 4


def test_a_text_of_one_character_is_enough() -> None:
    result = counting_bits_per_byte(["a"], ["a"])
    assert math.isfinite(result.bits_per_byte)
    assert result.order == 1


@pytest.mark.parametrize(("training", "validation"), [([], ["a"]), (["a"], []), (["a"], [""])])
def test_empty_texts_are_refused(training: list[str], validation: list[str]) -> None:
    with pytest.raises(ValueError, match="not empty"):
        counting_bits_per_byte(training, validation)


def test_an_order_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, but is 0"):
        counting_bits_per_byte(["a"], ["a"], order=0)


def test_time_for_counting_is_set_aside_only_where_it_happens() -> None:
    assert counting_seconds(870_000) == pytest.approx(2.6, abs=0.1)  # measured: 2.5 s
    assert counting_seconds(COUNTING_LIMIT_BYTES) == pytest.approx(15)
    assert counting_seconds(COUNTING_LIMIT_BYTES + 1) == 0
