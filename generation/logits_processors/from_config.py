"""From a SamplingConfig to the processors that it asks for; a rule that would do nothing is not built."""

from collections.abc import Iterable

from command_line import UserError
from data.tokenizers.base import Tokenizer
from generation.config import SamplingConfig, parse_logit_bias
from generation.logits_processors.bans import BanFirst, BanTexts, ForcedEnd, MinNewTokens, NoRepeatNgram, SuppressTokens
from generation.logits_processors.base import LogitsProcessor
from generation.logits_processors.penalties import (
    FrequencyPenalty,
    LengthDecay,
    LogitBias,
    PresencePenalty,
    RepetitionPenalty,
)
from generation.logits_processors.row_history import TokenCounts
from generation.logits_processors.truncation import Epsilon, Eta, MinP, Temperature, TopK, TopP, Typical
from generation.logits_processors.valid_utf8 import ValidUTF8, has_parts_of_characters


def processors_from_config(config: SamplingConfig, tokenizer: Tokenizer, vocab_size: int) -> list[LogitsProcessor]:
    """Fresh processors for one batch, to be put into a `ProcessorChain`; `vocab_size` is the model's.

    Raises UserError for a token id that the model does not have.
    """
    return [
        *_penalties(config, tokenizer, vocab_size),
        *_bans(config, tokenizer, vocab_size),
        *_truncations(config, vocab_size),
    ]


def _penalties(config: SamplingConfig, tokenizer: Tokenizer, vocab_size: int) -> list[LogitsProcessor]:
    processors: list[LogitsProcessor] = []
    if config.logit_bias:
        biases = dict(parse_logit_bias(entry) for entry in config.logit_bias)
        _check_tokens("--logit-bias", biases, vocab_size)
        processors.append(LogitBias(biases))
    counts = TokenCounts(vocab_size, window=config.penalty_window, new_only=config.penalty_scope == "new")
    if config.repetition_penalty != 1:
        processors.append(RepetitionPenalty(config.repetition_penalty, counts))
    if config.presence_penalty:
        processors.append(PresencePenalty(config.presence_penalty, counts))
    if config.frequency_penalty:
        processors.append(FrequencyPenalty(config.frequency_penalty, counts))
    if config.length_decay > 1:
        processors.append(LengthDecay(config.length_decay_start, config.length_decay, tokenizer.end_of_text))
    return processors


def _bans(config: SamplingConfig, tokenizer: Tokenizer, vocab_size: int) -> list[LogitsProcessor]:
    processors: list[LogitsProcessor] = []
    # A model may have more ids than its tokenizer (padded for speed); those stand for no text.
    nameless = range(tokenizer.vocab_size, vocab_size)
    if config.suppress_tokens or nameless:
        _check_tokens("--suppress-tokens", config.suppress_tokens, vocab_size)
        processors.append(SuppressTokens([*config.suppress_tokens, *nameless]))
    if config.no_repeat_ngram is not None:
        processors.append(NoRepeatNgram(config.no_repeat_ngram))
    if config.ban_text:
        processors.append(BanTexts(config.ban_text, tokenizer))
    if config.ban_first:
        processors.append(BanFirst(config.ban_first, tokenizer))
    if config.min_new_tokens > 0:
        processors.append(MinNewTokens(config.min_new_tokens, tokenizer.end_of_text))
    if config.force_end:
        processors.append(ForcedEnd(config.max_new_tokens, tokenizer.end_of_text))
    # The last of the bans, since it gives way to all others.
    if config.valid_utf8 and has_parts_of_characters(tokenizer):
        processors.append(ValidUTF8(tokenizer, vocab_size, config.max_new_tokens - config.force_end))
    return processors


def _truncations(config: SamplingConfig, vocab_size: int) -> list[LogitsProcessor]:
    processors: list[LogitsProcessor] = []
    # Temperature 0 leaves the logits as they are; the last stage takes the most probable token, after guidance.
    if config.temperature not in (0, 1):
        processors.append(Temperature(config.temperature))
    if config.top_k is not None and config.top_k < vocab_size:
        processors.append(TopK(config.top_k))
    if config.top_p < 1:
        processors.append(TopP(config.top_p))
    if config.min_p > 0:
        processors.append(MinP(config.min_p))
    if config.typical_p < 1:
        processors.append(Typical(config.typical_p))
    if config.epsilon_cutoff > 0:
        processors.append(Epsilon(config.epsilon_cutoff))
    if config.eta_cutoff > 0:
        processors.append(Eta(config.eta_cutoff))
    return processors


def _check_tokens(flag: str, tokens: Iterable[int], vocab_size: int) -> None:
    for token in tokens:
        if token >= vocab_size:
            raise UserError(f"{flag} must name a token id from 0 to {vocab_size - 1}, but names {token}")
