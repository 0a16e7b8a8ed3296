"""Who takes part in the comparison of guided texts, and what is measured of them.

The tales are halved by a fixed shuffle. One half trains the guide of the mood; the other trains those who judge it, the
classifier and the model of the perplexity. Attributes by rule are learned from samples that no arm uses again.
"""

from __future__ import annotations

import functools
import json
import math
import random
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.guided_texts import (
    N_TOKENS,
    TextFolder,
    Texts,
    accepted,
    as_results,
    best_of,
    guide_scores,
    telling_tokens,
)
from benchmarks.machine import PROJECT
from benchmarks.text_measures import Judge, distinct, judge_accuracy, repetition, wilson_interval
from command_line import UserError
from data.sources import open_source
from generation.text_generator import TextGenerator
from model.checkpoint import read_card
from training.attributes import asks_a_question, ends_with_a_sentence, tells_of_the_sea
from training.discriminator_config import DiscriminatorConfig
from training.own_samples import label_by
from training.train_discriminator import fit
from training.train_discriminator import run as train_from_files

STRENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
BONUSES = (2.0, 4.0)
POOL_PARTS, TRAINING_PARTS, MOST_MORE_PARTS = 16, 12, 72
"""Of unguided texts: those that arms choose from, those that teach the guides of the rules, and those that are drawn
beside them, as many as it takes, where the pool holds too few that a rejection accepts."""
RUN, REFERENCE_RUN = "benchmark-guidance", "benchmark-guidance-reference"
RULES: dict[str, Callable[[str], bool]] = {
    rule.__name__: rule for rule in (tells_of_the_sea, asks_a_question, ends_with_a_sentence)
}
N_TELLING_TOKENS = 100


@dataclass(frozen=True)
class Attribute:
    """Something that texts can have: who guides towards it and who judges it."""

    name: str
    guide: Path
    holds: Callable[[Sequence[str]], list[bool]]
    telling_tokens: list[int]
    """What a word bonus favours."""
    strengths: tuple[float, ...]


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


def tales_in_halves() -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """The English tales, whether each is gloomy, in two random halves."""
    tales = [
        (text, mood == "gloomy")
        for mood in ("gloomy", "bright")
        for text in open_source(str(PROJECT / "data" / "tales" / "en" / f"{mood}.txt")).documents()
    ]
    random.Random(0).shuffle(tales)
    return tales[::2], tales[1::2]


