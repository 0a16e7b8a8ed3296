"""A discriminator that reads text instead of tokens, such as BERT: every candidate is spelled out and read anew."""

from __future__ import annotations

import torch
from torch import Tensor

from data.tokenizers.base import Tokenizer
from generation.logits_processors.row_history import row_lengths
from model.discriminator import log_odds
from model.text_classifier import TextClassifier


class TextScorer:
    """Gives the prefix with each candidate behind it to a classifier of texts: B · k passes a step, nothing cached.

    Works with any language model, since the text is tokenised anew. The end of text has no characters: a text that
    ends is scored as it stands.
    """

    def __init__(self, classifier: TextClassifier, label: int, tokenizer: Tokenizer) -> None:
        self.name = classifier.labels[label]
        self._classifier = classifier
        self._label = label
        self._tokenizer = tokenizer
        self._without_text = {tokenizer.end_of_text, tokenizer.begin_of_text}

    @torch.inference_mode()
    def log_odds(self, token_ids: Tensor, prompt_lengths: Tensor, candidates: Tensor) -> Tensor:
        """See `CandidateScorer`."""
        lengths = row_lengths(token_ids, prompt_lengths).tolist()
        texts = [
            self._text([*row[:length], candidate])
            for row, length, of_row in zip(token_ids.tolist(), lengths, candidates.tolist(), strict=True)
            for candidate in of_row
        ]
        class_logits = self._classifier.class_logits(texts).view(*candidates.shape, -1)  # (B, k, L)
        return log_odds(class_logits, self._label).to(candidates.device)

    def _text(self, token_ids: list[int]) -> str:
        known = [t for t in token_ids if t not in self._without_text and t < self._tokenizer.vocab_size]
        return self._tokenizer.decode(known)
