"""Beam search: a text of high probability as a whole, found by carrying on the n best beginnings at once.

Every step asks for all continuations of all beginnings and keeps the n best. So a token of little probability may
stand where something probable follows, which greedy decoding never sees. With as many beams as there are texts it is
the exact search for the most probable one; with one beam it is greedy.
"""

import copy
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from command_line import UserError
from data.tokenizers.base import Tokenizer
from generation.config import SamplingConfig
from generation.context_window import ContextWindow
from generation.decoding import Row, most_probable_tokens
from generation.logits_processors.base import LogitsProcessor
from generation.stopping import MAX_NEW_TOKENS, NO_CANDIDATE, Limit, StoppingCriterion, TimeLimit, reached_reason
from generation.text_generator import Result, TextGenerator


@dataclass(frozen=True)
class Hypothesis:
    """A beginning of a text, or a whole one once its row has a reason."""

    row: Row
    score: float = 0.0
    """Log-probability of its tokens behind all processors, in nats."""
    log_probabilities: tuple[float, ...] = ()
    """Of each token, under the model before any processor."""
    alternatives: tuple[tuple[tuple[int, float], ...], ...] = ()
    """For each token the model's most probable ones there with their probabilities."""
    parent: int = 0
    """The place of the beginning that it carries on, among those that went on in the step before."""


def search_beams(
    generator: TextGenerator,
    prompts: Sequence[str],
    sampling: SamplingConfig,
    n_beams: int,
    *,
    processors: Sequence[LogitsProcessor] = (),
    criteria: Sequence[StoppingCriterion] = (),
    limits: Sequence[Limit] = (),
    n_alternatives: int = 0,
) -> list[Result]:
    """The `num_samples` most probable texts that `n_beams` beams find for each prompt, the best one first.

    Nothing is drawn and the temperature is not used. The score of a text is the sum of its log-probabilities, so
    short texts are favoured; `min_new_tokens` counters that. A processor of your own must not remember rows, which
    change places here. A limit that is reached leaves the best texts so far. Raises UserError for more samples than
    beams.
    """
    if sampling.num_samples > n_beams:
        raise UserError(f"--num-samples ({sampling.num_samples}) must not be above --beams ({n_beams})")
    sampling = dataclasses.replace(sampling, temperature=0.0)
    all_limits = [*limits, TimeLimit(sampling.time_limit_seconds or math.inf)]
    results: list[Result] = []
    rules: dict[str, Any] = {"processors": processors, "criteria": criteria, "n_alternatives": n_alternatives}
    for number, prompt in enumerate(prompts):
        # One text is begun however little time there is.
        if reached_reason(all_limits if number else limits) is not None:
            break
        beams = _search(generator, prompt, sampling, n_beams, limits=all_limits, **rules)[: sampling.num_samples]
        results += [_result(number * sampling.num_samples + n, prompt, beam) for n, beam in enumerate(beams)]
    return results


def _result(sample: int, prompt: str, beam: Hypothesis) -> Result:
    return Result(
        sample=sample,
        prompt=prompt,
        text=beam.row.text,
        reason=beam.row.reason or "",
        token_ids=beam.row.token_ids,
        log_probabilities=list(beam.log_probabilities),
        alternatives=list(beam.alternatives),
        traces=[],
    )


@torch.inference_mode()
def _search(
    generator: TextGenerator,
    prompt: str,
    sampling: SamplingConfig,
    n_beams: int,
    *,
    processors: Sequence[LogitsProcessor],
    criteria: Sequence[StoppingCriterion],
    limits: Sequence[Limit],
    n_alternatives: int,
) -> list[Hypothesis]:
    """The beams of one prompt at the end, the best one first."""
    window = ContextWindow(generator.model.eval(), [generator.encode_prompt(prompt)], [0], sampling)
    beams = [Hypothesis(Row(0, generator.tokenizer, sampling, begins_text=not prompt, keep_text=True))]
    logits, limit = window.start(), None
    for _ in range(sampling.max_new_tokens):
        # Fresh ones for every step: those that remember their rows would take one beam for another.
        chain = generator.build_chain(sampling, processors)
        chain.read_from(window, generator.checkpoint_sha256)
        processed = chain(window.token_ids, logits, window.prompt_lengths)
        beams = _grow(beams, logits, processed, n_beams, generator.tokenizer, n_alternatives)
        _ask(criteria, beams)
        going_on = [beam for beam in beams if beam.row.reason is None]
        # A longer text is never more probable, so whole ones at the top stay there.
        is_decided = all(beam.row.reason is not None for beam in beams[: sampling.num_samples])
        limit = reached_reason(limits)
        if is_decided or not going_on or limit is not None:
            break
        window.keep_rows([beam.parent for beam in going_on])
        logits = window.step(torch.tensor([beam.row.token_ids[-1] for beam in going_on], device=window.device))
    for beam in beams:
        if beam.row.reason is None:
            beam.row.finish(limit or MAX_NEW_TOKENS)
    return beams


def _grow(
    beams: Sequence[Hypothesis],
    logits: Tensor,
    processed: Tensor,
    n_beams: int,
    tokenizer: Tokenizer,
    n_alternatives: int = 0,
) -> list[Hypothesis]:
    """The n best of all whole texts and all continuations of the others.

    `logits` (B, V) are the model's, `processed` those behind all processors, a row for each beam that goes on.
    """
    live = [beam for beam in beams if beam.row.reason is None]
    scores = torch.tensor([beam.score for beam in live], dtype=torch.float64, device=logits.device)
    log_shares = processed.double().log_softmax(dim=-1)
    # A row without candidates has no distribution: NaN. Without `neginf`, banned tokens would become finite.
    totals = scores.unsqueeze(1) + log_shares.nan_to_num(nan=-torch.inf, neginf=-torch.inf)  # (B, V)
    best = totals.flatten().topk(min(n_beams, totals.numel()))
    under_model = logits.log_softmax(dim=-1)
    favourites = most_probable_tokens(under_model, n_alternatives)

    def carry_on(place: int, score: float) -> Hypothesis:
        parent, token = divmod(place, logits.shape[1])
        before = live[parent]
        row = copy.deepcopy(before.row, {id(tokenizer): tokenizer})  # all but the tokenizer
        row.take(token)
        log_probabilities = (*before.log_probabilities, float(under_model[parent, token]))
        alternatives = (*before.alternatives, favourites[parent]) if favourites else ()
        return Hypothesis(row, score, log_probabilities, alternatives, parent)

    whole = [beam for beam in beams if beam.row.reason is not None]
    continued = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    grown = [carry_on(place, score) for place, score in continued if score > -torch.inf]
    if not whole and not grown:
        for beam in live:
            beam.row.finish(NO_CANDIDATE)
        return live
    return sorted([*whole, *grown], key=lambda beam: -beam.score)[:n_beams]


def _ask(criteria: Sequence[StoppingCriterion], beams: Sequence[Hypothesis]) -> None:
    """Let the user's criteria end beams."""
    for criterion in criteria:
        ends = criterion([beam.row.token_ids for beam in beams], [beam.row.text for beam in beams])
        for beam, has_ended in zip(beams, ends, strict=True):
            if has_ended and beam.row.reason is None:
                beam.row.finish(criterion.reason)
