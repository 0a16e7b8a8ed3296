"""Evaluation: every token of the validation split once, in units that compare across tokenizers."""

import math

import pytest
import torch

from data.prepare import PreparedCorpus
from model.config import ModelConfig
from model.gpt import GPT
from tests.training.conftest import CONTEXT_LENGTH, TINY_MODEL
from training.distributed import Workers
from training.evaluation import evaluate

CPU = torch.device("cpu")


def test_a_model_that_knows_nothing_scores_ln_v_per_token(corpus: PreparedCorpus) -> None:
    model = GPT(ModelConfig(**{**TINY_MODEL, "tied_head": False, "initialization": "zero_projection"}))
    result = evaluate(model, corpus, device=CPU, precision="fp32", workers=Workers())
    assert result.loss == pytest.approx(math.log(257), abs=1e-6)
    # One token a byte; the end of text counts in nats but not in bytes, the first token is only read.
    n_targets = corpus.validation_bytes + 1 - 1
    assert result.bits_per_byte == pytest.approx(n_targets * math.log2(257) / corpus.validation_bytes, abs=1e-6)


def test_every_token_is_scored_once_with_the_context_before_it(corpus: PreparedCorpus) -> None:
    torch.manual_seed(0)
    model = GPT(ModelConfig(**TINY_MODEL)).train()
    result = evaluate(model, corpus, device=CPU, precision="fp32", workers=Workers(), sequences=3)
    ids = torch.from_numpy(corpus.validation.tokens(0, len(corpus.validation)).astype("int64"))
    n_targets, half = len(ids) - 1, CONTEXT_LENGTH // 2
    starts = [*range(0, n_targets - CONTEXT_LENGTH, half), n_targets - CONTEXT_LENGTH]
    nats, scored = 0.0, 0
    for start in starts:
        log_probabilities = model(ids[start : start + CONTEXT_LENGTH][None]).log_softmax(-1)[0]
        for position in range(max(scored, start), start + CONTEXT_LENGTH):
            nats -= log_probabilities[position - start, ids[position + 1]].item()
        scored = start + CONTEXT_LENGTH
    assert scored == n_targets
    assert result.loss == pytest.approx(nats / n_targets, rel=1e-5)
    assert model.training


def test_workers_share_the_windows(corpus: PreparedCorpus) -> None:
    model = GPT(ModelConfig(**TINY_MODEL))
    parts = []

    class Listening(Workers):
        def sum(self, values: torch.Tensor) -> torch.Tensor:
            parts.append(values.item())
            return values

    whole = evaluate(model, corpus, device=CPU, precision="fp32", workers=Workers())
    for rank in range(3):
        evaluate(model, corpus, device=CPU, precision="fp32", workers=Listening(rank, 3))
    assert sum(parts) / (corpus.n_validation_tokens - 1) == pytest.approx(whole.loss, rel=1e-6)
