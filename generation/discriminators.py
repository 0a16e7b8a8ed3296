"""Discriminators at work: loaded for one language model, and kept in step with the rows of a batch."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from command_line import UserError, closest
from data.tokenizers.base import Tokenizer
from data.tokenizers.registry import tokenizer_from_state, tokenizer_hash
from generation.guidance import CandidateScorer, Guidance, Guide
from generation.guidance_config import GuidanceConfig
from generation.logits_processors.base import HiddenStates
from generation.logits_processors.row_history import row_lengths
from generation.text_rescoring import TextScorer
from model.checkpoint import load_checkpoint
from model.discriminator import CandidateView, Discriminator, discriminator_from_checkpoint, log_odds
from model.kv_cache import NO_TOKEN, KVCache
from model.next_token_head import NextTokenHead, prefix_features
from model.text_classifier import TextClassifier


def text_start(tokenizer: Tokenizer) -> int:
    """The token that a discriminator sees before every text, in training as in decoding."""
    return tokenizer.end_of_text if tokenizer.begin_of_text is None else tokenizer.begin_of_text


def load_guide(
    spec: str, strength: float, tokenizer: Tokenizer, device: torch.device | str = "cpu", *, fast: bool = False
) -> Guide:
    """A guide from `FILE` (towards its first label) or `FILE:LABEL`; a folder holds a classifier of texts.

    Raises CheckpointError for an unusable file, UserError for an unknown label, another tokenizer than `tokenizer`, or
    `fast` where the discriminator was trained without that head.
    """
    path, label = _split_spec(spec)
    if path.is_dir():
        return Guide(_text_scorer(path, label, tokenizer, device, fast=fast), strength)
    checkpoint = load_checkpoint(path, str(device))
    discriminator, labels = discriminator_from_checkpoint(checkpoint)
    number = _number_of_label(label, labels, path)
    own = tokenizer_from_state(checkpoint.tokenizer)
    if tokenizer_hash(own) != tokenizer_hash(tokenizer):
        raise UserError(
            f"{path} was trained for another tokenizer ({own.name}, {own.vocab_size} tokens) than the language model's "
            f"({tokenizer.name}, {tokenizer.vocab_size} tokens); train it with --checkpoint and this language model"
        )
    if not fast:
        return Guide(DiscriminatorScorer(discriminator, number, text_start(tokenizer), name=labels[number]), strength)
    if discriminator.next_token is None:
        raise UserError(
            f"{path} was trained without the head of the fast mode; use --guidance-mode exact, or train it again with "
            "--next-token-rank above 0"
        )
    language_model = str(checkpoint.provenance.get("language_model"))
    head = NextTokenScorer(discriminator.next_token, number, name=labels[number], language_model=language_model)
    return Guide(head, strength)


def _text_scorer(
    folder: Path, label: str | None, tokenizer: Tokenizer, device: torch.device | str, *, fast: bool
) -> CandidateScorer:
    if fast:
        raise UserError(f"{folder} holds a classifier of texts, which has no fast mode; use --guidance-mode exact")
    classifier = TextClassifier.load(folder, device)
    return TextScorer(classifier, _number_of_label(label, classifier.labels, folder), tokenizer)


def _number_of_label(label: str | None, labels: list[str], path: Path) -> int:
    """Of the label named, or of the first; raises UserError for one that is not there."""
    if label is not None and label not in labels:
        raise UserError(
            f"--discriminator {f'{path}:{label}'!r}: the labels of {path} are {', '.join(labels)}, not {label!r}"
            f"{closest(label, labels)}"
        )
    return 0 if label is None else labels.index(label)


def build_guidance(config: GuidanceConfig, tokenizer: Tokenizer, device: torch.device | str = "cpu") -> list[Guidance]:
    """The one processor that the flags ask for, or none; raises what `load_guide` raises."""
    pairs = zip(config.discriminator, config.strengths, strict=True)
    fast = config.guidance_mode == "fast"
    guides = [load_guide(spec, strength, tokenizer, device, fast=fast) for spec, strength in pairs]
    return [Guidance(guides, config.guidance_candidates)] if guides else []


def _split_spec(spec: str) -> tuple[Path, str | None]:
    path, separator, label = spec.rpartition(":")
    if not separator or Path(spec).exists() or not (path.endswith(".pt") or Path(path).is_dir()):
        return Path(spec), None
    return Path(path), label


class DiscriminatorScorer:
    """Scores candidates behind the rows of a batch; the prefixes stay in a cache that grows by a token a step.

    What is cached never has any influence on the scores: rows that do not continue those of the last call are read
    anew. Of a text longer than the context it sees the newest part, whose beginning depends on the length alone.
    """

    def __init__(self, discriminator: Discriminator, label: int, start: int, *, name: str) -> None:
        self.name = name
        self._discriminator = discriminator
        self._label = label
        self._start = start
        self._context_length = discriminator.config.context_length
        self._cache: KVCache | None = None
        self._texts = torch.empty(0, 0, dtype=torch.int64)
        self._view: CandidateView | None = None

    @torch.inference_mode()
    def log_odds(self, token_ids: Tensor, prompt_lengths: Tensor, candidates: Tensor) -> Tensor:
        """See `CandidateScorer`."""
        texts, lengths = self._with_start(token_ids, row_lengths(token_ids, prompt_lengths))
        cache = self._follow(texts, lengths)
        # A language model may have more ids than its tokenizer; those stand for no text and are banned before.
        known = candidates.clamp(max=self._discriminator.config.vocab_size - 1)
        self._view = CandidateView(cache)
        return log_odds(self._discriminator(known, self._view), self._label)  # (B, k, L) → (B, k)

    def _with_start(self, token_ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The rows with the start token before those that have none, (B, 1 + T) with −1 behind, and their lengths."""
        edge = token_ids.new_full((len(token_ids), 1), NO_TOKEN)
        has_start = token_ids[:, :1] == self._start
        shifted = torch.cat((torch.full_like(edge, self._start), token_ids), dim=1)
        texts = torch.where(has_start, torch.cat((token_ids, edge), dim=1), shifted)
        return texts, lengths + ~has_start.squeeze(1)

    def _follow(self, texts: Tensor, lengths: Tensor) -> KVCache:
        """The cache behind exactly these texts (B, T) of these lengths (B,)."""
        counts = lengths.tolist()
        starts = [self._window_start(count) for count in counts]
        previous, self._texts = self._texts, texts
        if self._cache is not None and starts == [self._window_start(count - 1) for count in counts]:
            rows = _rows_before(previous, texts, lengths)
            if rows is not None:
                self._extend(self._cache, rows, texts.gather(1, (lengths - 1).unsqueeze(1)))
                return self._cache
        self._cache = KVCache(self._discriminator.config, len(counts), device=texts.device)
        visible = [texts[row, start:count] for row, (start, count) in enumerate(zip(starts, counts, strict=True))]
        window = pad_sequence(visible, batch_first=True, padding_value=NO_TOKEN)
        self._discriminator.hidden_states(window, self._cache)
        return self._cache

    def _window_start(self, length: int) -> int:
        """The first token seen of a text of this length, such that one candidate still fits into the context.

        A step of half a context at a time, so that a text is read anew once in half a context.
        """
        step = max(1, self._context_length // 2)
        return max(0, -(-(length + 1 - self._context_length) // step)) * step

    def _extend(self, cache: KVCache, rows: list[int], newest: Tensor) -> None:
        """Go on with the given rows and their newest tokens (B, 1)."""
        if rows == list(range(cache.batch_size)) and self._view is not None:
            is_newest = self._view.candidates == newest  # (B, k)
            if is_newest.any(dim=1).all():
                self._view.take(is_newest.int().argmax(dim=1))
                return
        else:
            cache.keep_rows(rows)
        self._discriminator.hidden_states(newest, cache)


def _rows_before(previous: Tensor, texts: Tensor, lengths: Tensor) -> list[int] | None:
    """For each text (B, T) the row of `previous` that it continues by one token; None when there is none for some.

    Equal rows have equal caches, so any of them will do.
    """
    width = max(previous.shape[1], texts.shape[1])
    previous = F.pad(previous, (0, width - previous.shape[1]), value=NO_TOKEN)
    before = F.pad(texts, (0, width - texts.shape[1]), value=NO_TOKEN)
    positions = torch.arange(width, device=texts.device)
    before = before.masked_fill(positions >= (lengths - 1).unsqueeze(1), NO_TOKEN)
    if torch.equal(before, previous):
        return list(range(len(texts)))
    same = (before.unsqueeze(1) == previous).all(dim=-1)  # (B, rows before)
    return same.int().argmax(dim=1).tolist() if bool(same.any(dim=1).all()) else None


class NextTokenScorer:
    """The fast mode: one small product on the hidden state of the one language model that the head was trained for."""

    @torch.no_grad()
    def __init__(self, head: NextTokenHead, label: int, *, name: str, language_model: str) -> None:
        """`language_model`: the SHA-256 of its checkpoint."""
        self.name = name
        self._head = head
        self._label = label
        self._language_model = language_model
        self._folded = head.folded(label) if head.prefix.out_features == 2 else None
        self._states: HiddenStates | None = None

    def read_from(self, states: HiddenStates, language_model: str | None) -> None:
        """See `HiddenStateReader`; raises UserError for another language model."""
        if language_model is not None and language_model != self._language_model:
            raise UserError(
                f"the fast mode of the discriminator {self.name} was trained for another language model; use "
                "--guidance-mode exact, or train it again with --checkpoint and this language model"
            )
        self._states = states

    @torch.inference_mode()
    def log_odds(self, token_ids: Tensor, prompt_lengths: Tensor, candidates: Tensor) -> Tensor:
        """See `CandidateScorer`; raises ValueError before `read_from`."""
        if self._states is None:
            raise ValueError("the fast mode needs the hidden states of the language model: call read_from first")
        known = candidates.clamp(max=self._head.token.num_embeddings - 1)
        dtype, states = self._head.prefix.weight.dtype, self._states
        lengths = torch.tensor(states.lengths, dtype=dtype, device=candidates.device)
        features = prefix_features(states.hidden.to(dtype), states.hidden_total.to(dtype), lengths)
        if self._folded is not None:
            return self._folded.log_odds(features, known)
        return log_odds(self._head(features, known), self._label)
