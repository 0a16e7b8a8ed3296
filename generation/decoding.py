"""The decoding loop: logits → processors → one token per row → pieces of text, row by row to its end."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from command_line import UserError
from data.tokenizers.base import Tokenizer
from generation.config import SamplingConfig
from generation.context_window import ContextWindow
from generation.logits_processors.base import ProcessorChain
from generation.sampling import UniformNumbers, draw, most_probable
from generation.stopping import (
    END_OF_TEXT,
    MAX_NEW_TOKENS,
    NO_CANDIDATE,
    Limit,
    LineLimit,
    SentenceLimit,
    StoppingCriterion,
    StopStrings,
    TextLimit,
    TextLimits,
    reached_reason,
)
from generation.text_stream import TextStream
from generation.trace import StepTrace, Tracer


@dataclass(frozen=True)
class Piece:
    """What one step adds to one sample; the texts of a sample's pieces join to exactly its whole text."""

    sample: int
    """Number of the sample: prompt · num_samples + copy."""
    text: str
    """Whole characters, perhaps none: those of an unfinished character or a possible stop string are held back."""
    token_id: int | None
    """The token drawn; None when the sample ended without one."""
    log_probability: float | None
    """Natural logarithm of the probability that the model itself gave to the token, before any processor."""
    reason: str | None = None
    """Why the sample ends with this piece; None while it goes on."""
    alternatives: tuple[tuple[int, float], ...] = ()
    """The model's most probable tokens with their probabilities, as many as asked for."""
    trace: StepTrace | None = None
    """How the token was chosen, when asked for."""


class Row:
    """What one sample has come to: its tokens, its text and, once it ended, why."""

    def __init__(
        self, sample: int, tokenizer: Tokenizer, sampling: SamplingConfig, *, begins_text: bool, keep_text: bool
    ) -> None:
        limits: list[TextLimit] = []
        if sampling.stop:
            limits.append(StopStrings(sampling.stop, keep=sampling.keep_stop))
        if sampling.max_sentences is not None:
            limits.append(SentenceLimit(sampling.max_sentences))
        if sampling.max_lines is not None:
            limits.append(LineLimit(sampling.max_lines))
        self.sample = sample
        self.reason: str | None = None
        self.token_ids: list[int] = []
        self._end_of_text = tokenizer.end_of_text
        self._stream = TextStream(tokenizer, begins_text=begins_text)
        self._limits = TextLimits(limits)
        self._texts: list[str] | None = [] if keep_text else None

    def take(self, token_id: int) -> str:
        """Take the token drawn; returns the characters that are now sure, and sets the reason if it ends the sample."""
        if token_id < 0:
            return self.finish(NO_CANDIDATE)
        self.token_ids.append(token_id)
        if token_id == self._end_of_text:
            return self.finish(END_OF_TEXT)
        text = self._limits.push(self._stream.push(token_id))
        self.reason = self._limits.reason
        return self._keep(text)

    def finish(self, reason: str) -> str:
        """End the sample; returns what was held back."""
        text = self._limits.finish(self._stream.finish())
        self.reason = self._limits.reason or reason
        return self._keep(text)

    @property
    def text(self) -> str:
        """All characters given so far, kept only where a criterion asks for them."""
        if not self._texts:
            return ""
        # Joined once and kept so: joining thousands of pieces anew at every step would make long texts ever slower.
        self._texts = ["".join(self._texts)]
        return self._texts[0]

    def _keep(self, text: str) -> str:
        if self._texts is not None:
            self._texts.append(text)
        return text


