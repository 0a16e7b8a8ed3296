"""The preset mini with the tokenizer of the English tales and random weights: all that a question about speed needs."""

from __future__ import annotations

from pathlib import Path

import torch

from data.prepare import prepare_corpus
from data.sources import open_source
from data.tokenizers.base import Tokenizer
from generation.text_generator import TextGenerator
from model.checkpoint import save_checkpoint
from model.config import ModelConfig, preset_config
from model.gpt import GPT


def mini_parts(preset: str = "mini") -> tuple[ModelConfig, Tokenizer, list[int]]:
    """Config and tokenizer as `python train.py` chooses them, and token ids of tales to prompt with."""
    config = preset_config(preset, vocab_size=1)
    corpus = prepare_corpus(open_source("tales-en"), "auto", context_length=config.context_length, progress=False)
    token_ids = corpus.validation.tokens(0, len(corpus.validation)).tolist()
    return preset_config(preset, vocab_size=corpus.tokenizer.vocab_size), corpus.tokenizer, token_ids


def mini_generator() -> tuple[TextGenerator, list[int]]:
    """A generator of random weights, and token ids to prompt with."""
    config, tokenizer, token_ids = mini_parts()
    torch.manual_seed(0)
    model = GPT(config).eval()
    for parameter in model.parameters():
        # Training begins with a head of zeros, but top-k works differently where all logits are equal.
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return TextGenerator(model, tokenizer), token_ids


def save_mini(path: Path) -> None:
    """Write a checkpoint of random weights."""
    generator, _ = mini_generator()
    save_checkpoint(
        path,
        model_config=generator.model.config,
        state_dict=generator.model.state_dict(),
        tokenizer=generator.tokenizer.state(),
        provenance={},
    )
