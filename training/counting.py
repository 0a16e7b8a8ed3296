"""The honest baseline beside every quality claim: a character n-gram that only counts.

Interpolated Kneser–Ney with three discounts an order (Chen and Goodman 1998, "An Empirical Study of Smoothing
Techniques for Language Modeling", https://people.eecs.berkeley.edu/~klein/cs294-5/chen_goodman.pdf):

    P(w | h) = (c(hw) − D(c(hw))) / c(h) + (what the discounts took) / c(h) · P(w | h without its first character)

The longest n-grams count how often they occur, shorter ones how many different characters stand before them. Below
one character lies a uniform floor over all of Unicode, so that every text has a probability and they sum to one.

Nothing is stored for each n-gram but an integer: the characters of both texts become ids, an n-gram's id is the rank of
(id of its first n − 1 characters, its last character), and all counts are `bincount`s over ids. Memory is a few dozen
bytes a character, whatever the order.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

MAX_ORDER = 10
"""Longest n-gram tried: for texts up to 5 MB, which are those counted here, longer ones are not worth their time."""
OUTCOMES = 0x110000 - 0x800 + 1
"""Everything that may come next: Unicode's code points without surrogates, and the end of the document."""
_END_OF_DOCUMENT = 0x110000
_FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)
"""For texts too small or too regular to hold n-grams of every small count, from which discounts are estimated."""
_HELD_OUT_BLOCKS = 100

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


COUNTING_LIMIT_BYTES = 5_000_000
"""Corpora up to this size are scored by counting beside a run; the counts are held in memory."""


def counting_seconds(corpus_bytes: int) -> float:
    """About how long counting takes beside a run: 2.5 s were measured for 0.87 MB on an AMD EPYC."""
    return 3e-6 * corpus_bytes if corpus_bytes <= COUNTING_LIMIT_BYTES else 0.0


@dataclass(frozen=True)
class CountingResult:
    """How well counting predicts the validation text; ends of documents are predicted too, and count as characters."""

    order: int
    bits_per_byte: float
    nats_per_character: float


def counting_bits_per_byte(
    training_documents: Iterable[str], validation_documents: Iterable[str], order: int | None = None
) -> CountingResult:
    """Score held-out documents by an n-gram of `order` characters counted in the training documents.

    Without an order, the best up to MAX_ORDER is chosen on a tenth of the training text; the validation text has no say
    in it. Bits per byte divide all nats by the UTF-8 bytes of the documents, ends of documents not counted as bytes.
    Raises ValueError for an order below 1 or when one of the two texts is empty.
    """
    if order is not None and order < 1:
        raise ValueError(f"order must be at least 1, but is {order}")
    training, _ = _read(training_documents)
    validation, validation_bytes = _read(validation_documents)
    if not len(training) or not validation_bytes:
        raise ValueError("counting needs a training text and a validation text that are not empty")
    order = order or _best_order(training)
    nats = next(islice(character_nats(training, validation, order), order - 1, None))
    return CountingResult(
        order=order,
        bits_per_byte=float(nats.sum()) / math.log(2) / validation_bytes,
        nats_per_character=float(nats.mean()),
    )


def _read(documents: Iterable[str]) -> tuple[Integers, int]:
    """Code points of all documents, each followed by its end, and their UTF-8 bytes."""
    end = np.array([_END_OF_DOCUMENT], dtype=np.uint32)
    parts: list[npt.NDArray[np.uint32]] = []
    n_bytes = 0
    for document in documents:
        parts += [np.frombuffer(document.encode("utf-32-le"), dtype=np.uint32), end]
        n_bytes += len(document.encode("utf-8"))
    return np.concatenate(parts or [end[:0]]).astype(np.int64), n_bytes


def _best_order(training: Integers) -> int:
    """The order that predicts a tenth of the training text best; the tenth is taken evenly from all over it."""
    block = np.arange(len(training)) * _HELD_OUT_BLOCKS // len(training)
    held_out = block % 10 == 5
    if not held_out.any():
        return 1
    losses = [nats.sum() for nats in character_nats(training[~held_out], training[held_out], MAX_ORDER)]
    return 1 + int(np.argmin(losses))


