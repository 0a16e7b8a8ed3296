"""A tiny corpus, a tiny model and a trainer over them, shared by the tests of this room."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from data.prepare import PreparedCorpus, prepare_corpus
from data.sources import open_source
from model.config import ModelConfig
from model.gpt import GPT
from training.config import TrainConfig
from training.distributed import Workers
from training.interruption import Interruption
from training.plan import Plan
from training.run_state import RunFolder
from training.trainer import Trainer

CONTEXT_LENGTH = 16
SENTENCES = ("the cat sat on the mat. ", "a dog ran to the old mill. ", "rain fell, and the fox slept. ")
TINY_MODEL: dict[str, Any] = {
    "vocab_size": 257,
    "context_length": CONTEXT_LENGTH,
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 16,
    "positions": "rotary",
    "normalization": "rmsnorm",
    "bias": False,
    "bigram_rows": 64,
}
PLAN = Plan(
    n_steps=6,
    sequences=4,
    micro_batch_size=2,
    evaluate_every_steps=3,
    save_every_steps=2,
    device="cpu",
    precision="fp32",
    compile=False,
    threads=1,
)


@pytest.fixture
def corpus(tmp_path: Path) -> PreparedCorpus:
    """About 3,000 bytes of text, one token a byte."""
    text = tmp_path / "text.txt"
    text.write_text("".join(SENTENCES[i * i % 3] for i in range(120)), encoding="utf-8")
    return prepare_corpus(
        open_source(str(text)), "byte", context_length=CONTEXT_LENGTH, cache_folder=tmp_path / "tokens", progress=False
    )


BuildTrainer = Callable[..., Trainer]


@pytest.fixture
def build_trainer(corpus: PreparedCorpus, tmp_path: Path) -> Iterator[BuildTrainer]:
    """A function that builds a trainer in a run folder of its own; fields of both configs can be replaced."""
    folders = contextlib.ExitStack()

    def build(
        plan: Plan = PLAN, *, run: str = "run", model: dict[str, Any] | None = None, resume: bool = False, **config: Any
    ) -> Trainer:
        torch.manual_seed(5)
        return Trainer(
            GPT(ModelConfig(**{**TINY_MODEL, **(model or {})})),
            corpus,
            TrainConfig(**config),
            plan,
            folders.enter_context(RunFolder.open(tmp_path / run, resume=resume, overwrite=False)),
            workers=Workers(),
            interruption=Interruption(),
            provenance={},
            show_sample=lambda step, progress: None,
        )

    with folders:
        yield build
