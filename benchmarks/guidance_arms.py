"""The ways of drawing texts that are compared, from unguided to rejection, and what is measured of each."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.guidance_study import MOST_MORE_PARTS, POOL_PARTS, TRAINING_PARTS, Attribute, Study
from benchmarks.guided_texts import Texts, accepted, best_of, guide_scores
from benchmarks.text_measures import distinct, judge_accuracy, repetition, wilson_interval

BONUSES = (2.0, 4.0)


@dataclass(frozen=True)
class Arm:
    """What one way of drawing texts reached."""

    name: str
    mode: str
    n_texts: int
    rate: float
    """Share of texts that have the attribute, by the judge."""
    rate_interval: tuple[float, float]
    """95 %."""
    perplexity_ratio: float
    """Under the reference model, divided by that of unguided texts."""
    distinct_3_ratio: float
    """Different triples of words per triple, divided by that of as many unguided texts."""
    repetition_4: float
    """Share of four words in a row that their text has held before."""
    speed_ratio: float
    """Kept tokens per second, divided by that of unguided texts."""
    first_texts: list[str]
    """The first three, none selected."""


class ArmMeasurer:
    """Measures the arms of a study's attributes; what was measured before an interruption is kept."""

    def __init__(self, study: Study) -> None:
        self._study = study

    @functools.cached_property
    def judge_accuracy(self) -> tuple[float, float]:
        """On held-out whole tales, and on beginnings as long as the texts of the arms."""
        whole, beginnings = self._kept("judge", lambda: judge_accuracy(self._study.judged_forms))
        return whole, beginnings

    def measure(self, attribute: Attribute) -> list[Arm]:
        """All arms of an attribute."""
        return [
            Arm(**row) for row in self._kept(attribute.name, lambda: [asdict(arm) for arm in self._arms(attribute)])
        ]

    def _arms(self, attribute: Attribute) -> list[Arm]:
        name, guide = attribute.name, attribute.guide
        ways = [("unguided", "unguided", self._study.pool[0]), ("rejection", "rejection", self._rejection(attribute))]
        for n in (4, 16):
            best = best_of(self._study.pool, n, lambda ids: guide_scores(guide, self._study.generator, ids))
            ways.append((f"best of {n}", "best of", best))
        for bonus in BONUSES:
            drawn = self._study.texts.with_bonus(f"{name} word bonus {bonus:g}", attribute.telling_tokens, bonus)
            ways.append((f"word bonus {bonus:g}", "word bonus", drawn))
        for mode in ("exact", "fast"):
            for strength in attribute.strengths:
                strengths = ((str(guide), strength),)
                drawn = self._study.texts.guided(f"{name} {mode} {strength:g}", strengths, fast=mode == "fast")
                ways.append((f"{mode} {strength:g}", mode, drawn))
        return [self._arm(attribute, *way) for way in ways]

    def _rejection(self, attribute: Attribute) -> Texts:
        parts = list(self._study.pool)
        holds = [has_it for part in parts for has_it in attribute.holds(part.texts)]
        first = POOL_PARTS + TRAINING_PARTS
        for number in range(first, first + (0 if self._study.quick else MOST_MORE_PARTS)):
            if sum(holds) >= len(parts[0].texts):
                break
            parts.append(self._study.texts.unguided(number))
            holds += attribute.holds(parts[-1].texts)
        return accepted(parts, holds)

    def _arm(self, attribute: Attribute, name: str, mode: str, drawn: Texts) -> Arm:
        base, n = self._study.pool[0], len(drawn.texts)
        rate = sum(attribute.holds(drawn.texts)) / n
        arm = Arm(
            name=name,
            mode=mode,
            n_texts=n,
            rate=rate,
            rate_interval=wilson_interval(rate, n),
            perplexity_ratio=math.exp(self._nats_per_token(drawn) - self._nats_per_token(base)),
            distinct_3_ratio=distinct(drawn.texts, 3) / distinct(base.texts[:n], 3),
            repetition_4=repetition(drawn.texts, 4),
            speed_ratio=drawn.tokens_per_second / base.tokens_per_second,
            first_texts=drawn.texts[:3],
        )
        print(
            f"{attribute.name}, {name}: {rate:.1%} of {n}, perplexity × {arm.perplexity_ratio:.3f}, distinct-3 × "
            f"{arm.distinct_3_ratio:.3f}, repetition {arm.repetition_4:.3f}, speed × {arm.speed_ratio:.2f}",
            flush=True,
        )
        return arm

    @torch.inference_mode()
    def _nats_per_token(self, drawn: Texts) -> float:
        """Surprise of the reference model at the texts, and at their ends where they end, per drawn token."""
        tokenizer, model = self._study.reference.tokenizer, self._study.reference.model
        end, ends = tokenizer.end_of_text, self._study.generator.tokenizer.end_of_text
        rows = [
            [end, *tokenizer.encode(text), *([end] if ids[-1] == ends else [])][: model.config.context_length + 1]
            for text, ids in zip(drawn.texts, drawn.token_ids, strict=True)
        ]
        total = 0.0
        for first in range(0, len(rows), 64):
            batch = rows[first : first + 64]
            width = max(map(len, batch))
            padded = torch.tensor([[*row, *[end] * (width - len(row))] for row in batch])
            counted = torch.arange(1, width) < torch.tensor([len(row) for row in batch]).unsqueeze(1)
            total += float(model.token_losses(padded[:, :-1], padded[:, 1:])[counted].double().sum())
        return total / sum(map(len, drawn.token_ids))

    def first_bright_texts(self) -> dict[str, Any]:
        """The other mood, by the same discriminator: how many texts have it, and the first three."""
        drawn = self._study.texts.guided("bright exact 2", ((f"{self._study.folder / 'gloomy.pt'}:bright", 2.0),))
        rate = 1 - sum(self._study.judge.holds(drawn.texts)) / len(drawn.texts)
        return {"name": "exact 2", "rate": rate, "first_texts": drawn.texts[:3]}

    def _kept(self, name: str, measure: Callable[[], list[Any]]) -> list[Any]:
        """What was measured before an interruption, else measured now; delete the folder to measure all anew."""
        path = self._study.texts.folder / f"measured_{name}.json"
        if not path.exists():
            found = json.dumps(measure(), ensure_ascii=False)
            path.write_text(found, encoding="utf-8")
        return list(json.loads(path.read_text(encoding="utf-8")))