def character_nats(training: Integers, validation: Integers, max_order: int) -> Iterator[Floats]:
    """Yield the cost in nats of each validation character, (characters,), by the models of order 1 … `max_order`.

    Both texts are code points; before each stands the end of an earlier document.
    """
    padding = np.full(max_order, _END_OF_DOCUMENT, dtype=np.int64)
    alphabet, characters = np.unique(np.concatenate([padding, training, padding, validation]), return_inverse=True)
    train = slice(max_order, max_order + len(training))
    judged = slice(len(characters) - len(validation), len(characters))

    context_ids = np.zeros_like(characters)  # of the n − 1 characters before each position
    gram_ids = characters  # of the n characters that end at each position
    lower = np.full(len(validation), 1 / OUTCOMES)
    for _ in range(max_order):
        counts = np.bincount(gram_ids[train], minlength=int(gram_ids.max()) + 1)
        yield -np.log(_interpolate(gram_ids, context_ids, counts, train, judged, lower))
        longer_ids = _ranks(_shifted(gram_ids) * len(alphabet) + characters)
        # What stands before an n-gram: each different (n + 1)-gram counts once for the n-gram that it ends with.
        distinct = _last_positions(longer_ids, train)
        continuations = np.bincount(gram_ids[distinct], minlength=len(counts))
        lower = _interpolate(gram_ids, context_ids, continuations, train, judged, lower)
        context_ids, gram_ids = _shifted(gram_ids), longer_ids


def _interpolate(
    gram_ids: Integers, context_ids: Integers, counts: Integers, train: slice, judged: slice, lower: Floats
) -> Floats:
    """Probability of each judged character from the counts of one order and the probabilities of the order below."""
    discounts = _discounts(counts)  # by count: 0, 1, 2, 3 or more
    distinct = _last_positions(gram_ids, train)
    distinct_counts, distinct_contexts = counts[gram_ids[distinct]], context_ids[distinct]
    n_contexts = int(context_ids.max()) + 1
    totals = np.bincount(distinct_contexts, weights=distinct_counts, minlength=n_contexts)
    taken = np.bincount(distinct_contexts, weights=discounts[np.minimum(distinct_counts, 3)], minlength=n_contexts)

    own = counts[gram_ids[judged]]
    total = totals[context_ids[judged]]
    known = total > 0
    own_mass = own - discounts[np.minimum(own, 3)]
    mixed = own_mass + taken[context_ids[judged]] * lower
    return np.where(known, mixed / np.where(known, total, 1), lower)


def _discounts(counts: Integers) -> Floats:
    """What is taken from n-grams counted 0, 1, 2 and 3 or more times: (4,), from how many n-grams have each count."""
    n1, n2, n3, n4 = (int(np.count_nonzero(counts == count)) for count in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return np.array([0.0, *_FALLBACK_DISCOUNTS])
    y = n1 / (n1 + 2 * n2)
    estimates = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    # Every discount must leave something and take something, or a character never seen would have no probability.
    usable = all(0 < estimate < count for count, estimate in enumerate(estimates, start=1))
    return np.array([0.0, *(estimates if usable else _FALLBACK_DISCOUNTS)])


def _ranks(keys: Integers) -> Integers:
    return np.unique(keys, return_inverse=True)[1]


def _shifted(ids: Integers) -> Integers:
    """What stood one position before; the first positions are padding that nothing is counted from."""
    return np.concatenate([ids[:1], ids[:-1]])


def _last_positions(ids: Integers, part: slice) -> Integers:
    """One position in `part` for each different id there."""
    positions = np.full(int(ids.max()) + 1, -1, dtype=np.int64)
    positions[ids[part]] = np.arange(part.start, part.stop)
    return positions[positions >= 0]
