"""Best of n: draw several texts for each one that is wanted, and keep the one that a score likes best."""

import dataclasses
import math
from collections.abc import Callable, Sequence

from generation.config import SamplingConfig
from generation.logits_processors.base import LogitsProcessor
from generation.stopping import StoppingCriterion
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
    n_alternatives: int | None = None,
) -> list[Result]:
    """`num_samples` texts for each prompt, each the best of n draws; of equal ones the first drawn.

    `Result.sample` counts all draws: prompt · num_samples · n + draw.
    """
    drawn = generator.generate(
        prompts,
        dataclasses.replace(sampling, num_samples=n * sampling.num_samples),
        processors=processors,
        criteria=criteria,
        n_alternatives=n_alternatives,
    )
    return [max(drawn[first : first + n], key=score) for first in range(0, len(drawn), n)]
