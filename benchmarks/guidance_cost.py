"""What does a guided step of decoding cost? At 6 layers × 384 channels × 50,257 tokens, k = 100, one row."""

from __future__ import annotations

import statistics
import time

import torch

from benchmarks.measuring import OURS, Target, compare
from benchmarks.report import BenchmarkConfig, Report, run_benchmark
from generation.config import SamplingConfig
from generation.context_window import ContextWindow
from generation.discriminators import DiscriminatorScorer, NextTokenScorer
from generation.guidance import CandidateScorer, Guidance, Guide
from generation.logits_processors.base import ProcessorChain
from generation.sampling import draw
from model.config import ModelConfig
from model.discriminator import Discriminator
from model.gpt import GPT
from model.next_token_head import NextTokenHead

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
    """Median seconds a step of each contender, step by step in turns, so that all of them see the same machine."""
    steps, rounds = (5, 1) if config.quick else (100, config.turns(5))
    torch.manual_seed(0)
    model = GPT(ModelConfig(vocab_size=VOCAB_SIZE, tied_head=False)).eval()
    # The sizes of training.train_discriminator.
    body = ModelConfig(
        vocab_size=VOCAB_SIZE, n_layer=2, n_head=2, n_embd=64, positions="rotary", normalization="rmsnorm"
    )
    discriminator = Discriminator(body, 2).eval()
    head = NextTokenHead(2 * model.config.n_embd, VOCAB_SIZE, 2, RANK).eval()
    seconds: dict[str, list[float]] = {name: [] for name in ("unguided", *LIMITS)}
    for number in range(rounds):
        contenders = {
            "unguided": Contender(model, None, steps + WARM_UP_STEPS),
            "exact": Contender(
                model, DiscriminatorScorer(discriminator, 0, VOCAB_SIZE - 1, name="exact"), steps + WARM_UP_STEPS
            ),
            "fast": Contender(model, NextTokenScorer(head, 0, name="fast", language_model=""), steps + WARM_UP_STEPS),
        }
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(steps + WARM_UP_STEPS):
            for name, contender in contenders.items():
                times[name].append(contender.step())
        for name, of_name in times.items():
            seconds[name].append(statistics.median(of_name[WARM_UP_STEPS:]))
            print(f"round {number + 1} of {rounds}: {name} {1000 * seconds[name][-1]:.2f} ms a step", flush=True)
    comparisons = [
        comparison
        for mode, limit in LIMITS.items()
        for comparison in compare(
            f"guided step ({mode}, k = {N_CANDIDATES})",
            "s",
            {OURS: seconds[mode], "unguided": seconds["unguided"]},
            {"unguided": Target("at most", limit)},
        )
    ]
    note = f"random weights, {torch.get_num_threads()} threads, a prompt of {PROMPT_TOKENS} tokens, temperature 1"
    return Report("What does a guided step of decoding cost?", comparisons, [note])


if __name__ == "__main__":
    run_benchmark("guidance_cost", __doc__, answer)
