"""Texts of one language model, guided in every way that is compared; each way is drawn once and kept on disk."""

from __future__ import annotations

import functools
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from generation.config import SamplingConfig
from generation.discriminators import load_guide, text_start
from generation.guidance import Guidance
from generation.logits_processors.base import LogitsProcessor, Stage
from generation.text_generator import Result, TextGenerator
from model.checkpoint import load_checkpoint
from model.discriminator import discriminator_from_checkpoint, log_odds

N_TOKENS, N_CANDIDATES = 64, 50
"""The longest text, and the tokens of the model among which every way chooses: the same truncation everywhere."""

Strengths = tuple[tuple[str, float], ...]
"""Discriminators, each FILE or FILE:LABEL, and how strongly they steer."""


@dataclass(frozen=True)
class Texts:
    """What one way of drawing gave, and what it cost."""

    name: str
    texts: list[str]
    token_ids: list[list[int]]
    drawn_tokens: int
    """Of all texts that were drawn, also of those that were thrown away."""
    cpu_seconds: float
    """Of this process: on a machine shared with others it says more than the clock."""

    @functools.cached_property
    def tokens_per_second(self) -> float:
        """Tokens that were kept by processor time of all that were drawn."""
        return sum(map(len, self.token_ids)) / self.cpu_seconds


class TextFolder:
    """Draws texts of a language model once and keeps them in a folder, so that an interrupted comparison goes on."""

    def __init__(self, generator: TextGenerator, folder: Path, n_texts: int) -> None:
        self.generator = generator
        self.folder = folder
        self.n_texts = n_texts
        folder.mkdir(parents=True, exist_ok=True)

    def unguided(self, part: int = 0) -> Texts:
        """`n_texts` texts without any guidance; other parts are other texts."""
        return self._drawn(f"unguided {part}", [], seed=part)

    def guided(self, name: str, strengths: Strengths, *, fast: bool = False) -> Texts:
        """Texts steered by discriminators; the same seed as the first unguided part."""
        tokenizer = self.generator.tokenizer
        guides = [load_guide(spec, strength, tokenizer, fast=fast) for spec, strength in strengths]
        return self._drawn(name, [Guidance(guides, N_CANDIDATES)])

    def with_bonus(self, name: str, tokens: Sequence[int], bonus: float) -> Texts:
        """Texts in which every token of a list has a constant bonus on its logit."""
        return self._drawn(name, [WordBonus(tokens, bonus)])

    def _drawn(self, name: str, processors: list[LogitsProcessor], seed: int = 0) -> Texts:
        path = self.folder / f"{name.replace(' ', '_')}.json"
        if path.exists():
            return Texts(**json.loads(path.read_text(encoding="utf-8")))
        sampling = SamplingConfig(
            max_new_tokens=N_TOKENS, temperature=1, top_k=N_CANDIDATES, num_samples=self.n_texts, seed=seed
        )
        started = time.process_time()
        results = self.generator.generate("", sampling, processors=processors)
        seconds = time.process_time() - started
        ids = [result.token_ids for result in results]
        texts = Texts(name, [result.text for result in results], ids, sum(map(len, ids)), seconds)
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(asdict(texts), ensure_ascii=False), encoding="utf-8")
        unfinished.replace(path)
        print(f"{name}: {len(texts.texts)} texts, {texts.drawn_tokens:,} tokens in {seconds:.0f} s", flush=True)
        return texts


class WordBonus:
    """A constant bonus for the tokens of a list: the cheapest way to steer, and a baseline (FUDGE's "WDEC")."""

    stage: Stage = "guidance"

    def __init__(self, tokens: Sequence[int], bonus: float) -> None:
        self.name = f"word_bonus({len(tokens)} tokens, {bonus:g})"
        self._tokens = torch.tensor(tokens)
        self._bonus = bonus

    def __call__(self, token_ids: Tensor, logits: Tensor, prompt_lengths: Tensor) -> Tensor:
        """(B, V) → (B, V)."""
        return logits.index_add(1, self._tokens, torch.full((len(logits), len(self._tokens)), self._bonus))


def telling_tokens(with_it: Sequence[Sequence[int]], without: Sequence[Sequence[int]], n: int) -> list[int]:
    """The n tokens whose share in the texts with an attribute exceeds that in the others most, rare ones left out."""
    counts = [Counter(token for ids in side for token in set(ids)) for side in (with_it, without)]
    n_texts = [len(with_it), len(without)]
    least = max(5, sum(n_texts) // 200)

    def ratio(token: int) -> float:
        shares = [(count[token] + 1) / (total + 2) for count, total in zip(counts, n_texts, strict=True)]
        return math.log(shares[0] / shares[1])

    frequent = [token for token in counts[0] if counts[0][token] + counts[1][token] >= least]
    return sorted(frequent, key=ratio, reverse=True)[:n]


def pooled(parts: Sequence[Texts]) -> list[tuple[str, list[int]]]:
    """All texts of several parts with their tokens."""
    return [pair for part in parts for pair in zip(part.texts, part.token_ids, strict=True)]


def best_of(parts: Sequence[Texts], n: int, score: Callable[[Sequence[Sequence[int]]], list[float]]) -> Texts:
    """Of every n texts of a pool the one that scores highest, as many as one part has."""
    pool = pooled(parts)
    n_texts = min(len(parts[0].texts), len(pool) // n)
    scores = score([ids for _, ids in pool[: n_texts * n]])
    chosen = [max(range(at * n, (at + 1) * n), key=scores.__getitem__) for at in range(n_texts)]
    return _of_pool(f"best of {n}", parts, chosen, n_texts * n)


def accepted(parts: Sequence[Texts], holds: Sequence[bool]) -> Texts:
    """The first texts of a pool that hold, at most as many as one part has: rejection sampling."""
    chosen = [number for number, is_accepted in enumerate(holds) if is_accepted][: len(parts[0].texts)]
    return _of_pool("rejection", parts, chosen, chosen[-1] + 1)


def _of_pool(name: str, parts: Sequence[Texts], chosen: Sequence[int], n_drawn: int) -> Texts:
    pool = pooled(parts)
    share = n_drawn / len(pool)
    return Texts(
        name,
        [pool[number][0] for number in chosen],
        [pool[number][1] for number in chosen],
        sum(len(ids) for _, ids in pool[:n_drawn]),
        share * sum(part.cpu_seconds for part in parts),
    )


@torch.inference_mode()
def guide_scores(path: Path, generator: TextGenerator, token_ids: Sequence[Sequence[int]]) -> list[float]:
    """The log-odds of the first label that a discriminator gives to whole texts."""
    discriminator, _ = discriminator_from_checkpoint(load_checkpoint(path))
    start, scores = text_start(generator.tokenizer), []
    for first in range(0, len(token_ids), 256):
        rows = [[start, *ids] for ids in token_ids[first : first + 256]]
        padded = torch.tensor([[*row, *[0] * (N_TOKENS + 1 - len(row))] for row in rows])
        answers = discriminator(padded)[torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])]
        scores += log_odds(answers, 0).tolist()
    return scores


def as_results(texts: Texts) -> list[Result]:
    """The same as finished samples of the text generator."""
    return [
        Result(number, "", text, "", ids, [])
        for number, (text, ids) in enumerate(zip(texts.texts, texts.token_ids, strict=True))
    ]
