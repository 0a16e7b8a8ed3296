"""Best of n: draw several texts for each one that is wanted, and keep the one that a score likes best."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

from generation.config import SamplingConfig
from generation.logits_processors.base import LogitsProcessor
from generation.stopping import Limit, StoppingCriterion
from generation.text_generator import Result, TextGenerator

Score = Callable[[Result], float]
"""How good a text is; the higher, the better."""


def mean_log_probability(result: Result) -> float:
    """How probable the model finds a text for each of its tokens, so that short texts have no advantage; in nats."""
    n_tokens = len(result.log_probabilities)
    return math.fsum(result.log_probabilities) / n_tokens if n_tokens else -math.inf


def draw_best(
    generator: TextGenerator,
    prompts: Sequence[str],
    sampling: SamplingConfig,
    n: int,
    *,
    score: Score = mean_log_probability,
    processors: Sequence[LogitsProcessor] = (),
    criteria: Sequence[StoppingCriterion] = (),
    limits: Sequence[Limit] = (),
    n_alternatives: int = 0,
) -> list[Result]:
    """`num_samples` texts for each prompt, each the best of n draws; of equal ones the first drawn.

    `Result.sample` counts all draws: prompt · num_samples · n + draw. A limit that is reached leaves the best so far.
    """
    drawn = generator.generate(
        prompts,
        dataclasses.replace(sampling, num_samples=n * sampling.num_samples),
        processors=processors,
        criteria=criteria,
        limits=limits,
        n_alternatives=n_alternatives,
    )
    return [max(of_text, key=score) for _, of_text in itertools.groupby(drawn, lambda result: result.sample // n)]
