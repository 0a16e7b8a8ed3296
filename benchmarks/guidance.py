"""Does guidance reach the mood that was asked for, at what price in quality, variety and time?"""

from __future__ import annotations

import math
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.machine import PROJECT
from benchmarks.measuring import OURS, Comparison, Target, alternate, compare
from benchmarks.report import BenchmarkConfig, Report, run_benchmark

if TYPE_CHECKING:
    from generation.guidance import Guide
    from generation.text_generator import Result, TextGenerator
    from model.gpt import GPT

N_TEXTS, N_TOKENS, N_CANDIDATES = 500, 64, 50
STRENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0)
DESIRED, OTHER = "gloomy", "bright"
COST_STEPS = 40


class NaiveBayes:
    """The judge: words counted in tales that the guide never saw, nothing like the guide in its workings."""

    def __init__(self, texts: Sequence[tuple[str, bool]]) -> None:
        self.counts = {
            mood: Counter(word for text, is_mood in texts if is_mood == mood for word in words(text))
            for mood in (True, False)
        }
        self.vocabulary = len(self.counts[True] | self.counts[False])

    def holds(self, text: str) -> bool:
        """Whether the text is of the desired mood; moods are equally frequent beforehand."""
        return sum(self._evidence(word) for word in words(text)) > 0

    def _evidence(self, word: str) -> float:
        share = [(counts[word] + 1) / (counts.total() + self.vocabulary) for counts in self.counts.values()]
        return math.log(share[0] / share[1])


def words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return [word.strip(".,;:!?\"'“”’") for word in text.lower().split()]


@dataclass(frozen=True)
class Arm:
    """What one way of drawing texts reached."""

    name: str
    n_texts: int
    rate: float
    """Share of texts of the desired mood, by the judge."""
    rate_interval: tuple[float, float]
    """95 % (Wilson 1927)."""
    perplexity_ratio: float
    """Per token, under a counting model, divided by that of unguided texts."""
    distinct_3: float
    """Different triples of words per triple."""
    tokens_per_second: float
    first_texts: list[str]
    """The first three drawn, none selected."""


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of n."""
    z = 1.96
    centre, spread = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)


def distinct_3(texts: Iterable[str]) -> float:
    """Different triples of words per triple, over all texts together."""
    triples = [triple for text in texts for triple in zip(*(words(text)[at:] for at in range(3)), strict=False)]
    return len(set(triples)) / max(1, len(triples))


class Evaluation:
    """One language model, one guide, one judge; every arm is measured alike."""

    def __init__(self, generator: TextGenerator, folder: Path, n_texts: int) -> None:
        self.generator = generator
        self.n_texts = n_texts
        guide_texts, rest = self._split()
        cut = len(rest) * 4 // 5
        self.judge = NaiveBayes(rest[:cut])
        self.judge_accuracy = statistics.mean(self.judge.holds(text) == mood for text, mood in rest[cut:])
        self.reference = [text for text, _ in rest]
        self.guide_file = self._train_guide(guide_texts, folder)
        self.base_nats: float | None = None

    def _split(self) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
        """Half of the tales for the guide, the other half for the judge and the counting model."""
        from data.sources import open_source

        tales = [
            (text, mood == DESIRED)
            for mood in (DESIRED, OTHER)
            for text in open_source(str(PROJECT / "data" / "tales" / "en" / f"{mood}.txt")).documents()
        ]
        random.Random(0).shuffle(tales)
        return tales[::2], tales[1::2]

    def _train_guide(self, texts: list[tuple[str, bool]], folder: Path) -> Path:
        from training.discriminator_config import DiscriminatorConfig
        from training.train_discriminator import run

        files = {True: folder / f"{DESIRED}.txt", False: folder / f"{OTHER}.txt"}
        for mood, path in files.items():
            path.write_text("\n<|endoftext|>\n".join(text for text, of in texts if of == mood), encoding="utf-8")
        config = DiscriminatorConfig(
            desired=(str(files[True]),), undesired=(str(files[False]),), output=str(folder / "guide.pt"), device="cpu"
        )
        return run(config, self.model_path, "benchmarks.guidance")

    @property
    def model_path(self) -> Path:
        """The language model's file: the newest run's best."""
        from model.checkpoint import newest_run_checkpoint

        return newest_run_checkpoint(PROJECT / "checkpoints")

    def guide(self, strength: float, *, fast: bool = False) -> Guide:
        """The guide towards the desired mood."""
        from generation.discriminators import load_guide

        return load_guide(str(self.guide_file), strength, self.generator.tokenizer, fast=fast)

    def draw(self, n_texts: int, guide: Guide | None = None, seed: int = 0) -> tuple[list[Result], float]:
        """Texts from an empty prompt, with the same truncation in every arm, and the seconds they took."""
        from generation.config import SamplingConfig
        from generation.guidance import Guidance

        sampling = SamplingConfig(
            max_new_tokens=N_TOKENS, temperature=1, top_k=N_CANDIDATES, num_samples=n_texts, seed=seed
        )
        processors = [] if guide is None else [Guidance([guide], N_CANDIDATES)]
        started = time.perf_counter()
        results = self.generator.generate("", sampling, processors=processors)
        return results, time.perf_counter() - started

    def arm(self, name: str, results: Sequence[Result], n_drawn_tokens: int, seconds: float) -> Arm:
        """Judge the texts of one arm; the first arm measured is the base of the perplexities."""
        from training.counting import counting_bits_per_byte

        texts = [result.text for result in results if result.text.strip()]
        rate = statistics.mean(self.judge.holds(text) for text in texts)
        n_tokens = sum(len(result.token_ids) for result in results)
        n_characters = sum(len(text) + 1 for text in texts)
        nats = counting_bits_per_byte(self.reference, texts, order=6).nats_per_character * n_characters / n_tokens
        self.base_nats = nats if self.base_nats is None else self.base_nats
        arm = Arm(
            name=name,
            n_texts=len(texts),
            rate=rate,
            rate_interval=wilson(rate, len(texts)),
            perplexity_ratio=math.exp(nats - self.base_nats),
            distinct_3=distinct_3(texts),
            tokens_per_second=n_drawn_tokens / seconds,
            first_texts=texts[:3],
        )
        print(
            f"{name}: {rate:.1%} of the mood, perplexity × {arm.perplexity_ratio:.2f}, distinct-3 {arm.distinct_3:.3f}",
            flush=True,
        )
        return arm

    def run(self) -> list[Arm]:
        """All arms: unguided, rejection, best of N by the guide, exact and fast guidance."""
        pool, seconds = self.draw(16 * self.n_texts)
        n_tokens, share = sum(len(result.token_ids) for result in pool), 1 / 16
        arms = [self.arm("unguided", pool[: self.n_texts], round(n_tokens * share), seconds * share)]
        accepted = [result for result in pool if self.judge.holds(result.text)][: self.n_texts]
        arms.append(
            self.arm("rejection (drawn until the judge agrees)", accepted, round(n_tokens * share), seconds * share)
        )
        for n in (4, 16):
            best = [max(pool[at * n : (at + 1) * n], key=self._desired) for at in range(self.n_texts)]
            arms.append(self.arm(f"best of {n} by the guide", best, round(n_tokens * share), seconds * share * n))
        for fast in (False, True):
            for strength in STRENGTHS:
                guided, seconds_guided = self.draw(self.n_texts, self.guide(strength, fast=fast))
                name = f"{'fast' if fast else 'exact'} λ = {strength:g}"
                arms.append(self.arm(name, guided, sum(len(result.token_ids) for result in guided), seconds_guided))
        return arms

    def _desired(self, result: Result) -> float:
        """The guide's own opinion of a whole text."""
        import torch

        if not result.token_ids:
            return -math.inf
        *prefix, last = [self.generator.tokenizer.end_of_text, *result.token_ids]
        row = torch.tensor([prefix]), torch.tensor([len(prefix)]), torch.tensor([[last]])
        return float(self.guide(1.0).scorer.log_odds(*row))