def decode(
    window: ContextWindow,
    samples: Sequence[int],
    tokenizer: Tokenizer,
    sampling: SamplingConfig,
    chain: ProcessorChain,
    criteria: Sequence[StoppingCriterion] = (),
    limits: Sequence[Limit] = (),
    n_alternatives: int = 0,
    explain: bool = False,
) -> Iterator[Piece]:
    """Draw the samples that stand in the rows of `window`, one token per row and step, until every row has ended.

    Every piece lists `n_alternatives` of the model's favourites, with `explain` a trace of its step too.
    """
    if sampling.max_new_tokens == 0:
        yield from (Piece(sample, "", None, None, MAX_NEW_TOKENS) for sample in samples)
        return
    numbers = UniformNumbers(sampling.seed, samples) if sampling.temperature > 0 else None
    logits = window.start()
    # An empty prompt is one special token.
    are_empty = [
        length == 1 and not tokenizer.token_bytes(first)
        for length, first in zip(window.lengths, window.token_ids[:, 0].tolist(), strict=True)
    ]
    rows = [
        Row(sample, tokenizer, sampling, begins_text=is_empty, keep_text=bool(criteria))
        for sample, is_empty in zip(samples, are_empty, strict=True)
    ]
    for step in range(sampling.max_new_tokens):
        tracer = Tracer(n_alternatives) if explain else None
        drawn = _choose(window, logits, chain, numbers, step, n_alternatives, tracer)
        end = MAX_NEW_TOKENS if step == sampling.max_new_tokens - 1 else reached_reason(limits)
        yield from _take(rows, drawn, criteria, end)
        going_on = [index for index, row in enumerate(rows) if row.reason is None]
        if not going_on:
            return
        tokens = drawn.tokens
        # Taking rows out copies the cache; at every quarter the copies stay a small part of the work saved.
        if len(going_on) <= 0.75 * len(rows):
            rows = [rows[index] for index in going_on]
            tokens = tokens[going_on]
            window.keep_rows(going_on)
            if numbers is not None:
                numbers.keep_rows(going_on)
        logits = window.step(tokens.clamp(min=0))


@dataclass(frozen=True)
class _Drawn:
    """One step of all rows."""

    tokens: Tensor
    """(B,), NO_CANDIDATE where all are banned."""
    log_probabilities: Tensor
    """Under the model, (B,)."""
    alternatives: list[tuple[tuple[int, float], ...]] | None
    traces: list[StepTrace] | None


@torch.inference_mode()
def _choose(
    window: ContextWindow,
    logits: Tensor,
    chain: ProcessorChain,
    numbers: UniformNumbers | None,
    step: int,
    n_alternatives: int,
    tracer: Tracer | None,
) -> _Drawn:
    """Draw the token of each row from the model's logits (B, V); the best ones when there are no random numbers."""
    log_probabilities = logits.log_softmax(dim=-1)  # (B, V)
    # A single logit that is no number makes none of its whole row.
    if any(math.isnan(first) for first in log_probabilities[:, 0].tolist()):
        raise UserError(
            "the model's logits are not numbers (NaN): its training diverged; use an earlier checkpoint of the run"
        )
    processed = chain(window.token_ids, logits, window.prompt_lengths, tracer.observe if tracer else None)
    chosen = most_probable(processed) if numbers is None else draw(processed, numbers.at(step))
    of_chosen = log_probabilities.gather(1, chosen.clamp(min=0).unsqueeze(1)).squeeze(1)
    traces = tracer.finish(logits, processed, chosen, greedy=numbers is None) if tracer else None
    return _Drawn(chosen, of_chosen, most_probable_tokens(log_probabilities, n_alternatives), traces)


def most_probable_tokens(log_probabilities: Tensor, n: int) -> list[tuple[tuple[int, float], ...]] | None:
    """The n most probable tokens of each row of (B, V) with their probabilities, the best first; None for n = 0."""
    if n == 0:
        return None
    best = log_probabilities.topk(min(n, log_probabilities.shape[1]), dim=-1)
    of_rows = zip(best.indices.tolist(), best.values.exp().tolist(), strict=True)
    return [tuple(zip(tokens, shares, strict=True)) for tokens, shares in of_rows]


def _take(
    rows: Sequence[Row], drawn: _Drawn, criteria: Sequence[StoppingCriterion], end: str | None
) -> Iterator[Piece]:
    """Give each row that goes on its token; then ask the criteria which end with it; `end` ends all."""
    tokens, log_probabilities = drawn.tokens.tolist(), drawn.log_probabilities.tolist()
    taking = [index for index, row in enumerate(rows) if row.reason is None]
    texts = {index: rows[index].take(tokens[index]) for index in taking}
    for criterion in criteria:
        ends = criterion([row.token_ids for row in rows], [row.text for row in rows])
        for index in taking:
            if ends[index] and rows[index].reason is None:
                texts[index] += rows[index].finish(criterion.reason)
    for index in taking:
        row = rows[index]
        if end is not None and row.reason is None:
            texts[index] += row.finish(end)
        has_token = tokens[index] >= 0
        yield Piece(
            row.sample,
            texts[index],
            tokens[index] if has_token else None,
            log_probabilities[index] if has_token else None,
            row.reason,
            drawn.alternatives[index] if drawn.alternatives else (),
            drawn.traces[index] if drawn.traces else None,
        )
