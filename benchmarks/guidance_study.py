"""Who takes part in the comparison of guided texts; what is measured of them stands in `guidance_arms`.

The tales are halved by a fixed shuffle. One half trains the guide of the mood; the other trains those who judge it, the
classifier and the model of the perplexity. Attributes by rule are learned from samples that no arm uses again.
"""

from __future__ import annotations

import functools
import random
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.guided_texts import (
    N_TOKENS,
    TextFolder,
    Texts,
    as_results,
    telling_tokens,
)
from benchmarks.machine import PROJECT
from benchmarks.text_measures import Judge
from command_line import UserError
from data.sources import open_source
from generation.text_generator import Result, TextGenerator
from model.checkpoint import read_card
from training.attributes import asks_a_question, ends_with_a_sentence, tells_of_the_sea
from training.discriminator_config import DiscriminatorConfig
from training.labels import MIN_TEXTS
from training.own_samples import label_by
from training.train_discriminator import fit
from training.train_discriminator import run as train_from_files

STRENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
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
        self.quick = quick
        self._suffix, self._steps = ("-quick", "100") if quick else ("", "500")
        self.folder = PROJECT / "checkpoints" / f"{RUN}{self._suffix}"
        self._guide_tales, self._judge_tales = tales_in_halves()
        self.language_model_command = f"python train.py --run {RUN}{self._suffix} --preset mini --steps {self._steps}"
        self._path = self._trained(self.language_model_command)
        self.generator = TextGenerator.load(self._path, "cpu", "fp32")
        self.texts = TextFolder(self.generator, self.folder / f"{n_texts}-texts", n_texts)

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
        path = self.folder / f"{name}.txt"
        path.write_text("\n<|endoftext|>\n".join(text for text, _ in tales), encoding="utf-8")
        return path

    @functools.cached_property
    def pool(self) -> list[Texts]:
        """Unguided texts in parts, the first of which every way of guidance is compared with."""
        return [self.texts.unguided(part) for part in range(POOL_PARTS)]

    @functools.cached_property
    def reference(self) -> TextGenerator:
        """Another tokenizer, seed and half of the tales than anything that is measured with it."""
        tales = self._write_tales("judge", self._judge_tales)
        words = f"--preset mini --steps {self._steps} --seed 7 --tokenizer bpe:1024 --data {shlex.quote(str(tales))}"
        path = self._trained(f"python train.py --run {REFERENCE_RUN}{self._suffix} {words}")
        return TextGenerator.load(path, "cpu", "fp32")

    def rules(self) -> Iterator[Attribute]:
        """The attributes that a program checks; when quick, only those that some texts of the hasty model have."""
        for name, rule in RULES.items():
            n_with_it = sum(rule(sample.text) for sample in self._training_samples)
            if self.quick and n_with_it < MIN_TEXTS:
                print(f"quick: {name} is left out, {n_with_it} of {len(self._training_samples)} texts have it")
            else:
                yield self._by_rule(name, rule)

    @functools.cached_property
    def _training_samples(self) -> list[Result]:
        parts = range(POOL_PARTS, POOL_PARTS + TRAINING_PARTS)
        return [result for part in parts for result in as_results(self.texts.unguided(part))]

    def mood(self) -> Attribute:
        """Judged by a classifier of other tales; trained only when a text is to be judged."""
        guide = self.folder / "gloomy.pt"
        if not guide.exists():
            files = [
                str(self._write_tales(name, [tale for tale in self._guide_tales if tale[1] == is_gloomy]))
                for name, is_gloomy in (("gloomy", True), ("bright", False))
            ]
            config = DiscriminatorConfig(
                desired=(files[0],),
                undesired=(files[1],),
                own_samples=40 if self.quick else 7500,
                sample_tokens=N_TOKENS,
                epochs=5,
                batch_texts=64,
                output=str(guide),
                device="cpu",
            )
            train_from_files(config, self._path, "python -m benchmarks.guidance")
        encode = self.generator.tokenizer.encode
        ids = {side: [encode(text) for text, mood in self._guide_tales if mood == side] for side in (True, False)}
        telling = telling_tokens(ids[True], ids[False], N_TELLING_TOKENS)
        return Attribute("gloomy", guide, lambda texts: self.judge.holds(texts), telling, STRENGTHS)

    def _by_rule(self, name: str, rule: Callable[[str], bool]) -> Attribute:
        samples = self._training_samples
        guide = self.folder / f"{name}.pt"
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
            texts = label_by(lambda text: label if rule(text) else f"not-{label}", samples, self.generator, 0.2)
            fit(config, self.generator, texts, guide, "python -m benchmarks.guidance")
        ids: dict[bool, list[list[int]]] = {True: [], False: []}
        for result in samples:
            ids[rule(result.text)].append(result.token_ids)
        tokens = telling_tokens(ids[True], ids[False], N_TELLING_TOKENS)
        return Attribute(name, guide, lambda texts: [rule(text) for text in texts], tokens, STRENGTHS)

    @functools.cached_property
    def judge(self) -> Judge:
        """Trained on whole tales and on their beginnings, since the texts that it judges end early."""
        return Judge([form for forms in self.judged_forms for form in forms])

    @property
    def judged_forms(self) -> list[list[tuple[str, bool]]]:
        """Each tale that the judge knows with its mood, whole and as its beginning."""
        tokenizer = self.generator.tokenizer
        return [
            [(text, mood), (tokenizer.decode(tokenizer.encode(text)[:N_TOKENS]), mood)]
            for text, mood in self._judge_tales
        ]

    def held_out_quality(self, names: Iterable[str]) -> dict[str, Any]:
        """What the training of each guide reported on texts that it did not see."""
        return {name: read_card(self.folder / f"{name}.pt")["provenance"]["held_out"] for name in names}