class Study:
    """Language model, reference model, judge and guides, each trained where it is missing."""

    def __init__(self, n_texts: int, *, quick: bool = False) -> None:
        self._suffix, self._steps = ("-quick", "20") if quick else ("", "500")
        self._folder = PROJECT / "checkpoints" / f"{RUN}{self._suffix}"
        self._guide_tales, self._judge_tales = tales_in_halves()
        self.language_model_command = f"python train.py --run {RUN}{self._suffix} --preset mini --steps {self._steps}"
        self._path = self._trained(self.language_model_command)
        self._generator = TextGenerator.load(self._path, "cpu", "fp32")
        self._texts = TextFolder(self._generator, self._folder / f"{n_texts}-texts", n_texts)

    # ---- who takes part -------------------------------------------------------------------------------------------

    def _trained(self, command: str) -> Path:
        _, script, *words = shlex.split(command)
        path = PROJECT / "checkpoints" / words[words.index("--run") + 1] / "best.pt"
        is_finished = path.exists() and read_card(path)["provenance"]["step"] == int(self._steps)
        if not is_finished:
            done = subprocess.run([sys.executable, script, *words, "--resume"], cwd=PROJECT)
            if done.returncode:
                raise UserError(f"{command} failed; call it by itself to see why")
        return path

    def _write_tales(self, name: str, tales: Sequence[tuple[str, bool]]) -> Path:
        path = self._folder / f"{name}.txt"
        path.write_text("\n<|endoftext|>\n".join(text for text, _ in tales), encoding="utf-8")
        return path

    @functools.cached_property
    def _pool(self) -> list[Texts]:
        return [self._texts.unguided(part) for part in range(POOL_PARTS)]

    @functools.cached_property
    def _reference(self) -> TextGenerator:
        """Another tokenizer, seed and half of the tales than anything that is measured with it."""
        tales = self._write_tales("judge", self._judge_tales)
        words = f"--preset mini --steps {self._steps} --seed 7 --tokenizer bpe:1024 --data {shlex.quote(str(tales))}"
        path = self._trained(f"python train.py --run {REFERENCE_RUN}{self._suffix} {words}")
        return TextGenerator.load(path, "cpu", "fp32")

    def rules(self) -> Iterator[Attribute]:
        """The attributes that a program checks."""
        for name, rule in RULES.items():
            yield self._by_rule(name, rule)

    def mood(self) -> Attribute:
        """Judged by a classifier of other tales; trained only when a text is to be judged."""
        guide = self._folder / "gloomy.pt"
        if not guide.exists():
            files = [
                str(self._write_tales(name, [tale for tale in self._guide_tales if tale[1] == is_gloomy]))
                for name, is_gloomy in (("gloomy", True), ("bright", False))
            ]
            config = DiscriminatorConfig(
                desired=(files[0],),
                undesired=(files[1],),
                own_samples=40 if self._suffix else 7500,
                sample_tokens=N_TOKENS,
                epochs=5,
                batch_texts=64,
                output=str(guide),
                device="cpu",
            )
            train_from_files(config, self._path, "python -m benchmarks.guidance")
        encode = self._generator.tokenizer.encode
        ids = {side: [encode(text) for text, mood in self._guide_tales if mood == side] for side in (True, False)}
        telling = telling_tokens(ids[True], ids[False], N_TELLING_TOKENS)
        return Attribute("gloomy", guide, lambda texts: self.judge.holds(texts), telling, STRENGTHS)

    def _by_rule(self, name: str, rule: Callable[[str], bool]) -> Attribute:
        samples = [
            result
            for part in range(POOL_PARTS, POOL_PARTS + TRAINING_PARTS)
            for result in as_results(self._texts.unguided(part))
        ]
        guide = self._folder / f"{name}.pt"
        if not guide.exists():
            config = DiscriminatorConfig(
                rule=f"training/attributes.py:{name}",
                samples=len(samples),
                sample_tokens=N_TOKENS,
                epochs=6,
                batch_texts=64,
                output=str(guide),
                device="cpu",
            )
            label = name.replace("_", "-")
            texts = label_by(lambda text: label if rule(text) else f"not-{label}", samples, self._generator, 0.2)
            fit(config, self._generator, texts, guide, "python -m benchmarks.guidance")
        ids: dict[bool, list[list[int]]] = {True: [], False: []}
        for result in samples:
            ids[rule(result.text)].append(result.token_ids)
        tokens = telling_tokens(ids[True], ids[False], N_TELLING_TOKENS)
        return Attribute(name, guide, lambda texts: [rule(text) for text in texts], tokens, STRENGTHS)

    @functools.cached_property
    def judge(self) -> Judge:
        """Trained on whole tales and on their beginnings, since the texts that it judges end early."""
        return Judge([form for forms in self._judged_forms for form in forms])

    @functools.cached_property
    def judge_accuracy(self) -> tuple[float, float]:
        """On held-out whole tales, and on beginnings as long as the texts of the arms."""
        whole, beginnings = self._kept("judge", lambda: judge_accuracy(self._judged_forms))
        return whole, beginnings

    def _kept(self, name: str, measure: Callable[[], list[Any]]) -> list[Any]:
        """What was measured before an interruption, else measured now; delete the folder to measure all anew."""
        path = self._texts.folder / f"measured_{name}.json"
        if not path.exists():
            found = json.dumps(measure(), ensure_ascii=False)
            path.write_text(found, encoding="utf-8")
        return list(json.loads(path.read_text(encoding="utf-8")))

    @property
    def _judged_forms(self) -> list[list[tuple[str, bool]]]:
        tokenizer = self._generator.tokenizer
        return [
            [(text, mood), (tokenizer.decode(tokenizer.encode(text)[:N_TOKENS]), mood)]
            for text, mood in self._judge_tales
        ]

    def held_out_quality(self, names: Iterable[str]) -> dict[str, Any]:
        """What the training of each guide reported on texts that it did not see."""
        return {name: read_card(self._folder / f"{name}.pt")["provenance"]["held_out"] for name in names}

    # ---- what is measured -----------------------------------------------------------------------------------------

    def measure(self, attribute: Attribute) -> list[Arm]:
        """All arms of an attribute."""
        return [
            Arm(**row) for row in self._kept(attribute.name, lambda: [asdict(arm) for arm in self._arms(attribute)])
        ]

    def _arms(self, attribute: Attribute) -> list[Arm]:
        name, guide = attribute.name, attribute.guide
        ways = [("unguided", "unguided", self._pool[0]), ("rejection", "rejection", self._rejection(attribute))]
        for n in (4, 16):
            best = best_of(self._pool, n, lambda ids: guide_scores(guide, self._generator, ids))
            ways.append((f"best of {n}", "best of", best))
        for bonus in BONUSES:
            drawn = self._texts.with_bonus(f"{name} word bonus {bonus:g}", attribute.telling_tokens, bonus)
            ways.append((f"word bonus {bonus:g}", "word bonus", drawn))
        for mode in ("exact", "fast"):
            for strength in attribute.strengths:
                strengths = ((str(guide), strength),)
                drawn = self._texts.guided(f"{name} {mode} {strength:g}", strengths, fast=mode == "fast")
                ways.append((f"{mode} {strength:g}", mode, drawn))
        return [self._arm(attribute, *way) for way in ways]

    def _rejection(self, attribute: Attribute) -> Texts:
        parts = list(self._pool)
        holds = [has_it for part in parts for has_it in attribute.holds(part.texts)]
        first = POOL_PARTS + TRAINING_PARTS
        for number in range(first, first + (0 if self._suffix else MOST_MORE_PARTS)):
            if sum(holds) >= len(parts[0].texts):
                break
            parts.append(self._texts.unguided(number))
            holds += attribute.holds(parts[-1].texts)
        return accepted(parts, holds)

    def _arm(self, attribute: Attribute, name: str, mode: str, drawn: Texts) -> Arm:
        base, n = self._pool[0], len(drawn.texts)
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
        tokenizer, model = self._reference.tokenizer, self._reference.model
        end, ends = tokenizer.end_of_text, self._generator.tokenizer.end_of_text
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
        drawn = self._texts.guided("bright exact 2", ((f"{self._folder / 'gloomy.pt'}:bright", 2.0),))
        rate = 1 - sum(self.judge.holds(drawn.texts)) / len(drawn.texts)
        return {"name": "exact 2", "rate": rate, "first_texts": drawn.texts[:3]}
