"""What does a guided step of decoding cost? At 6 layers × 384 channels × 50,257 tokens, k = 100, one row."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import torch

from benchmarks.measuring import OURS, Comparison, Target, compare
from benchmarks.report import BenchmarkConfig, Report, run_benchmark
from generation.config import SamplingConfig
from generation.context_window import ContextWindow
from generation.discriminators import DiscriminatorScorer, NextTokenScorer
from generation.guidance import CandidateScorer, Guidance, Guide
from generation.logits_processors.base import ProcessorChain
from generation.sampling import draw
from model.config import ModelConfig
from model.decoding_kernels import use_decoding_kernels
from model.discriminator import Discriminator
from model.gpt import GPT
from model.next_token_head import NextTokenHead
from training.discriminator_config import DiscriminatorConfig
from training.discriminator_trainer import build_discriminator

VOCAB_SIZE, N_CANDIDATES, PROMPT_TOKENS, RANK = 50_257, 100, 128, 32
WARM_UP_STEPS = 3
LIMITS = {"exact": 1.35, "fast": 1.05}


class Contender:
    """One way of drawing the next token, behind a text of its own."""

    def __init__(self, model: GPT, scorer: CandidateScorer | None, max_new_tokens: int) -> None:
        self._window = ContextWindow(
            model, [list(range(PROMPT_TOKENS))], [0], SamplingConfig(max_new_tokens=max_new_tokens)
        )
        self._chain = ProcessorChain([] if scorer is None else [Guidance([Guide(scorer, 2.0)], N_CANDIDATES)])
        self._chain.read_from(self._window, None)
        self._logits = self._window.start()
        self._chance = torch.Generator().manual_seed(0)

    @torch.inference_mode()
    def step(self) -> float:
        """Seconds from logits to the next logits."""
        uniform = torch.rand(1, dtype=torch.float64, generator=self._chance)
        started = time.perf_counter()
        processed = self._chain(self._window.token_ids, self._logits, self._window.prompt_lengths)
        self._logits = self._window.step(draw(processed, uniform))
        return time.perf_counter() - started


def answer(config: BenchmarkConfig) -> Report:
    """A step of the ordinary model, which has targets, then one of the same model with compiled kernels."""
    steps, rounds = (5, 1) if config.quick else (100, config.turns(5))
    torch.manual_seed(0)
    model = GPT(ModelConfig(vocab_size=VOCAB_SIZE, tied_head=False)).eval()
    discriminator = build_discriminator(DiscriminatorConfig(rule="any.py:rule"), VOCAB_SIZE, 2, None).eval()
    head = NextTokenHead(2 * model.config.n_embd, VOCAB_SIZE, 2, RANK).eval()
    comparisons = compare_modes("", model, discriminator, head, steps, rounds, LIMITS)
    use_decoding_kernels(model, "fp32")
    comparisons += compare_modes(", --compile", model, discriminator, head, steps, rounds, dict.fromkeys(LIMITS))
    note = f"random weights, {torch.get_num_threads()} threads, a prompt of {PROMPT_TOKENS} tokens, temperature 1"
    return Report("What does a guided step of decoding cost?", comparisons, [note])


def compare_modes(
    path: str,
    model: GPT,
    discriminator: Discriminator,
    head: NextTokenHead,
    steps: int,
    rounds: int,
    limits: Mapping[str, float | None],
) -> list[Comparison]:
    """Median seconds a step of each contender, step by step in turns, so that all of them see the same machine."""
    seconds: dict[str, list[float]] = {name: [] for name in ("unguided", *limits)}
    for number in range(rounds):
        exact = DiscriminatorScorer(discriminator, 0, VOCAB_SIZE - 1, name="exact")
        fast = NextTokenScorer(head, 0, name="fast", language_model="")
        scorers: dict[str, CandidateScorer | None] = {"unguided": None, "exact": exact, "fast": fast}
        contenders = {name: Contender(model, scorer, steps + WARM_UP_STEPS) for name, scorer in scorers.items()}
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(steps + WARM_UP_STEPS):
            for name, contender in contenders.items():
                times[name].append(contender.step())
        for name, of_name in times.items():
            seconds[name].append(statistics.median(of_name[WARM_UP_STEPS:]))
            print(f"round {number + 1} of {rounds}{path}: {name} {1000 * seconds[name][-1]:.2f} ms a step", flush=True)
    return [
        comparison
        for mode, limit in limits.items()
        for comparison in compare(
            f"guided step ({mode}, k = {N_CANDIDATES}){path}",
            "s",
            {OURS: seconds[mode], "unguided": seconds["unguided"]},
            {"unguided": None if limit is None else Target("at most", limit)},
        )
    ]


if __name__ == "__main__":
    run_benchmark("guidance_cost", __doc__, answer)