def cost_per_step(rounds: int) -> dict[str, list[float]]:
    """Seconds of a decoding step at 6 layers × 384 channels × 50,257 tokens, k = 100, one row, random weights."""
    import torch

    from generation.discriminators import DiscriminatorScorer
    from generation.guidance import Guidance, Guide
    from model.config import ModelConfig
    from model.discriminator import Discriminator
    from model.gpt import GPT

    torch.manual_seed(0)
    model = GPT(ModelConfig(vocab_size=50_257)).eval()
    body = ModelConfig(vocab_size=50_257, n_layer=2, n_head=2, n_embd=64, positions="rotary", normalization="rmsnorm")
    discriminator = Discriminator(body, 2, 32).eval()

    def guided(fast: bool) -> Guidance:
        scorer = DiscriminatorScorer(discriminator, 0, 50_256, name="random", fast=fast)
        return Guidance([Guide(scorer, 2.0)], 100)

    contenders: dict[str, Callable[[], float]] = {
        "unguided": lambda: _step_seconds(model, None),
        "exact": lambda: _step_seconds(model, guided(fast=False)),
        "fast": lambda: _step_seconds(model, guided(fast=True)),
    }
    return alternate(contenders, rounds)


def _step_seconds(model: GPT, guidance: Any) -> float:
    """The median time of a step behind 128 tokens."""
    import torch

    from generation.config import SamplingConfig
    from generation.context_window import ContextWindow
    from generation.logits_processors.base import ProcessorChain

    window = ContextWindow(model, [list(range(128))], [0], SamplingConfig(max_new_tokens=COST_STEPS))
    chain = ProcessorChain([] if guidance is None else [guidance])
    logits, times = window.start(), []
    for _ in range(COST_STEPS):
        started = time.perf_counter()
        with torch.inference_mode():
            chosen = chain(window.token_ids, logits, window.prompt_lengths).argmax(dim=-1)
        logits = window.step(chosen)
        times.append(time.perf_counter() - started)
    return statistics.median(times[3:])


def answer(config: BenchmarkConfig) -> Report:
    """Train guide and judge on different tales, measure all arms, then the cost on a larger model."""
    from generation.text_generator import TextGenerator
    from model.checkpoint import newest_run_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        generator = TextGenerator.load(newest_run_checkpoint(PROJECT / "checkpoints"), "cpu")
        evaluation = Evaluation(generator, Path(folder), 12 if config.quick else N_TEXTS)
        arms = evaluation.run()
    costs = cost_per_step(config.turns(5))
    comparisons: list[Comparison] = []
    for mode, limit in (("exact", 1.35), ("fast", 1.05)):
        values = {OURS: costs[mode], "unguided": costs["unguided"]}
        comparisons += compare(f"step, guided ({mode}, k = 100)", "s", values, {"unguided": Target("at most", limit)})
    return Report(
        question="Does guidance reach the mood that was asked for, at what price?",
        comparisons=comparisons,
        notes=[
            f"the judge (naive Bayes on tales the guide never saw) is right on {evaluation.judge_accuracy:.1%} of "
            "held-out tales, so no rate can be known better than that",
            "perplexity is that of a character 6-gram counted in those same tales",
        ],
        facts={"arms": [asdict(arm) for arm in arms], "judge_accuracy": evaluation.judge_accuracy},
    )


if __name__ == "__main__":
    run_benchmark("guidance", __doc__, answer)
