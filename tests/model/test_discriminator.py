"""Discriminators: every prefix scored in one causal pass, candidates sharing the prefix's cache, one verified file."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from model.config import ModelConfig
from model.discriminator import (
    NO_LABEL,
    CandidateView,
    Discriminator,
    discriminator_from_checkpoint,
    log_odds,
)
from model.gpt import GPT
from model.kv_cache import NO_TOKEN, KVCache

TOKENIZER = {"kind": "byte", "version": 1}


def build_discriminator(config: ModelConfig, n_labels: int = 3) -> Discriminator:
    torch.manual_seed(0)
    discriminator = Discriminator(config, n_labels)
    for name, parameter in discriminator.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if name.endswith("norm.weight") else 0.0, std=0.25)
    return discriminator.eval()


def one_by_one(discriminator: Discriminator, prefix: list[int], candidates: list[int]) -> Tensor:
    """The reference: a full pass over prefix + candidate for every candidate, (k, L)."""
    return torch.stack([discriminator(torch.tensor([[*prefix, token]]))[0, -1] for token in candidates])


@torch.no_grad()
def test_candidates_on_a_shared_cache_score_as_full_passes(config: ModelConfig) -> None:
    discriminator = build_discriminator(config)
    prefixes = [[3, 1, 4, 1, 5, 9, 2], [6, 5], [8]]
    candidates = torch.tensor([[7, 0, 49], [7, 7, 1], [2, 3, 4]])
    padded = [[*prefix, *[NO_TOKEN] * (7 - len(prefix))] for prefix in prefixes]
    cache = KVCache(discriminator.config, 3)
    discriminator.hidden_states(torch.tensor(padded), cache)
    scores = discriminator(candidates, CandidateView(cache))
    for row, prefix in enumerate(prefixes):
        torch.testing.assert_close(scores[row], one_by_one(discriminator, prefix, candidates[row].tolist()))


@torch.no_grad()
def test_taking_a_candidate_continues_the_cache_as_a_pass_over_it_would(config: ModelConfig) -> None:
    discriminator = build_discriminator(config)
    prefix, cache = [3, 1, 4], KVCache(config, 1)
    discriminator.hidden_states(torch.tensor([prefix]), cache)
    for _ in range(4):
        candidates = torch.tensor([[(prefix[-1] * 7 + step) % 50 for step in range(5)]])
        view = CandidateView(cache)
        scores = discriminator(candidates, view)[0]
        torch.testing.assert_close(scores, one_by_one(discriminator, prefix, candidates[0].tolist()))
        view.take(torch.tensor([2]))
        prefix.append(int(candidates[0, 2]))


@torch.no_grad()
def test_scoring_leaves_the_prefix_as_it_was() -> None:
    discriminator = build_discriminator(ModelConfig(vocab_size=50, context_length=8, n_layer=2, n_head=2, n_embd=16))
    cache = KVCache(discriminator.config, 1)
    discriminator.hidden_states(torch.tensor([[1, 2, 3]]), cache)
    before = cache.keys.clone(), cache.values.clone(), cache.history.clone(), list(cache.lengths)
    discriminator(torch.tensor([[4, 5, 6, 7]]), CandidateView(cache))
    assert torch.equal(cache.keys, before[0])
    assert torch.equal(cache.values, before[1])
    assert torch.equal(cache.history, before[2])
    assert cache.lengths == before[3]


def test_a_full_cache_has_no_room_for_candidates() -> None:
    discriminator = build_discriminator(ModelConfig(vocab_size=50, context_length=3, n_layer=1, n_head=1, n_embd=8))
    cache = KVCache(discriminator.config, 1)
    discriminator.hidden_states(torch.tensor([[1, 2, 3]]), cache)
    with pytest.raises(ValueError, match="no room for candidates"):
        discriminator(torch.tensor([[4]]), CandidateView(cache))


def test_an_untrained_discriminator_holds_every_label_equally_probable(config: ModelConfig) -> None:
    logits = Discriminator(config, 4)(torch.tensor([[1, 2, 3]]))
    assert torch.equal(logits, torch.zeros(1, 3, 4))


def test_the_loss_is_the_mean_over_all_prefixes_and_padding_counts_for_nothing(config: ModelConfig) -> None:
    discriminator = build_discriminator(config)
    texts, labels = [[5, 6, 7, 8], [9, 10]], [2, 0]
    token_ids = torch.tensor([texts[0], [*texts[1], 0, 0]])
    targets = torch.tensor([[2] * 4, [0, 0, NO_LABEL, NO_LABEL]])
    by_hand = [
        -discriminator(torch.tensor([text[:end]]))[0, -1].log_softmax(-1)[label]
        for text, label in zip(texts, labels, strict=True)
        for end in range(1, len(text) + 1)
    ]
    torch.testing.assert_close(discriminator.loss(token_ids, targets), torch.stack(by_hand).mean())


def test_log_odds_give_the_probability_of_a_label_and_of_all_others() -> None:
    logits = torch.randn(20, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    probabilities = logits.softmax(-1)
    torch.testing.assert_close(log_odds(logits, 2).sigmoid(), probabilities[:, 2])
    torch.testing.assert_close((-log_odds(logits, 2)).sigmoid(), probabilities[:, [0, 1, 3]].sum(-1))


def test_a_language_model_lends_its_body(build: Callable[[ModelConfig], GPT], config: ModelConfig) -> None:
    model = build(config)
    discriminator = Discriminator.from_language_model(model, 2).eval()
    token_ids = torch.tensor([[1, 2, 3, 4]])
    assert torch.equal(discriminator.hidden_states(token_ids), model.hidden_states(token_ids))
    with torch.no_grad():
        discriminator.blocks[0].attention.qkv.weight.zero_()  # type: ignore[union-attr, operator]
    assert model.blocks[0].attention.qkv.weight.abs().sum() > 0  # type: ignore[union-attr, operator]


def save(path: Path, discriminator: Discriminator, labels: object, kind: str = "discriminator") -> Path:
    save_checkpoint(
        path,
        model_config=discriminator.config,
        state_dict=discriminator.state_dict(),
        tokenizer=TOKENIZER,
        provenance={"labels": labels},
        kind=kind,
    )
    return path


@torch.no_grad()
def test_a_checkpoint_brings_the_same_discriminator_back(config: ModelConfig, tmp_path: Path) -> None:
    discriminator = build_discriminator(config)
    path = save(tmp_path / "mood.pt", discriminator, ["bright", "gloomy", "neither"])
    loaded, labels = discriminator_from_checkpoint(load_checkpoint(path))
    token_ids = torch.tensor([[1, 2, 3, 4]])
    assert labels == ["bright", "gloomy", "neither"]
    assert torch.equal(loaded(token_ids), discriminator(token_ids))


def test_a_language_model_is_no_discriminator(build: Callable[[ModelConfig], GPT], tmp_path: Path) -> None:
    model = build(ModelConfig(vocab_size=257, context_length=8, n_layer=1, n_head=1, n_embd=8))
    path = tmp_path / "best.pt"
    save_checkpoint(path, model_config=model.config, state_dict=model.state_dict(), tokenizer=TOKENIZER, provenance={})
    with pytest.raises(CheckpointError, match="holds a gpt, but a discriminator is needed"):
        discriminator_from_checkpoint(load_checkpoint(path))


@pytest.mark.parametrize("labels", [None, ["only one"], "bright", [1, 2, 3]])
def test_labels_that_are_none_are_refused(labels: object, tmp_path: Path) -> None:
    discriminator = build_discriminator(ModelConfig(vocab_size=257, context_length=8, n_layer=1, n_head=1, n_embd=8))
    path = save(tmp_path / "mood.pt", discriminator, labels)
    with pytest.raises(CheckpointError, match="does not name the labels"):
        discriminator_from_checkpoint(load_checkpoint(path))


def test_weights_that_do_not_fit_the_labels_are_refused(tmp_path: Path) -> None:
    discriminator = build_discriminator(ModelConfig(vocab_size=257, context_length=8, n_layer=1, n_head=1, n_embd=8))
    path = save(tmp_path / "mood.pt", discriminator, ["a", "b"])
    with pytest.raises(CheckpointError, match=r"'head\.weight' does not fit"):
        discriminator_from_checkpoint(load_checkpoint(path))
